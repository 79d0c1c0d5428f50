//! From a snapshot to the first query on another instance, on each rung: copies on the file system of the run, reflinks on XFS
//! and subvolumes on btrfs, each on a loop device. A page overlay does not exist yet.

use std::path::{Path, PathBuf};
use std::process::Command;

use neon_testkit::{OsUser, PgMajor};

use crate::contest::{CLONE, Results, Sample};
use crate::measure::{Job, measured};
use crate::ours::{Home, Ours, ZSTD};
use crate::pgbackrest::Pgbackrest;
use crate::repository::Kept;
use crate::run::{order, tell};
use crate::server::Server;
use crate::tool::{Place, Tool, quietly, remove, shell};
use crate::verify;

const QUERY: &str = "select count(*) from pg_class";

pub(crate) fn all(place: &Place, home: &Home, results: &mut Results, data: &str) {
    tell("clones: what they are made of");
    let wanted = verify::content(&place.source);
    let mut ours = Ours::new(place, "source", PgMajor::V15, ZSTD, "clone");
    ours.prepare();
    measured(ours.first(), &place.folder, None, false);
    let mut pgbackrest = place
        .peers
        .get("pgbackrest")
        .map(|path| Pgbackrest::new(place, path, "zst"));
    if let Some(tool) = &mut pgbackrest {
        tool.prepare();
        tool.before();
        measured(tool.first(), &place.folder, None, false);
        tool.after();
    }
    home.run(&["pg", "stop", "source"]);
    let mut rung = Rung {
        place,
        results,
        data,
        wanted: &wanted,
        snapshot: ours.snapshot(),
        folder: place.owned("clones"),
        home: home.clone(),
        stage: CLONE.to_owned(),
    };
    for round in 0..place.options.rounds() {
        rung.copies(round, pgbackrest.as_mut());
    }
    for kind in ["xfs", "btrfs"] {
        tell(&format!("clones on {kind}"));
        let mount = mount(place, kind);
        let home = Home::new(&place.peers.neon, mount.join("home"), "31100-31199");
        home.attach("shared", &ours.repository(), "zstd:1");
        rung.home = home;
        rung.folder = mount.join("peers");
        OsUser::current().create_dir(&rung.folder);
        rung.stage = format!("{CLONE}, {kind}");
        rung.shared();
        unmount(&mount);
    }
    drop(rung);
    home.run(&["pg", "start", "source"]);
    ours.prepare();
}

/// A file system to clone on.
struct Rung<'a> {
    place: &'a Place,
    results: &'a mut Results,
    data: &'a str,
    wanted: &'a str,
    snapshot: String,
    /// Where peers put their clones.
    folder: PathBuf,
    home: Home,
    stage: String,
}

impl Rung<'_> {
    /// Everybody writes the whole cluster.
    fn copies(&mut self, round: usize, mut pgbackrest: Option<&mut Pgbackrest<'_>>) {
        tell(&format!("clones by copy, round {}", round + 1));
        for number in order(3, round) {
            match number {
                0 => self.of_ours("copy", ZSTD, ZSTD, &[]),
                1 => {
                    let source = self.place.source.data.clone();
                    self.of_copy("cp -a, start", ZSTD, &source, "cp -a \"$1\" \"$2\"");
                }
                _ => {
                    if let Some(tool) = pgbackrest.as_mut() {
                        let mut job = tool.restore();
                        let server = tool.restored();
                        job.commands.extend(start_and_ask(&server));
                        self.peer("pgbackrest zst:1, restore, start", ZSTD, job, &server);
                        tool.discard();
                    }
                }
            }
        }
    }

    /// The first makes what all others share; from then on both sides share blocks.
    fn shared(&mut self) {
        let (first, again) = (
            format!("{ZSTD} --cow, the first"),
            format!("{ZSTD} --cow, again"),
        );
        self.of_ours("first", &first, &first, &["--cow"]);
        let original = self.folder.join("original");
        quietly(shell(
            "cp -a \"$1\" \"$2\"",
            &[&self.place.source.data, &original],
        ));
        for round in 0..self.place.options.rounds() {
            for number in order(2, round) {
                if number == 0 {
                    self.of_ours("again", &again, &again, &["--cow"]);
                } else {
                    let line = "cp -a --reflink=always \"$1\" \"$2\"";
                    self.of_copy("cp -a --reflink, start", &again, &original, line);
                }
            }
        }
    }

    fn of_ours(&mut self, name: &str, who: &str, of: &str, more: &[&str]) {
        let mut create = vec!["pg", "create", name, "--snapshot", &self.snapshot];
        create.extend(more);
        let ask = ["pg", "psql", name, "--", "-XAtqc", QUERY];
        let job = Job::of([self.home.command(&create), self.home.command(&ask)]);
        let (usage, _) = measured(job, &self.folder, None, self.place.options.cold);
        let server = self.home.server(name, PgMajor::V15);
        assert_eq!(
            verify::content(&server),
            self.wanted,
            "{who} cloned something else"
        );
        self.home.destroy(name);
        let sample = Sample { usage, added: None };
        self.results.add(self.data, &self.stage, who, of, sample);
    }

    fn of_copy(&mut self, who: &str, of: &str, from: &Path, line: &str) {
        let to = self.folder.join("clone");
        let server = self.place.server_on(&to);
        let mut job = Job::of([shell(line, &[from, &to])]);
        job.commands.extend(start_and_ask(&server));
        self.peer(who, of, job, &server);
        remove(&to);
    }

    fn peer(&mut self, who: &str, of: &str, job: Job, server: &Server) {
        std::fs::create_dir_all(&server.log).unwrap();
        OsUser::current().own(&server.log);
        let (usage, _) = measured(job, &self.folder, None, self.place.options.cold);
        assert_eq!(
            verify::content(server),
            self.wanted,
            "{who} cloned something else"
        );
        quietly(server.stop("immediate"));
        let sample = Sample { usage, added: None };
        self.results.add(self.data, &self.stage, who, of, sample);
    }
}

fn start_and_ask(server: &Server) -> [Command; 2] {
    let mut ask = server.client("psql");
    ask.args(["-XAtqc", QUERY]);
    [server.start(), ask]
}

/// A file system on a sparse file: room for a tree, a copy, and what clones write.
fn mount(place: &Place, kind: &str) -> PathBuf {
    let (image, mount) = (
        place.folder.join(format!("{kind}.img")),
        place.folder.join(kind),
    );
    let size = Kept::of(&place.source.data).bytes * 4 + (2 << 30);
    std::fs::File::create(&image)
        .unwrap()
        .set_len(size)
        .unwrap();
    std::fs::create_dir(&mount).unwrap();
    let mut make = Command::new(format!("mkfs.{kind}"));
    quietly({
        make.arg("-fq").arg(&image);
        make
    });
    let mut attach = Command::new("mount");
    attach
        .args(["-t", kind, "-o", "loop"])
        .arg(&image)
        .arg(&mount);
    quietly(attach);
    std::fs::remove_file(&image).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&mount, mode).unwrap();
    mount
}

fn unmount(mount: &Path) {
    let mut command = Command::new("umount");
    command.arg(mount);
    quietly(command);
}
