//! The bodies of the fuzz targets: each takes any bytes and must neither panic nor hang.
//!
//! Public so that `fuzz/` and the property tests run the same code; not part of the crate's
//! interface. Where a decoder has a writer, the target also states that writing what was read and
//! reading it again gives the same value.

use crate::{
    BackupHistory, BackupLabel, BlockRefTable, BlockSize, CheckPoint, ControlFile, DataFile, Error,
    FileHasher, Lsn, Manifest, ManifestReader, ManifestWriter, PageCheck, PageHeader, PageVerdict,
    PgMajor, PostmasterPid, RelationMap, RelationPath, ReplayedLog, SegmentName, SystemIdentifier,
    TablespaceMap, TimelineHistory, TimelineId, WalFileName, WalSegmentSize, WalSummaryName,
    WalSummaryReader, page_checksums,
};

/// One fuzz target: its name and its body.
pub type Target = (&'static str, fn(&[u8]));

/// Every target of this crate by name.
pub const ALL: &[Target] = &[
    ("backup_history", backup_history),
    ("backup_label", backup_label),
    ("checkpoint", checkpoint),
    ("control_file", control_file),
    ("data_file", data_file),
    ("manifest", manifest),
    ("page", page),
    ("postmaster_pid", postmaster_pid),
    ("relation_map", relation_map),
    ("small_texts", small_texts),
    ("tablespace_map", tablespace_map),
    ("timeline_history", timeline_history),
    ("wal_file_name", wal_file_name),
    ("wal_reader", wal_reader),
    ("wal_record", wal_record),
    ("wal_summary", wal_summary),
];

/// Parses a backup history file; what is accepted is written back byte for byte.
pub fn backup_history(bytes: &[u8]) {
    if let Ok(history) = BackupHistory::parse(bytes) {
        assert_eq!(history.to_bytes(), bytes);
    }
}

/// Parses a label; what is accepted is written back byte for byte.
pub fn backup_label(bytes: &[u8]) {
    if let Ok(label) = BackupLabel::parse(bytes) {
        assert_eq!(label.to_bytes(), bytes);
        let _name = label.history_file_name(WalSegmentSize::DEFAULT);
    }
}

/// Decodes a checkpoint of every major.
pub fn checkpoint(bytes: &[u8]) {
    for major in PgMajor::ALL {
        let _checkpoint = CheckPoint::decode(bytes, major.layout());
    }
}

/// Decodes a control file, and again under a right size and CRC, so that what lies behind them is
/// reached.
pub fn control_file(bytes: &[u8]) {
    let _control = ControlFile::decode(bytes);
    let mut file = bytes.to_vec();
    file.resize(ControlFile::FILE_SIZE, 0);
    for major in PgMajor::ALL {
        let layout = major.layout();
        let offset = layout.control_crc_offset;
        put(&mut file, 8, layout.control_version);
        put(&mut file, 12, layout.catalog_version);
        let crc = crc32c::crc32c(file.get(..offset).unwrap_or_default());
        put(&mut file, offset, crc);
        if let Ok(control) = ControlFile::decode(&file) {
            assert_eq!(control.major, major);
        }
    }
}

/// Tells a file by its path; relation paths are written back as they were.
pub fn data_file(bytes: &[u8]) {
    let Ok(path) = std::str::from_utf8(bytes) else {
        return;
    };
    for major in PgMajor::ALL {
        let layout = major.layout();
        if let DataFile::Relation(relation) = DataFile::of(path, layout) {
            assert_eq!(relation.to_path(layout), path);
            assert_eq!(RelationPath::parse(path, layout), Some(relation));
            let _block = relation.first_block(131_072);
        }
    }
}

/// Reads a manifest, whole and in pieces; one that is accepted is written and read again.
pub fn manifest(bytes: &[u8]) {
    let whole = Manifest::parse(bytes);
    let mut reader = ManifestReader::new();
    let mut items = 0;
    let pieces = bytes
        .chunks(7)
        .try_for_each(|piece| reader.push(piece, |_| items += 1));
    let in_pieces = pieces.and_then(|()| reader.finish());
    if let Ok(manifest) = whole {
        assert_eq!(in_pieces, Ok(manifest.system_identifier));
        assert_eq!(items, manifest.files.len() + manifest.wal_ranges.len());
        assert_eq!(Manifest::parse(&manifest.to_bytes()), Ok(manifest.clone()));
        let mut writer = ManifestWriter::new(manifest.system_identifier).encode_paths();
        for file in &manifest.files {
            writer.file(file);
        }
        let encoded = writer.finish(&manifest.wal_ranges);
        assert_eq!(Manifest::parse(&encoded), Ok(manifest));
    }
}

/// Judges a page of every size.
pub fn page(bytes: &[u8]) {
    let _header = PageHeader::decode(bytes).map(|header| header.check(BlockSize::DEFAULT));
    for bits in 10..=15 {
        let Ok(size) = BlockSize::new(1 << bits) else {
            continue;
        };
        let mut page = bytes.to_vec();
        page.resize(size.bytes(), 0);
        let log = ReplayedLog {
            start: Lsn(1 << 32),
            end: Lsn(1 << 40),
        };
        for checksums in [true, false] {
            let check = |replayed| PageCheck {
                checksums,
                replayed,
            };
            let strict = check(None).judge(&page, 7);
            let lenient = check(Some(log)).judge(&page, 7);
            assert!(strict.is_ok());
            match lenient {
                Ok(PageVerdict::Unsettled { lsn }) => {
                    assert!(strict.is_ok_and(PageVerdict::is_bad) && log.restores(lsn));
                }
                other => assert_eq!(other, strict),
            }
        }
        let _checksums = page_checksums(bytes, size, u32::MAX).count();
    }
    let check = PageCheck {
        checksums: true,
        replayed: None,
    };
    assert_eq!(check.judge(bytes, 0).is_ok(), BlockSize::of(bytes).is_ok());
}

/// Parses a pid file.
pub fn postmaster_pid(bytes: &[u8]) {
    if let Ok(read) = PostmasterPid::parse(bytes) {
        assert_ne!(read.pid, 0);
    }
}

/// Decodes a relation map of every major, and again under a right magic number and CRC.
pub fn relation_map(bytes: &[u8]) {
    for major in PgMajor::ALL {
        let layout = major.layout();
        let _map = RelationMap::decode(bytes, layout);
        let mut file = bytes.to_vec();
        file.resize(layout.relation_map_size, 0);
        put(&mut file, 0, 0x0059_2717);
        let sealed = (layout.relation_map_size - 12) / 8 * 8 + 8;
        let crc = crc32c::crc32c(file.get(..sealed).unwrap_or_default());
        put(&mut file, sealed, crc);
        let _map = RelationMap::decode(&file, layout);
    }
}

/// Parses positions, identifiers and versions; what is accepted says the same when written.
pub fn small_texts(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(lsn) = text.parse::<Lsn>() {
        assert_eq!(lsn.to_string().parse(), Ok(lsn));
    }
    if let Ok(identifier) = text.parse::<SystemIdentifier>() {
        assert_eq!(identifier.to_string().parse(), Ok(identifier));
        let _created = identifier.created();
    }
    let _major: Result<PgMajor, _> = text.parse();
    let mut hasher = FileHasher::new(text.parse().unwrap_or_default());
    hasher.update(bytes);
    let _sum = hasher.finish();
}

/// Parses a tablespace map; one that is accepted is written and read again.
pub fn tablespace_map(bytes: &[u8]) {
    if let Ok(map) = TablespaceMap::parse(bytes) {
        assert_eq!(TablespaceMap::parse(&map.to_bytes()), Ok(map));
    }
}

/// Parses a history file and asks it questions; one that is accepted is written and read again.
pub fn timeline_history(bytes: &[u8]) {
    let Ok(timeline) = TimelineId::new(u32::MAX) else {
        return;
    };
    let Ok(history) = TimelineHistory::parse(timeline, bytes) else {
        return;
    };
    assert_eq!(
        TimelineHistory::parse(timeline, &history.to_bytes()),
        Ok(history.clone())
    );
    assert_eq!(
        history.common_ancestor(&history),
        Some((timeline, Lsn::MAX))
    );
    for switch in history.ancestors() {
        assert!(history.contains(switch.timeline, switch.at));
        let path = history.path(switch.timeline, switch.at, Lsn::MAX);
        assert!(path.is_ok_and(|path| path.len() <= history.ancestors().len() + 1));
        assert!(history.timeline_of(switch.at) > switch.timeline);
    }
}

/// Parses file names and segment sizes of the log.
pub fn wal_file_name(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let _size: Result<WalSegmentSize, _> = text.parse();
    if let Ok(name) = text.parse::<WalFileName>() {
        assert_eq!(name.to_string(), text);
    }
    if let Ok(name) = text.parse::<SegmentName>() {
        assert_eq!(name.to_string(), text);
        let _start = name.start(WalSegmentSize::DEFAULT);
        let _next = name.next(WalSegmentSize::MAX);
    }
    if let Ok(name) = text.parse::<WalSummaryName>() {
        assert_eq!(name.to_string(), text);
    }
}

/// Reads a summary, whole, in pieces and under a right CRC; a table that was read is written and read
/// again.
pub fn wal_summary(bytes: &[u8]) {
    let mut sealed = bytes.to_vec();
    put(&mut sealed, 0, 0x652B_137B);
    let end = sealed.len().saturating_sub(4);
    let crc = crc32c::crc32c(sealed.get(..end).unwrap_or_default());
    put(&mut sealed, end, crc);
    for bytes in [bytes, &sealed] {
        let whole = BlockRefTable::from_summary(bytes);
        let mut reader = WalSummaryReader::new();
        let pieces = bytes
            .chunks(5)
            .try_for_each(|piece| reader.push(piece, |_| {}));
        let in_pieces = pieces.and_then(|()| reader.finish());
        assert_eq!(whole.is_ok(), in_pieces.is_ok());
        if let Ok(table) = whole {
            let mut again = Vec::new();
            let written = table.write_summary(|part| {
                again.extend_from_slice(part);
                Ok::<(), Error>(())
            });
            assert_eq!(written, Ok(()));
            assert_eq!(BlockRefTable::from_summary(&again), Ok(table));
        }
    }
}

/// Overwrites a little-endian word, if it lies in the bytes.
fn put(bytes: &mut [u8], offset: usize, word: u32) {
    if let Some(place) = bytes
        .get_mut(offset..)
        .and_then(|rest| rest.first_chunk_mut())
    {
        *place = word.to_le_bytes();
    }
}

/// Reads any bytes as the log of each major.
pub fn wal_reader(bytes: &[u8]) {
    crate::wal::fuzz::reader(bytes);
}

/// Reads any bytes as one record of the log, framed so that its content is looked at.
pub fn wal_record(bytes: &[u8]) {
    crate::wal::fuzz::record(bytes);
}
