//! An offer that is hit while a stock program takes it.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use neon_testkit::{Installation, PgMajor};
use rustix::process::{Pid, kill_process};

use super::{command, ended, nothing_left, place, quiet, random, signals, stage};
use crate::support::{Home, offering};

/// Offers `one@a`, and has it taken into a folder of this name.
fn offered(home: &Home, to: &str) -> (Child, Child) {
    let (offer, about) = offering(&mut command(home, "-o ndjson snapshot serve one@a"));
    let take = about["command"].as_str().unwrap();
    let take = take.replace("DIRECTORY", &place(home, to));
    let programs = Installation::of(PgMajor::V15).bin_dir();
    let taken = Command::new("sh")
        .args(["-c", &format!("exec {take}")])
        .env_clear()
        .env("PATH", format!("{}:/usr/bin:/bin", programs.display()))
        .env("PGPASSWORD", about["password"].as_str().unwrap())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    (offer, taken)
}

/// One that nobody disturbs.
fn whole(home: &Home, to: &str) {
    let (mut offer, mut taken) = offered(home, to);
    assert!(taken.wait().unwrap().success());
    assert!(offer.wait().unwrap().success());
}

#[test]
fn an_offer_that_is_hit_leaves_nothing() {
    let home = Home::new();
    stage(&home);
    let begun = Instant::now();
    whole(&home, "whole");
    let usual = u64::try_from(begun.elapsed().as_millis()).unwrap();
    for (round, signal) in signals().into_iter().enumerate() {
        let (mut offer, mut taken) = offered(&home, &format!("hit-{round}"));
        let after = Duration::from_millis(random(usual));
        std::thread::sleep(after);
        // It may have ended before.
        let _gone = kill_process(Pid::from_child(&offer), signal);
        let why = format!("{signal:?} after {after:?} of {usual} ms at an offer");
        ended(signal, offer.wait().unwrap(), &why);
        // Who took it is told or has it all; it does not wait for ever.
        taken.wait().unwrap();
        whole(&home, &format!("next-{round}"));
        nothing_left(&home, &why);
    }
    quiet(&home);
}
