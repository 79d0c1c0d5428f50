//! Servers that shut down, held up on their way: whoever asks whether one runs waits for its end.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::interrupted::content;
use crate::support::{Begun, Home};

const WAITS: &str = "Waiting for the server of one, which is shutting down.";

/// A server of which one process stands still: a shutdown gets no further until it is let go.
struct HeldUp {
    checkpointer: Pid,
    server: Pid,
    pid_file: PathBuf,
}

impl HeldUp {
    fn hold(home: &Home) -> Self {
        let query = "select pid from pg_stat_activity where backend_type = 'checkpointer'";
        let checkpointer = home.sql("one", query).parse().unwrap();
        let pid_file = home.path().join("pg/one/data/postmaster.pid");
        let server = number(&pid_file);
        let checkpointer = Pid::from_raw(checkpointer).unwrap();
        kill_process(checkpointer, Signal::STOP).unwrap();
        Self {
            checkpointer,
            server,
            pid_file,
        }
    }

    /// Tells the server to stop, and returns when it has heard.
    fn shut_down(&self, signal: Signal) {
        tell_to_stop(self.server, signal, &self.pid_file);
    }

    fn let_go(&self) {
        kill_process(self.checkpointer, Signal::CONT).unwrap();
    }
}

impl Drop for HeldUp {
    fn drop(&mut self) {
        // It is gone already where all went well.
        let _gone = kill_process(self.checkpointer, Signal::CONT);
    }
}

/// Returns when a server has begun to shut down.
fn until_stopping(pid_file: &Path) {
    while !fs::read_to_string(pid_file).unwrap().contains("stopping") {
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Tells a server to stop, and returns when it has heard.
fn tell_to_stop(server: Pid, signal: Signal, pid_file: &Path) {
    kill_process(server, signal).unwrap();
    until_stopping(pid_file);
}

fn number(pid_file: &Path) -> Pid {
    let text = fs::read_to_string(pid_file).unwrap();
    Pid::from_raw(text.lines().next().unwrap().parse().unwrap()).unwrap()
}

/// A command that has said that it waits for the server.
struct Waiting {
    child: Begun,
    errors: BufReader<std::process::ChildStderr>,
}

impl Waiting {
    fn of(mut command: Command) -> Self {
        let mut child = Begun::of(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
        let mut errors = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        while !said.contains(WAITS) {
            let before = said.len();
            errors.read_line(&mut said).unwrap();
            assert!(said.len() > before, "it ended: {said}");
        }
        Self { child, errors }
    }

    /// What it came to.
    fn end(mut self) -> i32 {
        let mut rest = String::new();
        self.errors.read_to_string(&mut rest).unwrap();
        let code = self.child.wait().unwrap().code().unwrap();
        assert!(code == 0, "{code}: {rest}");
        code
    }
}

#[test]
fn a_server_that_shuts_down_is_waited_for() {
    let home = Home::new();
    home.ok(&["pg", "create", "one"]);
    home.ok(&["snapshot", "create", "one@a"]);

    // A stop that is killed while the server is at it.
    let held = HeldUp::hold(&home);
    let mut stop = Begun::of(&mut home.command(&["pg", "stop", "one"]));
    until_stopping(&held.pid_file);
    stop.kill().unwrap();
    stop.wait().unwrap();
    let start = Waiting::of(home.command(&["pg", "start", "one"]));
    held.let_go();
    start.end();
    assert_ne!(number(&held.pid_file), held.server);
    assert_eq!(home.sql("one", "select 1"), "1");
    content(&home, "started after a stop that was killed");

    // One that others told to stop: `pg start` on another port, snapshots and checkouts wait as well.
    let verbs: [&[&str]; 3] = [
        &["pg", "start", "one", "--port", "PORT"],
        &["snapshot", "create", "one@b"],
        &["pg", "checkout", "one@a", "--yes"],
    ];
    for verb in verbs {
        let port = home.json(&["pg", "show", "one"])["port"].to_string();
        let verb: Vec<&str> = verb
            .iter()
            .map(|word| if *word == "PORT" { &port } else { *word })
            .collect();
        let held = HeldUp::hold(&home);
        held.shut_down(Signal::INT);
        let waiting = Waiting::of(home.command(&verb));
        held.let_go();
        waiting.end();
        if !held.pid_file.exists() {
            home.ok(&["pg", "start", "one"]);
        }
        assert_ne!(number(&held.pid_file), held.server);
    }
    assert_eq!(
        home.json(&["snapshot", "show", "one@b"])["facts"]["kind"],
        "cold"
    );
    content(&home, "after all of them");
}

/// A shutdown that waits for clients ends with them.
#[test]
fn a_shutdown_that_waits_for_clients_is_waited_for_or_made_a_fast_one() {
    let home = Home::new().with("NEON_PATIENCE", "240");
    home.ok(&["pg", "create", "one"]);
    let pid_file = home.path().join("pg/one/data/postmaster.pid");
    let session = |home: &Home| {
        let mut psql = home.session("one");
        let mut child = Begun::of(psql.stdin(Stdio::piped()).stdout(Stdio::piped()));
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        assert_eq!(line, "there\n");
        child
    };
    let told = |server: Pid| tell_to_stop(server, Signal::TERM, &pid_file);

    let mut client = session(&home);
    let server = number(&pid_file);
    told(server);
    let start = Waiting::of(home.command(&["pg", "start", "one"]));
    drop(client.stdin.take());
    client.wait().unwrap();
    start.end();
    assert_ne!(number(&pid_file), server);

    // A restart ends sessions, and asks nobody.
    let mut client = session(&home);
    let server = number(&pid_file);
    told(server);
    home.ok(&["pg", "restart", "one"]);
    assert_ne!(number(&pid_file), server);
    drop(client.stdin.take());
    client.wait().unwrap();
    content(&home, "restarted");

    // So does a stop while another command waits and has the lock.
    let mut client = session(&home);
    told(number(&pid_file));
    let start = Waiting::of(home.command(&["pg", "start", "one"]));
    home.ok(&["pg", "stop", "one"]);
    start.end();
    assert!(!pid_file.exists());
    drop(client.stdin.take());
    client.wait().unwrap();

    // A snapshot does not wait for a catalog that somebody has locked.
    home.ok(&["pg", "start", "one"]);
    let mut client = session(&home);
    let mut input = client.stdin.take().unwrap();
    let lock = "begin; lock table pg_catalog.pg_extension in access exclusive mode;\n";
    input.write_all(lock.as_bytes()).unwrap();
    let held = "select count(*) from pg_locks where relation = 3079 and mode = 'AccessExclusiveLock' and granted";
    while home.sql("one", held) != "1" {
        std::thread::sleep(Duration::from_millis(50));
    }
    let said = home.run(&["snapshot", "create", "one@locked"]);
    assert_eq!(said.code, 0, "{said:#?}");
    assert!(
        said.err.contains("could not be asked for extensions"),
        "{said:#?}"
    );
    drop(input);
    client.wait().unwrap();
}
