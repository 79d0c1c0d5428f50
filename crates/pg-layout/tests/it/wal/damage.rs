//! Damage is found and placed, whatever the pieces the log comes in.

use neon_pg_layout::fuzz_targets::{wal_reader, wal_record};
use neon_pg_layout::wal::{Record, Step, WalFormat, WalReader};
use neon_pg_layout::{Error, Lsn, PgMajor, TimelineId, WalSegmentSize};
use neon_testkit::{Cluster, StopMode};
use proptest::prelude::*;

use super::walk::{format_of, segments};
use neon_testkit::forge::{Forge, PAGE, SEGMENT, START, main_data};

pub(crate) fn format(major: PgMajor) -> WalFormat {
    WalFormat::new(major, WalSegmentSize::MIN).up_to_timeline(TimelineId::FIRST)
}

/// Reads `log` in pieces, shows the records, and says where and how it stopped.
pub(crate) fn read(
    mut reader: WalReader,
    log: &[u8],
    piece: usize,
    mut visit: impl FnMut(&Record<'_>),
) -> Result<Option<Lsn>, Error> {
    for mut input in log.chunks(piece) {
        loop {
            match reader.read(&mut input)? {
                Step::Record(record) => visit(&record),
                Step::NeedMore => break,
                Step::End(end) => return Ok(Some(end.lsn)),
            }
        }
    }
    Ok(None)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn records_of_any_length_arrive_whole_in_pieces_of_any_size(
        lengths in prop::collection::vec(prop_oneof![4 => 0..300_usize, 2 => 8000..8400_usize, 1 => 0..60_000_usize], 1..60),
        piece in prop_oneof![1..60_usize, 4000..20_000_usize, Just(usize::MAX)],
        skip in 0..80_usize,
    ) {
        let mut forge = Forge::new(PgMajor::V16);
        let mut made = Vec::new();
        for (number, &length) in lengths.iter().enumerate() {
            let data = vec![u8::try_from(number).unwrap(); length];
            made.push((forge.record(21, 0, &main_data(&data)), data));
        }
        let end = forge.position().0.next_multiple_of(8);
        let mut read_back = Vec::new();
        let reader = WalReader::first_after(format(PgMajor::V16), START);
        let stop = read(reader, &forge.bytes, piece, |record| {
            read_back.push((record.lsn(), record.main_data().to_vec()));
        });
        prop_assert_eq!(stop, Ok(None));
        prop_assert_eq!(&read_back, &made);
        // From any record on, and from between two.
        let from = skip % made.len();
        for (lsn, exactly) in [(made[from].0, true), (Lsn(made[from].0.0 - 1), false)] {
            let reader = if exactly {
                WalReader::at_record(format(PgMajor::V16), lsn)
            } else {
                WalReader::first_after(format(PgMajor::V16), lsn)
            };
            let offset = usize::try_from(reader.position().0 - START.0).unwrap();
            let mut read_back = Vec::new();
            let stop = read(reader, &forge.bytes[offset..], piece, |record| {
                read_back.push(record.lsn());
            });
            prop_assert_eq!(stop, Ok(None));
            prop_assert!(read_back.iter().eq(made[from..].iter().map(|(lsn, _)| lsn)));
        }
        // Zeros behind: the end, at the last record's end.
        forge.bytes.resize(forge.bytes.len().next_multiple_of(usize::try_from(SEGMENT).unwrap()), 0);
        let reader = WalReader::first_after(format(PgMajor::V16), START);
        let stop = read(reader, &forge.bytes, piece, |_| {});
        prop_assert_eq!(stop, Ok(Some(Lsn(end))));
    }

    #[test]
    fn any_content_of_a_record_is_survived(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
        wal_record(&bytes);
        wal_reader(&bytes);
    }
}

/// The first segments of the log of a real server that did a bit of everything.
struct Real {
    major: PgMajor,
    format: WalFormat,
    start: Lsn,
    log: Vec<u8>,
    /// Where records begin and end.
    records: Vec<(Lsn, Lsn)>,
}

impl Real {
    fn make(major: PgMajor) -> Self {
        let mut cluster = Cluster::builder(major)
            .wal_segment_mib(1)
            .setting("wal_level", "logical")
            .setting("wal_keep_size", "1GB")
            .setting("max_prepared_transactions", 5)
            .setting("wal_compression", "on")
            .start();
        cluster.psql("checkpoint; select pg_switch_wal()");
        let from: Lsn = cluster.psql("select pg_current_wal_lsn()").parse().unwrap();
        super::workload::run(&cluster);
        cluster.stop(StopMode::Fast);
        let dir = cluster.data_dir().join("pg_wal");
        let format = format_of(&dir);
        let start = from.start_of(SEGMENT);
        let mut log = Vec::new();
        for name in segments(&dir) {
            if name.start(format.segment_size()).unwrap() >= start {
                log.extend(std::fs::read(dir.join(name.to_string())).unwrap());
            }
        }
        let mut records = Vec::new();
        let reader = WalReader::first_after(format.clone(), start);
        let stop = read(reader, &log, usize::MAX, |record| {
            records.push((record.lsn(), record.end()));
        });
        stop.unwrap();
        Self {
            major,
            format,
            start,
            log,
            records,
        }
    }

    /// Whether a flipped bit here must be noticed: padding, and some fields of page headers, are
    /// covered by nothing, and the rest of a switched segment is not looked at.
    fn is_covered(&self, at: Lsn) -> bool {
        let (lsn, end) = match self.records.partition_point(|&(lsn, _)| lsn <= at) {
            0 => return false,
            number => self.records[number - 1],
        };
        let offset = usize::try_from(lsn.0 - self.start.0).unwrap();
        let total = u32::from_le_bytes(self.log[offset..offset + 4].try_into().unwrap());
        // Without what page headers add.
        at < end && at.0 % PAGE >= 40 && at.0 - lsn.0 < u64::from(total)
    }
}

/// Reads a few pages before the damage and some segments behind it.
fn damage_is_placed(real: &Real, place: usize, bit: u32, piece: usize) {
    let whole = usize::try_from(real.records.last().unwrap().1.0 - real.start.0).unwrap();
    let place = place % whole;
    let at = Lsn(real.start.0 + place as u64);
    // From a record on, so that there is one to link to.
    let before = real.records.partition_point(|&(lsn, _)| lsn < at);
    let from = before.saturating_sub(20);
    let reader = WalReader::at_record(real.format.clone(), real.records[from].0);
    let start = usize::try_from(reader.position().0 - real.start.0).unwrap();
    let end = real.log.len().min(place + 4_000_000);
    let mut log = real.log[start..end].to_vec();
    log[place - start] ^= 1 << bit;
    let mut sound = from;
    let stop = read(reader, &log, piece, |record| {
        assert_eq!((record.lsn(), record.end()), real.records[sound]);
        sound += 1;
        let _changes = record.changes(|_| {});
    });
    // What was cut away for speed is no damage.
    if stop == Ok(None) {
        assert!(!real.is_covered(at), "bit {bit} at {at} went unnoticed");
        return;
    }
    if sound == real.records.len() {
        assert!(!real.is_covered(at), "bit {bit} at {at} went unnoticed");
        return;
    }
    // Where it says the damage is: in the first record not returned, or in the header of a page
    // that it reaches.
    let (lsn, end) = real.records[sound];
    let told = match stop {
        Err(error) => error.lsn().expect("a position"),
        Ok(end) => end.expect("a walk that stops says where"),
    };
    // A record that says it is longer than it is may only be found out some pages on.
    assert!(
        told >= lsn && told <= end.max(Lsn(at.0 + PAGE)),
        "bit {bit} at {at}: told {told}, in {lsn} to {end}"
    );
    // The page header before the first record of a page belongs to neither.
    assert!(
        at >= lsn.start_of(PAGE) && at < end.max(Lsn(lsn.0 + 24)),
        "bit {bit} at {at}, in {lsn} to {end}"
    );
}

fn damage_is_found_and_survived(major: PgMajor) {
    let real = Real::make(major);
    let strategy = (
        any::<usize>(),
        0..8_u32,
        prop_oneof![Just(usize::MAX), 5000..90_000_usize],
    );
    proptest!(ProptestConfig::with_cases(64), |((place, bit, piece) in strategy)| {
        damage_is_placed(&real, place, bit, piece);
    });
    edited_records_are_survived(&real);
}

macro_rules! for_every_major {
    ($($name:ident: $major:ident),*) => {$(
        #[test]
        fn $name() {
            damage_is_found_and_survived(PgMajor::$major);
        }
    )*};
}

for_every_major!(
    a_flipped_bit_in_the_log_of_13_is_found_where_it_is_and_edited_records_are_survived: V13,
    a_flipped_bit_in_the_log_of_14_is_found_where_it_is_and_edited_records_are_survived: V14,
    a_flipped_bit_in_the_log_of_15_is_found_where_it_is_and_edited_records_are_survived: V15,
    a_flipped_bit_in_the_log_of_16_is_found_where_it_is_and_edited_records_are_survived: V16,
    a_flipped_bit_in_the_log_of_17_is_found_where_it_is_and_edited_records_are_survived: V17,
    a_flipped_bit_in_the_log_of_18_is_found_where_it_is_and_edited_records_are_survived: V18
);

fn edited_records_are_survived(real: &Real) {
    let major = PgMajor::ALL
        .iter()
        .position(|&one| one == real.major)
        .unwrap();
    let mut bodies = Vec::new();
    let reader = WalReader::first_after(real.format.clone(), real.start);
    read(reader, &real.log, usize::MAX, |record| {
        let header = record.header();
        let start = usize::try_from(record.lsn().0 - real.start.0).unwrap();
        let total = header.total_len as usize;
        if start as u64 % PAGE + total as u64 <= PAGE {
            let mut bytes = vec![u8::try_from(major).unwrap(), header.rmgr.0, header.info];
            bytes.extend_from_slice(&real.log[start + 24..start + total]);
            bodies.push(bytes);
        }
    })
    .unwrap();
    assert!(bodies.len() > 1000);
    proptest!(ProptestConfig::with_cases(2000), |(number: usize, edits in prop::collection::vec(any::<(u16, u8)>(), 0..4), len: u16)| {
        let mut bytes = bodies[number % bodies.len()].clone();
        for (place, value) in edits {
            let place = usize::from(place) % bytes.len();
            bytes[place] = value;
        }
        if len % 3 == 0 {
            bytes.truncate(usize::from(len) % bytes.len());
        }
        wal_record(&bytes);
    });
}
