//! Archives that ask for what no base backup needs.

use neon_snapshot_format::basebackup::{Archive, ArchiveKind, BaseBackup, Limits};
use neon_snapshot_format::{Error, ErrorKind, Source};
use tar::{EntryType, Header};

use crate::pgdata_refuses::Nothing;

fn header(name: &str, kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_ustar();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o600);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header.set_cksum();
    header
}

fn member(name: &str, kind: EntryType, content: &[u8]) -> Vec<u8> {
    let mut bytes = header(name, kind, content.len() as u64).as_bytes().to_vec();
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn link(name: &str, kind: EntryType, to: &str) -> Vec<u8> {
    let mut header = header(name, kind, 0);
    header.as_old_mut().linkname[..to.len()].copy_from_slice(to.as_bytes());
    header.set_cksum();
    header.as_bytes().to_vec()
}

fn extended(records: &[(&str, &str)]) -> Vec<u8> {
    let mut content = String::new();
    for (key, value) in records {
        let body = format!(" {key}={value}\n");
        let length = (1..)
            .find(|n| n.to_string().len() + body.len() == *n)
            .unwrap();
        content += &format!("{length}{body}");
    }
    member("PaxHeader/x", EntryType::XHeader, content.as_bytes())
}

fn ended(parts: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = parts.concat();
    bytes.extend([0; 1024]);
    bytes
}

fn refusal(bytes: &[u8]) -> Error {
    BaseBackup::in_stream(bytes).send(&mut Nothing).unwrap_err()
}

#[test]
fn what_leads_out_or_is_no_file_is_refused() {
    use EntryType as T;
    let file = |name: &str| member(name, T::Regular, b"x");
    let cases: &[(&str, Vec<Vec<u8>>)] = &[
        ("absolute", vec![file("/etc/passwd")]),
        ("parent", vec![file("../outside")]),
        ("parent inside", vec![file("base/../../outside")]),
        ("empty part", vec![file("base//1")]),
        ("no name", vec![file("")]),
        ("file named as a directory", vec![file("base/")]),
        ("link out", vec![link("base", T::Symlink, "/etc")]),
        (
            "link inside",
            vec![link("global/x", T::Symlink, "pg_control")],
        ),
        (
            "link below a tablespace",
            vec![link("pg_tblspc/16400/x", T::Symlink, "/etc")],
        ),
        ("hard link", vec![link("x", T::Link, "/etc/passwd")]),
        ("character device", vec![link("x", T::Char, "")]),
        ("block device", vec![link("x", T::Block, "")]),
        ("FIFO", vec![link("x", T::Fifo, "")]),
        (
            "GNU long name",
            vec![
                member("././@LongLink", T::GNULongName, b"long\0"),
                file("x"),
            ],
        ),
        ("sparse", vec![member("x", T::GNUSparse, b"x")]),
        ("contiguous", vec![member("x", T::Continuous, b"x")]),
        ("twice", vec![file("x"), file("x")]),
        ("twice by another spelling", vec![file("x"), file("./x")]),
        (
            "directory and file",
            vec![member("x/", T::Directory, b""), file("x")],
        ),
        ("extended path", vec![extended(&[("path", "y")]), file("x")]),
        (
            "extended size",
            vec![extended(&[("size", "1000")]), file("x")],
        ),
        (
            "extended link",
            vec![
                extended(&[("linkpath", "/etc")]),
                link("pg_tblspc/1", T::Symlink, "/srv"),
            ],
        ),
        (
            "extended sparse",
            vec![extended(&[("GNU.sparse.size", "9")]), file("x")],
        ),
        (
            "broken extended header",
            vec![member("x", T::XHeader, b"what"), file("x")],
        ),
        (
            "directory with data",
            vec![member("x", T::Directory, b"data")],
        ),
        ("hidden behind the end", vec![vec![0; 1024], file("x")]),
    ];
    for (what, parts) in cases {
        let error = refusal(&ended(parts));
        assert_eq!(error.kind(), ErrorKind::Unsafe, "{what}: {error}");
    }
}

#[test]
fn what_is_cut_off_or_lies_about_its_size_is_refused() {
    use EntryType as T;
    let whole = ended(&[
        member("PG_VERSION", T::Regular, b"15\n"),
        member("x", T::Regular, &[7; 2000]),
    ]);
    for cut in [0, 100, 512, 600, 1024, 1100, 1536, 2000, 3584] {
        assert_eq!(
            refusal(&whole[..cut]).kind(),
            ErrorKind::Malformed,
            "cut at {cut}"
        );
    }
    let mut lie = header("x", T::Regular, 1 << 40).as_bytes().to_vec();
    lie.extend([0; 4096]);
    assert_eq!(refusal(&lie).kind(), ErrorKind::Malformed);
    let mut sum = whole.clone();
    sum[0] ^= 1;
    assert_eq!(refusal(&sum).kind(), ErrorKind::Malformed);
    assert_eq!(
        refusal(&whole).kind(),
        ErrorKind::Malformed,
        "no control file"
    );
    assert_eq!(refusal(b"").kind(), ErrorKind::Malformed);
    assert_eq!(refusal(&[0x1F, 0x8B, 8, 0]).kind(), ErrorKind::Malformed);
}

#[test]
fn bombs_end_at_the_limits() {
    use EntryType as T;
    // A gigabyte of zeros in a few kilobytes.
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    let head = header("base/1/1", T::Regular, 1 << 30);
    std::io::Write::write_all(&mut encoder, head.as_bytes()).unwrap();
    let zeros = vec![0; 1 << 20];
    for _ in 0..1024 {
        std::io::Write::write_all(&mut encoder, &zeros).unwrap();
    }
    let bomb = encoder.finish().unwrap();
    assert!(bomb.len() < 100_000);
    let limited = |bytes: &[u8], limits| {
        BaseBackup::in_stream(bytes)
            .limits(limits)
            .send(&mut Nothing)
            .unwrap_err()
            .kind()
    };
    assert_eq!(
        limited(
            &bomb,
            Limits {
                bytes: 1 << 20,
                ..Limits::default()
            }
        ),
        ErrorKind::Limit
    );
    let many: Vec<_> = (0..100)
        .map(|n| member(&format!("f{n}"), T::Regular, b""))
        .collect();
    assert_eq!(
        limited(
            &ended(&many),
            Limits {
                members: 50,
                ..Limits::default()
            }
        ),
        ErrorKind::Limit
    );
    // A Zstandard frame that asks for a window of gigabytes.
    let window = [0x28, 0xB5, 0x2F, 0xFD, 0x00, 0xF0, 0x01, 0x00, 0x00];
    assert_eq!(refusal(&window).kind(), ErrorKind::Malformed);
}

#[test]
fn servers_of_13_and_14_send_archives_without_end_marks() {
    use EntryType as T;
    let bytes = member("PG_VERSION", T::Regular, b"13\n");
    let send = |backup: BaseBackup<'_>| {
        let mut backup = backup;
        backup.send(&mut Nothing).unwrap_err().to_string()
    };
    let archives = || {
        vec![Archive {
            kind: ArchiveKind::Base,
            stream: Box::new(bytes.as_slice()),
        }]
    };
    assert!(send(BaseBackup::new(archives())).contains("cut off"));
    assert!(send(BaseBackup::new(archives()).without_end_marks()).contains("pg_control"));
}
