//! From the start of a server to the answer of its first query, against `pg_ctl -w start`.
//!
//! Both start the same data directory in turns, and both ask with the same code; what differs is who starts
//! it and how they learn that it is ready. Prints medians and their ratio, which is to be at most 1.1.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a bench fails by panicking and prints its result"
)]

use std::process::Stdio;
use std::time::{Duration, Instant};

use neon_pgctl::{CreateOptions, Installation, Instance, PgMajor, StartOptions, StopOptions};
use neon_testkit::Scratch;

const ROUNDS: usize = 15;

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        println!("start to first query, {ROUNDS} rounds in turns, medians");
        println!("major     ours   pg_ctl -w   ratio");
        for major in PgMajor::ALL {
            let scratch = Scratch::new();
            let bin_dir = neon_testkit::Installation::of(major).bin_dir();
            let installation = Installation::at(bin_dir).unwrap();
            let options = CreateOptions::new();
            let dir = scratch.path().join("pg");
            let instance = Instance::create(&installation, dir, &options)
                .await
                .unwrap();
            let (mut ours, mut theirs) = (Vec::new(), Vec::new());
            for round in 0..=ROUNDS {
                let mine = time(&instance, async || {
                    instance.start(&StartOptions::new()).await.unwrap();
                });
                let mine = mine.await;
                let other = time(&instance, async || pg_ctl_start(&instance)).await;
                // The first round chooses the port and warms the cache.
                if round > 0 {
                    ours.push(mine);
                    theirs.push(other);
                }
            }
            let (ours, theirs) = (median(ours), median(theirs));
            let ratio = ours.as_secs_f64() / theirs.as_secs_f64();
            println!("{major}   {ours:>9.1?}   {theirs:>9.1?}   {ratio:.2}");
        }
    });
}

/// Starts, asks, and takes the time until the answer; then stops.
async fn time(instance: &Instance, start: impl AsyncFnOnce()) -> Duration {
    let begin = Instant::now();
    start().await;
    let mut client = instance.connect("postgres").await.unwrap();
    let results = client.simple_query("SELECT 1").await.unwrap();
    let taken = begin.elapsed();
    assert_eq!(results[0].value(0, 0), Some("1"));
    drop(client);
    instance.stop(&StopOptions::default()).await.unwrap();
    taken
}

fn pg_ctl_start(instance: &Instance) {
    let mut command = instance
        .installation()
        .command("pg_ctl", instance.os_user())
        .unwrap();
    command.args(["-w", "start", "-D"]).arg(instance.data_dir());
    command.arg("-l").arg(instance.log_dir().join("pg_ctl.log"));
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    assert!(status.unwrap().success());
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
