use proptest::prelude::*;

use super::*;
use crate::error::ErrorKind;
use crate::file_checksum::{ChecksumAlgorithm, FileHasher};
use crate::lsn::Lsn;
use crate::timeline::TimelineId;

fn sealed(body: &str) -> Vec<u8> {
    use sha2::{Digest, Sha256};
    let sum: String = Sha256::digest(body.as_bytes())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("{body}\"Manifest-Checksum\": \"{sum}\"}}\n").into_bytes()
}

fn with_file(fields: &str) -> Vec<u8> {
    sealed(&format!(
        "{{\"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [{{{fields}}}],\n"
    ))
}

fn kind(content: &[u8]) -> ErrorKind {
    Manifest::parse(content).unwrap_err().kind()
}

fn manifests() -> impl Strategy<Value = Manifest> {
    let part = prop_oneof![
        "[a-z0-9_]{1,8}",
        "\\PC{1,8}".prop_filter("a name", |part| {
            !part.contains(['/', '\0']) && part != ".."
        })
    ];
    let path = prop::collection::vec(part, 1..4).prop_map(|parts| parts.join("/").into_bytes());
    let path = prop_oneof![8 => path, 1 => Just(vec![b'x', 0xFF, b'\n'])];
    let checksum = (
        prop::sample::select(&ChecksumAlgorithm::ALL[..]),
        any::<u64>(),
    )
        .prop_map(|(algorithm, seed)| {
            let mut hasher = FileHasher::new(algorithm);
            hasher.update(&seed.to_le_bytes());
            hasher.finish()
        });
    let file = (path, any::<u64>(), prop::option::of("\\PC{0,30}"), checksum).prop_map(
        |(path, size, modified, checksum)| ManifestFile {
            path,
            size,
            modified,
            checksum,
        },
    );
    let range =
        (1..9_u32, any::<u64>(), any::<u64>()).prop_map(|(timeline, start, end)| TimelineRange {
            timeline: TimelineId::new(timeline).unwrap(),
            start: Lsn(start),
            end: Lsn(end),
        });
    let files = prop::collection::vec(file, 0..20);
    (
        prop::option::of(1..u64::MAX),
        files,
        prop::collection::vec(range, 0..3),
    )
        .prop_map(|(identifier, mut files, wal_ranges)| {
            files.sort_by(|one, two| one.path.cmp(&two.path));
            files.dedup_by(|one, two| one.path == two.path);
            Manifest {
                system_identifier: identifier.map(|value| SystemIdentifier::new(value).unwrap()),
                files,
                wal_ranges,
            }
        })
}

proptest! {
    #[test]
    fn what_was_written_is_read_in_pieces_of_any_size(manifest in manifests(), piece in 1_usize..99) {
        let bytes = manifest.to_bytes();
        prop_assert_eq!(&Manifest::parse(&bytes).unwrap(), &manifest);
        let (mut reader, mut files) = (ManifestReader::new(), 0);
        for piece in bytes.chunks(piece) {
            reader.push(piece, |item| files += usize::from(matches!(item, ManifestItem::File(_)))).unwrap();
        }
        prop_assert_eq!(reader.finish().unwrap(), manifest.system_identifier);
        prop_assert_eq!(files, manifest.files.len());
        let mut encoded = ManifestWriter::new(manifest.system_identifier).encode_paths();
        let mut bytes = Vec::new();
        for file in &manifest.files {
            encoded.file(file);
            bytes.extend(encoded.take());
        }
        bytes.extend(encoded.finish(&manifest.wal_ranges));
        prop_assert_eq!(&Manifest::parse(&bytes).unwrap(), &manifest);
    }

    #[test]
    fn a_changed_or_cut_manifest_is_refused(manifest in manifests(), at in any::<prop::sample::Index>()) {
        let bytes = manifest.to_bytes();
        let at = at.index(bytes.len());
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        // The value of the checksum is hexadecimal: the case of a digit says nothing.
        prop_assume!(!changed.eq_ignore_ascii_case(&bytes));
        prop_assert!(Manifest::parse(&changed).is_err());
        prop_assert_eq!(kind(&bytes[..at]), ErrorKind::Truncated);
    }
}

#[test]
fn keys_of_a_file_may_come_in_any_order() {
    for fields in [
        r#""Path": "a/b", "Size": 7, "Checksum-Algorithm": "crc32c", "Checksum": "994e7be2""#,
        r#""Checksum": "994E7BE2","Size": 7,"Checksum-Algorithm":"CRC32C" , "Path":"a\/b""#,
        r#""Checksum": "994e7be2", "Size": "7", "Checksum-Algorithm": "CRC32C", "Encoded-Path": "612f62""#,
        r#""Size": 7, "Path": "\u0061/b", "Checksum-Algorithm": "CRC32C", "Checksum": "994e7be2""#,
    ] {
        let manifest = Manifest::parse(&with_file(fields)).unwrap();
        assert_eq!(manifest.version(), 1);
        let file = &manifest.files[0];
        assert_eq!((file.path.as_slice(), file.size), (&b"a/b"[..], 7));
        assert_eq!(file.checksum.as_ref().unwrap().to_string(), "994e7be2");
    }
    let pair = with_file(r#""Path": "\ud83d\ude00", "Size": 1"#);
    assert_eq!(
        Manifest::parse(&pair).unwrap().files[0].path,
        "\u{1F600}".as_bytes()
    );
}

#[test]
fn a_file_that_breaks_a_rule_is_refused() {
    for fields in [
        "",
        r#""Path": "a""#,
        r#""Size": 1"#,
        r#""Path": "a", "Encoded-Path": "61", "Size": 1"#,
        r#""Path": "a", "Path": "b", "Size": 1"#,
        r#""Path": "a", "Size": -1"#,
        r#""Path": "a", "Size": 1.5"#,
        r#""Path": "a", "Size": 18446744073709551616"#,
        r#""Path": "a", "Size": [1]"#,
        r#""Path": "a", "Size": true"#,
        r#""Path": "a", "Size": 1, "Owner": "me""#,
        r#""Path": "a", "Size": 1, "Checksum": "994e7be2""#,
        r#""Path": "a", "Size": 1, "Checksum-Algorithm": "CRC32C""#,
        r#""Path": "a", "Size": 1, "Checksum-Algorithm": "MD5", "Checksum": "00""#,
        r#""Path": "a", "Size": 1, "Checksum-Algorithm": "CRC32C", "Checksum": "994e7b""#,
        r#""Path": "a", "Size": 1, "Checksum-Algorithm": "CRC32C", "Checksum": "994e7be""#,
        r#""Path": "", "Size": 1"#,
        r#""Path": "/etc/passwd", "Size": 1"#,
        r#""Path": "a/../../b", "Size": 1"#,
        r#""Path": "..", "Size": 1"#,
        r#""Path": "a//b", "Size": 1"#,
        r#""Path": "a\u0000", "Size": 1"#,
        r#""Path": "\ud83d", "Size": 1"#,
        r#""Path": "\ude00", "Size": 1"#,
        r#""Path": "\q", "Size": 1"#,
        r#""Encoded-Path": "2e2e", "Size": 1"#,
        r#""Encoded-Path": "6", "Size": 1"#,
        r#""Path": "a", "Size": 1,"#,
    ] {
        assert_eq!(kind(&with_file(fields)), ErrorKind::Malformed, "{fields}");
    }
}

#[test]
fn a_path_that_occurs_twice_is_refused() {
    let twice = with_file(r#""Path": "a", "Size": 1}, {"Encoded-Path": "61", "Size": 1"#);
    let error = Manifest::parse(&twice).unwrap_err();
    assert!(error.reason().contains("twice"), "{error}");
}

#[test]
fn the_frame_of_a_manifest_is_checked() {
    const VERSION: &str = "{\"PostgreSQL-Backup-Manifest-Version\": 1,\n";
    let files = format!("{VERSION}\"Files\": [],\n");
    assert!(Manifest::parse(&sealed(&files)).is_ok());
    let refused = [
        (sealed(VERSION), ErrorKind::Malformed),
        (sealed("{\"Files\": [],\n"), ErrorKind::Malformed),
        (sealed(&files.replace("1,", "3,")), ErrorKind::Unsupported),
        (sealed(&files.replace("1,", "2,")), ErrorKind::Malformed),
        (
            sealed(&files.replace("1,", "1, \"System-Identifier\": 5,")),
            ErrorKind::Malformed,
        ),
        (
            sealed(&format!("{files}\"Files\": [],\n")),
            ErrorKind::Malformed,
        ),
        // The last line is what the checksum does not cover: nothing else may stand there.
        (sealed(files.trim_end()), ErrorKind::Malformed),
        ([&sealed(&files)[..], b"\n"].concat(), ErrorKind::Malformed),
        ([&sealed(&files)[..], b"x"].concat(), ErrorKind::Malformed),
        (sealed(&files.replace("[]", "[[]]")), ErrorKind::Malformed),
        (sealed(&files.replace("[]", "{}")), ErrorKind::Malformed),
        (b"null\n".to_vec(), ErrorKind::Malformed),
        (Vec::new(), ErrorKind::Truncated),
        (b"\n\n".to_vec(), ErrorKind::Truncated),
    ];
    for (content, expected) in refused {
        assert_eq!(
            kind(&content),
            expected,
            "{}",
            String::from_utf8_lossy(&content)
        );
    }
    let mut wrong = sealed(&files);
    let digit = wrong.len() - 4;
    wrong[digit] = if wrong[digit] == b'0' { b'1' } else { b'0' };
    assert_eq!(kind(&wrong), ErrorKind::Checksum);
}

#[test]
fn hostile_nesting_and_sizes_cost_nothing() {
    assert_eq!(kind(&b"[".repeat(1 << 20)), ErrorKind::Malformed);
    let long = format!(
        "{{\"PostgreSQL-Backup-Manifest-Version\": 1,\n\"{}",
        "a".repeat(1 << 20)
    );
    assert_eq!(kind(long.as_bytes()), ErrorKind::Malformed);
    let number = format!(
        "{{\"PostgreSQL-Backup-Manifest-Version\": {}",
        "1".repeat(1 << 20)
    );
    assert_eq!(kind(number.as_bytes()), ErrorKind::Malformed);
}

#[test]
fn times_are_written_as_the_server_writes_them() {
    for (seconds, text) in [
        (0, "1970-01-01 00:00:00 GMT"),
        (951_782_399, "2000-02-28 23:59:59 GMT"),
        (951_782_400, "2000-02-29 00:00:00 GMT"),
        (1_795_168_467, "2026-11-20 09:54:27 GMT"),
        (4_107_542_400, "2100-03-01 00:00:00 GMT"),
        (-1, "1969-12-31 23:59:59 GMT"),
    ] {
        assert_eq!(gmt(seconds), text);
    }
}
