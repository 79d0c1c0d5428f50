//! A base backup to plain files, with WAL streamed and everything durable, against the stock
//! `pg_basebackup`, taking turns in one run: over a Unix socket, and over TCP with TLS.
//!
//! `cargo bench -p neon-benches --bench base_backup [-- MEGABYTES ROUNDS]`; prints the medians and
//! their ratio (ours to stock; below 1 is faster).
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a bench stops at the first failure and prints what it measured"
)]

#[allow(dead_code, unreachable_pub, reason = "shared with the examples")]
#[path = "../../examples/src/fetch.rs"]
mod fetch;
#[allow(dead_code, unreachable_pub, reason = "shared with the examples")]
#[path = "../../examples/src/unpack.rs"]
mod unpack;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use fetch::{Plan, Wal, fetch};
use neon_pgwire::{BaseBackupOptions, Checkpoint, Config, Params, Surroundings};
use neon_testkit::{Cluster, OsUser, PgMajor, Scratch};

fn cluster(scratch: &Path, megabytes: u64) -> Cluster {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let (cert_file, key_file) = (scratch.join("server.crt"), scratch.join("server.key"));
    fs::write(&cert_file, params.self_signed(&key).unwrap().pem()).unwrap();
    fs::write(&key_file, key.serialize_pem()).unwrap();
    fs::set_permissions(&key_file, fs::Permissions::from_mode(0o600)).unwrap();
    OsUser::current().own(&key_file);
    let cluster = Cluster::builder(PgMajor::V15)
        .tcp()
        .setting("ssl", "on")
        .setting("ssl_cert_file", cert_file.display())
        .setting("ssl_key_file", key_file.display())
        .setting("max_wal_size", "8GB")
        .start();
    // Rows that do not compress, in several files.
    for table in 0..8 {
        let rows = megabytes * 1024 / 8 * 6;
        cluster.psql(&format!(
            "create table t{table} as select i, repeat(md5(i::text), 4) as text from generate_series(1, {rows}) as i"
        ));
    }
    cluster.psql("checkpoint");
    cluster
}

fn stock(cluster: &Cluster, conninfo: &str, into: &Path) -> Duration {
    let path = cluster.installation().tool("pg_basebackup").unwrap();
    let begun = Instant::now();
    let status = Command::new(path)
        .args(["-c", "fast", "-X", "stream", "-d", conninfo, "-D"])
        .arg(into)
        .status()
        .unwrap();
    assert!(status.success());
    begun.elapsed()
}

fn ours(runtime: &tokio::runtime::Runtime, conninfo: &str, into: &Path) -> Duration {
    let mut options = BaseBackupOptions::default();
    options.checkpoint = Checkpoint::Fast;
    options.wait = false;
    options.progress = true;
    let plan = Plan {
        target: into.to_owned(),
        options,
        wal: Wal::Stream(None),
        mappings: Vec::new(),
        wal_directory: None,
        sync: true,
        earlier_manifest: None,
    };
    let begun = Instant::now();
    let params: Params = conninfo.parse().unwrap();
    let config = Config::resolve(&params, &Surroundings::none()).unwrap();
    runtime.block_on(fetch(&config, plan)).unwrap();
    begun.elapsed()
}

/// The median, and how it is shown: with the least and the most.
fn spread(mut times: Vec<Duration>) -> (f64, String) {
    times.sort();
    let [least, median, most] =
        [0, times.len() / 2, times.len() - 1].map(|index| times[index].as_secs_f64());
    (median, format!("{median:.2} ({least:.2} to {most:.2})"))
}

fn main() {
    let numbers: Vec<u64> = std::env::args()
        .filter_map(|argument| argument.parse().ok())
        .collect();
    let megabytes = numbers.first().copied().unwrap_or(256);
    let rounds = numbers.get(1).copied().unwrap_or(5);
    let scratch = Scratch::new();
    let cluster = cluster(scratch.path(), megabytes);
    let size = cluster.psql("select (sum(pg_database_size(oid)) / 1048576)::int from pg_database");
    println!("cluster of {size} MiB, {rounds} rounds, medians in seconds (least to most)");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let tls = format!("{} sslmode=require", cluster.tcp_conninfo());
    for (name, conninfo) in [("unix socket", cluster.conninfo()), ("tcp with tls", tls)] {
        let (mut stock_times, mut our_times) = (Vec::new(), Vec::new());
        for round in 0..=rounds {
            let into = scratch.path().join("backup");
            // Who begins changes, so that neither always finds the other's writes still going out.
            for turn in 0..2 {
                if (round + turn) % 2 == 0 {
                    let time = stock(&cluster, &conninfo, &into);
                    // The first round warms the caches.
                    if round > 0 {
                        stock_times.push(time);
                    }
                } else {
                    let time = ours(&runtime, &conninfo, &into);
                    if round > 0 {
                        our_times.push(time);
                    }
                }
                fs::remove_dir_all(&into).unwrap();
            }
        }
        let ((stock, stock_shown), (ours, ours_shown)) = (spread(stock_times), spread(our_times));
        println!(
            "{name}: stock {stock_shown}, ours {ours_shown}, ratio {:.2}",
            ours / stock
        );
    }
}
