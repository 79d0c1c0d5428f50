//! Snapshots into `.neon` files and back, against the floor of what has to be done anyway, taking turns in
//! one run.
//!
//! `cargo bench -p neon-benches --bench snapshot_files [-- MEGABYTES ROUNDS]`; prints the medians and
//! their ratio (ours to the floor; 1 is perfect), for Zstandard level 1, LZ4 and no compression.
//!
//! Writing goes to a stream that forgets. Its floor: read every file, check every page, compress and
//! digest every 128 KiB, on as many threads. Unpacking is flushed file by file. Its floor: decompress the
//! same frames from memory, write and flush the same files, on as many threads.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    reason = "a bench stops at the first failure and prints what it measured"
)]

use std::fs::{self, File};
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use neon_pg_layout::{BlockSize, DataFile, page_checksums};
use neon_snapshot_format::pack::{
    Codec, FRAME_SIZE, NeonFile, NeonWriter, Opening, PackId, PackOptions, Step,
};
use neon_snapshot_format::pgdata::{DirectoryOptions, DirectoryWriter, PgData};
use neon_snapshot_format::{Entry, Source};
use neon_testkit::{Cluster, PgMajor, Scratch, StopMode};

const THREADS: usize = 2;
const CODECS: [(&str, Codec); 3] = [
    ("zstd-1", Codec::Zstd(1)),
    ("lz4", Codec::Lz4),
    ("none", Codec::None),
];

/// Half of it accounts as pgbench makes them, half rows that do not compress well.
fn cluster(megabytes: u64) -> Cluster {
    let mut cluster = Cluster::builder(PgMajor::V16)
        .checksums(true)
        .setting("max_wal_size", "8GB")
        .start();
    let scale = (megabytes / 32).max(1).to_string();
    cluster.run_tool("pgbench", ["-i", "-q", "-s", &scale, "postgres"]);
    let rows = megabytes * 1024 / 2 * 5;
    cluster.psql(&format!(
        "create table mixed as select i, md5(i::text) || md5((i * 7)::text) as a, random() as b
         from generate_series(1, {rows}) as i; checkpoint"
    ));
    cluster.stop(StopMode::Fast);
    cluster
}

/// The files of a snapshot, and whether they have pages.
fn files(data: &Path, neon: &NeonFile<File>) -> Vec<(PathBuf, u64, bool)> {
    entries(neon)
        .into_iter()
        .map(|entry| {
            let path = entry.path.as_str().unwrap();
            let file = DataFile::of(path, PgMajor::V16.layout());
            let pages = matches!(file, DataFile::Relation(_));
            (data.join(path), entry.size(), pages)
        })
        .collect()
}

fn entries(neon: &NeonFile<File>) -> Vec<Entry> {
    (0..neon.entry_pages())
        .flat_map(|page| neon.entries(page).unwrap())
        .filter(Entry::is_file)
        .collect()
}

/// Runs over numbers below `count` with all threads.
fn over(count: usize, each: impl Fn(&mut dyn Iterator<Item = usize>) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let take = || Some(next.fetch_add(1, Ordering::Relaxed)).filter(|n| *n < count);
                each(&mut std::iter::from_fn(take));
            });
        }
    });
}

/// Read, check, compress, digest.
fn write_floor(files: &[(PathBuf, u64, bool)], codec: Codec) {
    let pieces: Vec<(usize, u64)> = (0..)
        .zip(files)
        .flat_map(|(file, (_, size, _))| {
            (0..size.div_ceil(FRAME_SIZE as u64)).map(move |n| (file, n * FRAME_SIZE as u64))
        })
        .collect();
    let runs: Vec<&[(usize, u64)]> = pieces.chunks(64).collect();
    over(runs.len(), |take| {
        let mut plain = vec![0; FRAME_SIZE];
        let mut packed = vec![0; 2 * FRAME_SIZE];
        let mut zstd = zstd::bulk::Compressor::new(1).unwrap();
        let mut open: Option<(usize, File)> = None;
        for (file, offset) in take.flat_map(|run| runs[run]) {
            let (path, size, pages) = &files[*file];
            if open.as_ref().is_none_or(|(known, _)| known != file) {
                open = Some((*file, File::open(path).unwrap()));
            }
            let length = (*size - offset).min(FRAME_SIZE as u64) as usize;
            let plain = &mut plain[..length];
            open.as_ref()
                .unwrap()
                .1
                .read_exact_at(plain, *offset)
                .unwrap();
            if *pages {
                let first = (*offset / 8192) as u32;
                for sum in page_checksums(plain, BlockSize::DEFAULT, first) {
                    black_box(sum);
                }
            }
            let stored = match codec {
                Codec::Zstd(_) => {
                    let length = zstd.compress_to_buffer(plain, &mut packed).unwrap();
                    &packed[..length]
                }
                Codec::Lz4 => {
                    let length = lz4_flex::block::compress_into(plain, &mut packed).unwrap();
                    &packed[..length]
                }
                _ => plain,
            };
            black_box(blake3::hash(stored));
        }
    });
}

fn write(data: &Path, codec: Codec, into: impl std::io::Write + Send) {
    let options = PackOptions {
        codec,
        ..PackOptions::new(PackId(*b"a pack of benche"))
    };
    let mut writer = NeonWriter::new(into, options).unwrap().threads(THREADS);
    PgData::cold(data).unwrap().send(&mut writer).unwrap();
    writer.into_inner().unwrap();
}

/// A file of a snapshot, and its frames: where they are in the pack, and plain lengths.
struct Laid {
    path: String,
    frames: Vec<(u64, u32)>,
}

/// What is compressed how, to be written.
struct Unpacked {
    pack: Vec<u8>,
    frames: Vec<(std::ops::Range<usize>, u8, usize)>,
}

/// The frames of a pack in memory.
fn frames(pack: Vec<u8>) -> Unpacked {
    let mut opening = Opening::new(pack.len() as u64).unwrap();
    let at = |range: std::ops::Range<u64>| range.start as usize..range.end as usize;
    let index = loop {
        if let Step::Done(index) = opening.feed(&pack[at(opening.range())]).unwrap() {
            break index;
        }
    };
    let mut frames = Vec::new();
    for number in 0..index.frame_count() {
        let which = index.table_of(number).unwrap();
        let table = index.table(&which, &pack[at(which.range.clone())]);
        let record = *table.unwrap().frame(number).unwrap();
        frames.push((
            at(record.range()),
            record.codec(),
            record.plain_length() as usize,
        ));
    }
    Unpacked { pack, frames }
}

/// Decompress, write, flush: as many files of the same sizes, filled with the frames in their order.
fn restore_floor(from: &Unpacked, sizes: &[u64], into: &Path) {
    let cut = cut(from, sizes);
    over(cut.len(), |take| {
        let mut plain = vec![0; FRAME_SIZE];
        let mut zstd = zstd::bulk::Decompressor::new().unwrap();
        for laid in take.map(|number| &cut[number]) {
            let file = File::create(into.join(&laid.path)).unwrap();
            let mut offset = 0;
            for (frame, length) in &laid.frames {
                let (range, codec, full) = &from.frames[*frame as usize];
                let stored = &from.pack[range.clone()];
                let plain = &mut plain[..*full];
                match codec {
                    0 => plain.copy_from_slice(stored),
                    1 => assert_eq!(
                        lz4_flex::block::decompress_into(stored, plain).unwrap(),
                        *full
                    ),
                    2 => assert_eq!(zstd.decompress_to_buffer(stored, plain).unwrap(), *full),
                    _ => {}
                }
                if *codec != 3 {
                    file.write_all_at(&plain[..*length as usize], offset)
                        .unwrap();
                }
                offset += u64::from(*length);
            }
            file.set_len(offset).unwrap();
            file.sync_all().unwrap();
        }
    });
    File::open(into).unwrap().sync_all().unwrap();
}

/// Files of these sizes out of the frames of a pack, large ones in pieces of 32 MiB that are files too.
fn cut(from: &Unpacked, sizes: &[u64]) -> Vec<Laid> {
    let mut frame = 0;
    let mut used = 0;
    let mut all = Vec::new();
    for size in sizes {
        let mut left = *size;
        loop {
            let mut frames = Vec::new();
            let mut here = left.min(32 << 20);
            left -= here;
            while here > 0 && frame < from.frames.len() {
                let length = (from.frames[frame].2 as u64 - used).min(here);
                frames.push((frame as u64, length as u32));
                here -= length;
                used += length;
                if used == from.frames[frame].2 as u64 {
                    (frame, used) = (frame + 1, 0);
                }
            }
            let path = all.len().to_string();
            all.push(Laid { path, frames });
            if left == 0 {
                break;
            }
        }
    }
    all
}

fn restore(neon: &Path, into: &Path, threads: usize) {
    let writer = DirectoryWriter::create(into, DirectoryOptions::default()).unwrap();
    let mut file = NeonFile::open(File::open(neon).unwrap(), None).unwrap();
    match threads {
        0 => {
            let mut sink = neon_snapshot_format::Sequential::new(&writer).unwrap();
            file.send(&mut sink).unwrap();
        }
        threads => file.send_parallel(&writer, threads).unwrap(),
    }
}

/// Processor time of this process so far, in seconds.
fn processor_time() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .collect();
    let ticks: u32 = fields[11..13]
        .iter()
        .map(|field| field.parse::<u32>().unwrap())
        .sum();
    f64::from(ticks) / 100.0
}

/// What something took: time by the wall, and by the processors. On a machine that others use too the
/// second says more about the work, the first about how it is spread.
#[derive(Clone, Copy)]
struct Took {
    wall: f64,
    processor: f64,
}

impl Took {
    fn over(self, floor: Self) -> String {
        format!(
            "{:.3} s ({:.2} of the floor), processors {:.2} s ({:.2})",
            self.wall,
            self.wall / floor.wall,
            self.processor,
            self.processor / floor.processor
        )
    }
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Medians of several things that take turns; the first round warms the caches.
fn take_turns<const N: usize>(
    rounds: usize,
    prepare: &dyn Fn(),
    turns: [&dyn Fn(); N],
) -> [Took; N] {
    let mut times = [const { Vec::new() }; N];
    for round in 0..=rounds {
        for step in 0..N {
            let turn = (step + round) % N;
            prepare();
            let (begun, before) = (Instant::now(), processor_time());
            turns[turn]();
            if round > 0 {
                times[turn].push((begun.elapsed().as_secs_f64(), processor_time() - before));
            }
        }
    }
    times.map(|times: Vec<(f64, f64)>| Took {
        wall: median(times.iter().map(|(wall, _)| *wall).collect()),
        processor: median(times.iter().map(|(_, processor)| *processor).collect()),
    })
}

fn main() {
    let numbers: Vec<u64> = std::env::args()
        .filter_map(|argument| argument.parse().ok())
        .collect();
    let megabytes = numbers.first().copied().unwrap_or(512);
    let rounds = numbers.get(1).map_or(5, |rounds| *rounds as usize);
    let cluster = cluster(megabytes);
    let scratch = Scratch::new();
    let data = cluster.data_dir();
    let neon = scratch.path().join("snapshot.neon");
    write(&data, Codec::None, File::create(&neon).unwrap());
    let all = files(
        &data,
        &NeonFile::open(File::open(&neon).unwrap(), None).unwrap(),
    );
    let total = all.iter().map(|(_, size, _)| size).sum::<u64>() >> 20;
    println!(
        "{total} MiB in {} files, {THREADS} threads, {rounds} rounds, medians in seconds",
        all.len()
    );
    for (name, codec) in CODECS {
        let [floor, ours] = take_turns(
            rounds,
            &|| {},
            [&|| write_floor(&all, codec), &|| {
                write(&data, codec, std::io::sink());
            }],
        );
        println!(
            "write {name}: floor {:.3} s, {:.2} s",
            floor.wall, floor.processor
        );
        println!("    {}", ours.over(floor));
    }
    for (name, codec) in CODECS {
        write(&data, codec, File::create(&neon).unwrap());
        let file = NeonFile::open(File::open(&neon).unwrap(), None).unwrap();
        let sizes: Vec<u64> = entries(&file).iter().map(Entry::size).collect();
        let pack = frames(fs::read(&neon).unwrap());
        let stored = pack.pack.len() >> 20;
        let target = scratch.path().join("target");
        let [floor, single, ours] = take_turns(
            rounds,
            &|| drop(fs::remove_dir_all(&target)),
            [
                &|| {
                    fs::create_dir(&target).unwrap();
                    restore_floor(&pack, &sizes, &target);
                },
                &|| restore(&neon, &target, 0),
                &|| restore(&neon, &target, THREADS),
            ],
        );
        println!(
            "unpack {name} ({stored} MiB): floor {:.3} s, {:.2} s",
            floor.wall, floor.processor
        );
        println!("    {THREADS} threads: {}", ours.over(floor));
        println!("    one: {}", single.over(floor));
    }
}
