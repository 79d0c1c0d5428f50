//! The command as a whole process: `neon --version` is to take at most 10 ms, `neon pg list` with 50 instances and 1000
//! snapshots at most 50 ms. The floor is `true`, run the same way.
//!
//! `NEON_BENCH_SNAPSHOTS` makes another number of snapshots, which takes most of the time.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a bench fails by panicking and prints its result"
)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use neon_pg::{CreatePg, CreateSnapshot, Neon, Options};
use neon_testkit::{Installation, PgMajor, Scratch};

const ROUNDS: usize = 21;
const INSTANCES: usize = 50;
/// So many of them run.
const RUNNING: usize = 5;

fn main() {
    let snapshots =
        std::env::var("NEON_BENCH_SNAPSHOTS").map_or(1000, |text| text.parse().unwrap());
    let neon = binary();
    let scratch = Scratch::new();
    let home = scratch.path().join("home");
    let bin_dir = Installation::of(PgMajor::V15).bin_dir().to_owned();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let mut options = Options::new();
    options.pg_bin = vec![bin_dir];
    options.ports = 23_000..=23_099;
    let library = Neon::open(&home, options).unwrap();
    runtime.block_on(fill(&library, snapshots));
    let run = |arguments: &[&str]| {
        let mut command = Command::new(&neon);
        command.env_clear().env("NEON_HOME", &home).args(arguments);
        command
    };
    let floor = median(|| Command::new("true"));
    println!(
        "{INSTANCES} instances, {RUNNING} of them running, {snapshots} snapshots; medians of {ROUNDS}"
    );
    println!("true           {floor:>9.1?}");
    println!("neon --version {:>9.1?}", median(|| run(&["--version"])));
    println!("neon pg list   {:>9.1?}", median(|| run(&["pg", "list"])));
    println!(
        "  as JSON      {:>9.1?}",
        median(|| run(&["-o", "json", "pg", "list"]))
    );
    println!(
        "neon snapshot list {:>5.1?}",
        median(|| run(&["snapshot", "list"]))
    );
    runtime.block_on(async {
        for record in library.pg().records().unwrap().iter().take(RUNNING) {
            library.pg().stop(&record.name).await.unwrap();
        }
    });
}

/// The command, built as this bench was.
fn binary() -> PathBuf {
    let built = Command::new(env!("CARGO"))
        .args(["build", "--release", "-p", "neon-pg-cli"])
        .status();
    assert!(built.unwrap().success());
    let bench = std::env::current_exe().unwrap();
    bench.parent().unwrap().parent().unwrap().join("neon")
}

/// One instance is made and snapshotted; the others are copies of it.
async fn fill(neon: &Neon, snapshots: usize) {
    let mut wanted = CreatePg::default();
    wanted.name = Some("pg00".parse().unwrap());
    wanted.no_start = true;
    let first = neon.pg().create(&wanted).await.unwrap().record;
    for number in 0..snapshots {
        let name = format!("pg00@s{number}").parse().unwrap();
        let snapshot = CreateSnapshot::new(name);
        neon.snapshots().create(&snapshot).await.unwrap();
    }
    let home = neon.home().path();
    let record = |name: &str| home.join("state/pg").join(format!("{name}.json"));
    let text = std::fs::read_to_string(record("pg00")).unwrap();
    for number in 1..INSTANCES {
        let name = format!("pg{number:02}");
        copy(&home.join("pg/pg00"), &home.join("pg").join(&name));
        let text = text
            .replace(&first.id, &format!("{number:016x}"))
            .replace("pg00", &name);
        std::fs::write(record(&name), text).unwrap();
    }
    for number in 0..RUNNING {
        let name = format!("pg{number:02}").parse().unwrap();
        neon.pg().start(&name).await.unwrap();
    }
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").args([from, to]).status();
    assert!(copied.unwrap().success());
}

fn median(command: impl Fn() -> Command) -> Duration {
    let mut times: Vec<Duration> = (0..=ROUNDS)
        .map(|_| {
            let mut command = command();
            command.stdin(Stdio::null()).stdout(Stdio::null());
            let begun = Instant::now();
            assert!(command.status().unwrap().success());
            begun.elapsed()
        })
        // The first fills the caches.
        .skip(1)
        .collect();
    times.sort();
    times[ROUNDS / 2]
}
