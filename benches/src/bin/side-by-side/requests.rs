//! How many requests each thing takes where everything is in a bucket, of a server of this process: of ours and of pgbackrest, with
//! the log that its archive gets meanwhile. Their number is the result; the time is that of a server that keeps everything in
//! memory, over loopback, and of pgbackrest through TLS.

use std::path::Path;
use std::process::Command;

use neon_testkit::s3::{S3Server, S3ServerOptions};

use crate::changes::{Change, Place as Where};
use crate::contest::{BUCKET, Results, Sample};
use crate::measure::{Job, measured};
use crate::ours::{Home, ZSTD};
use crate::pgbackrest::Pgbackrest;
use crate::run::tell;
use crate::server::Server;
use crate::tool::{Place, Tool, port_of, quietly, remove};
use crate::verify;

const BUCKET_NAME: &str = "bucket";
const FIRST: &str = "first snapshot";
const NEXT: &str = "next snapshot, 0.1% of pages, random";

pub(crate) fn all(place: &Place, home: &Home, results: &mut Results, data: &str) {
    tell("requests: ours");
    let mut counts = Counts {
        place,
        results,
        data,
    };
    ours(&mut counts, home);
    if let Some(path) = place.peers.get("pgbackrest") {
        tell("requests: pgbackrest");
        pgbackrest(&mut counts, path);
    }
}

struct Counts<'a> {
    place: &'a Place,
    results: &'a mut Results,
    data: &'a str,
}

impl Counts<'_> {
    fn count(&mut self, server: &S3Server, stage: &str, who: &str, job: Job) {
        let before = server.requests();
        let (mut usage, _) = measured(job, &self.place.folder, None, false);
        usage.requests = Some(server.requests() - before);
        let sample = Sample { usage, added: None };
        let stage = format!("{BUCKET}{stage}");
        self.results.add(self.data, &stage, who, ZSTD, sample);
    }

    fn change(&self) {
        Change::new(0.001, Where::Random).apply(&self.place.source, self.place.data);
    }
}

fn ours(counts: &mut Counts<'_>, home: &Home) {
    let server = S3Server::start(S3ServerOptions::default());
    let with = |mut command: Command| {
        command
            .env("AWS_ACCESS_KEY_ID", &server.options().access_key)
            .env("AWS_SECRET_ACCESS_KEY", &server.options().secret_key);
        command
    };
    let command = |arguments: &[&str]| with(home.command(arguments));
    let endpoint = format!("endpoint={}", server.endpoint());
    let locator = format!("s3://{BUCKET_NAME}/counted");
    quietly(command(&[
        "storage",
        "attach",
        "-n",
        "counted",
        "-c",
        "compression=zstd:1",
        "-c",
        &endpoint,
        "-c",
        "region=us-east-1",
        "-c",
        "path-style=on",
        &locator,
    ]));
    let create =
        |snapshot: &str| Job::of([command(&["snapshot", "create", snapshot, "-s", "counted"])]);
    counts.count(&server, FIRST, ZSTD, create("source@counted1"));
    counts.change();
    counts.count(&server, NEXT, ZSTD, create("source@counted2"));
    let wanted = verify::content(&counts.place.source);
    let list = Job::of([command(&["snapshot", "list", "-s", "counted"])]);
    counts.count(&server, "list", ZSTD, list);
    let to = counts.place.owned("restored").join("counted");
    let export = [
        "snapshot",
        "export",
        "source@counted2",
        "-s",
        "counted",
        "--to",
        to.to_str().unwrap(),
        "--format",
        "pgdata",
    ];
    counts.count(&server, "restore", ZSTD, Job::of([command(&export)]));
    let restored = Server {
        port: port_of("counted"),
        socket: counts.place.owned("s"),
        log: counts.place.owned("logs").join("counted"),
        data: to.clone(),
        ..counts.place.source.clone()
    };
    verify::restored(&restored, &wanted, ZSTD);
    remove(&to);
    quietly(command(&["storage", "detach", "counted", "--yes"]));
}

/// The same steps of pgbackrest, with the archive that goes with them.
fn pgbackrest(counts: &mut Counts<'_>, path: &Path) {
    // It speaks nothing else.
    let server = S3Server::start(S3ServerOptions {
        tls: true,
        ..S3ServerOptions::default()
    });
    let place = counts.place;
    let mut tool = Pgbackrest::in_bucket(place, path, "zst", &server, BUCKET_NAME);
    let who = tool.name();
    tool.prepare();
    tool.before();
    // Ours makes its repository with the first snapshot, too.
    let mut first = tool.first();
    first.commands.insert(0, tool.make());
    counts.count(&server, FIRST, &who, first);
    tool.after();
    counts.change();
    tool.before();
    if let Some(next) = tool.next() {
        counts.count(&server, NEXT, &who, next);
    }
    tool.after();
    let wanted = verify::content(&place.source);
    if let Some(list) = tool.list() {
        counts.count(&server, "list", &who, list);
    }
    let restore = tool.restore();
    counts.count(&server, "restore", &who, restore);
    verify::restored(&tool.restored(), &wanted, &who);
    tool.discard();
}
