//! The run: the source, its contenders, and stage after stage in turns.

use std::path::Path;
use std::sync::OnceLock;
use std::time::Instant;

use neon_testkit::{OsUser, PgMajor};

use crate::changes::{Change, Place as Where};
use crate::contest::{self, Results, Sample};
use crate::copies::Copies;
use crate::data::Data;
use crate::machine::{Machine, load};
use crate::measure::{Job, Usage, measured};
use crate::options::{Options, Stage};
use crate::ours::{Home, LZ4, Ours, ZSTD};
use crate::peers::Peers;
use crate::pg_basebackup::{BaseBackup, Form};
use crate::pgbackrest::{Pgbackrest, archive_script};
use crate::repository::Kept;
use crate::restic::Restic;
use crate::server::Server;
use crate::tool::{Place, Tool};
use crate::{clones, floors, goals, json, requests, rollback, svg, table, verify};

/// How many next snapshots the goals on growth speak of.
const SERIES: usize = 10;

/// Left to the log, to repositories, and to others on the machine.
const SPARE: u64 = 2 << 30;

/// Runs everything that is asked for, and prints it.
pub(crate) fn run(options: &Options, folder: &Path) {
    let machine = Machine::look(folder);
    let mut results = Results::default();
    let mut loads = vec![load()];
    let mut versions = None;
    for (number, data) in options.data().into_iter().enumerate() {
        let folder = folder.join(number.to_string());
        std::fs::create_dir(&folder).unwrap();
        let peers = Peers::find(options);
        versions.get_or_insert_with(|| peers.versions.clone());
        one(options, &folder, peers, data, &mut results, &mut loads);
        std::fs::remove_dir_all(&folder).unwrap();
    }
    let versions = versions.unwrap_or_default();
    let goals = goals::judge(&results);
    let load = loads.iter().copied().fold(0.0, f64::max);
    print!(
        "{}",
        table::machine(&machine, load, options.cold, &versions)
    );
    print!("{}", table::results(&results));
    print!("{}", table::goals(&goals));
    if let Some(path) = &options.json {
        let document = json::document(&machine, &loads, options.cold, &versions, &results, &goals);
        std::fs::write(path, format!("{document:#}\n")).unwrap();
    }
    if let Some(path) = &options.svg {
        std::fs::write(path, svg::chart(&results)).unwrap();
    }
}

/// What is done, for who waits.
pub(crate) fn tell(what: &str) {
    static BEGAN: OnceLock<Instant> = OnceLock::new();
    let seconds = BEGAN.get_or_init(Instant::now).elapsed().as_secs();
    eprintln!("side-by-side: {seconds:>4} s, load {:.1}: {what}", load());
}

fn one(
    options: &Options,
    folder: &Path,
    peers: Peers,
    data: Data,
    results: &mut Results,
    loads: &mut Vec<f64>,
) {
    let home = Home::new(&peers.neon, folder.join("home"), "31000-31099");
    tell(&format!("loading {}", data.name()));
    let script = archive_script(folder, peers.get("pgbackrest"));
    let source = source(&home, "source", PgMajor::V15, data, Some(&script));
    let place = Place {
        options: options.clone(),
        folder: folder.to_owned(),
        peers,
        data,
        source,
    };
    let mut round = Rounds {
        place: &place,
        home: &home,
        results,
        data: data.name(),
    };
    let mut tools = tools(&place);
    // Those that have a notion of what changed; of two codecs one is enough for a quick look.
    let goes_on =
        |tool: &dyn Tool| tool.list().is_some() && (options.full || tool.peer_of() == ZSTD);
    if !options.wants(Stage::First) {
        // Nobody waits for what nobody compares.
        tools.retain(|tool| goes_on(&**tool));
    }
    let any = [Stage::First, Stage::Restore, Stage::Next, Stage::List];
    if any.into_iter().any(|stage| options.wants(stage)) {
        round.first(&mut tools, &goes_on);
        loads.push(load());
    }
    if options.wants(Stage::First) || options.wants(Stage::Restore) {
        tell("floors");
        floors::all(&place, round.results, &round.data);
    }
    tools.retain(|tool| goes_on(&**tool));
    if options.wants(Stage::Next) {
        let steps = steps(options);
        assert!(!steps.is_empty(), "--change: there is no such change");
        let last = steps.len() - 1;
        for (number, (change, rounds)) in steps.into_iter().enumerate() {
            // A quick run looks at what the series of ten and the last step of all give back, which have the others below them.
            let look = options.full || rounds == SERIES || number == last;
            round.next(&mut tools, change, rounds, look);
        }
        loads.push(load());
    }
    if options.wants(Stage::List) {
        round.list(&tools);
    }
    for tool in &mut tools {
        tool.prepare();
    }
    drop(tools);
    // The other source, a backup with what followed, the result of both, and a restore of ours.
    if options.wants(Stage::Incremental) && round.room("backups of 18", 4) {
        round.incremental();
        loads.push(load());
    }
    // A peer's cluster at a time, and what it takes its own from.
    if options.wants(Stage::Rollback) && round.room("rollbacks", 2) {
        rollback::all(&place, &home, round.results, &round.data);
        loads.push(load());
    }
    // A tree, a copy beside it, and what is written into their clones.
    if options.wants(Stage::Clone) && round.room("clones", 3) {
        clones::all(&place, &home, round.results, &round.data);
        loads.push(load());
    }
    if options.wants(Stage::Requests) {
        requests::all(&place, &home, round.results, &round.data);
        loads.push(load());
    }
    home.destroy("source");
}

/// Which changes, and how often each.
fn steps(options: &Options) -> Vec<(Change, usize)> {
    let again = if options.full { options.rounds() } else { 1 };
    let all = [
        (Change::new(0.0, Where::Random), again),
        (Change::new(0.001, Where::Random), SERIES),
        (Change::new(0.001, Where::Local), again),
        (Change::new(0.01, Where::Random), again),
        (Change::new(0.01, Where::Local), again),
        (Change::new(0.1, Where::Random), again),
        (Change::new(0.1, Where::Local), again),
    ];
    let asked = all.into_iter();
    asked
        .filter(|(change, _)| options.changes(change.share))
        .collect()
}

/// An instance of ours with the data in it, quiet: what everybody reads.
fn source(home: &Home, name: &str, major: PgMajor, data: Data, archive: Option<&Path>) -> Server {
    home.run(&["pg", "create", name, "--pg-version", &major.to_string()]);
    let server = home.server(name, major);
    let mut settings = vec![
        ("autovacuum", "off".to_owned()),
        ("checkpoint_timeout", "1d".to_owned()),
        ("log_checkpoints", "on".to_owned()),
        ("max_locks_per_transaction", "256".to_owned()),
        // Of a large load the log would take as much as the data otherwise.
        ("max_wal_size", "4GB".to_owned()),
    ];
    if let Some(script) = archive {
        settings.push(("archive_mode", "on".to_owned()));
        settings.push(("archive_command", format!("sh {} %p", script.display())));
    }
    for (name, value) in settings {
        server.sql(&format!("alter system set {name} = '{value}'"));
    }
    home.run(&["pg", "restart", name]);
    data.load(&server);
    // The log of the load would be most of what those copy who copy directories.
    server.sql("alter system set wal_keep_size = 0; alter system set max_wal_size = '64MB'; select pg_reload_conf()");
    for _ in 0..3 {
        server.sql("select pg_switch_wal(); checkpoint");
    }
    server.sql("alter system reset wal_keep_size; alter system set max_wal_size = '16GB'; select pg_reload_conf()");
    server
}

fn tools(place: &Place) -> Vec<Box<dyn Tool + '_>> {
    let ours = |name| Box::new(Ours::new(place, "source", PgMajor::V15, name, "main"));
    let mut all: Vec<Box<dyn Tool + '_>> = vec![ours(ZSTD), ours(LZ4)];
    if let Some(path) = place.peers.get("pgbackrest") {
        all.push(Box::new(Pgbackrest::new(place, path, "zst")));
        all.push(Box::new(Pgbackrest::new(place, path, "lz4")));
    }
    for form in [Form::Plain, Form::Tar, Form::ClientZstd, Form::ServerZstd] {
        let packed = matches!(form, Form::ClientZstd | Form::ServerZstd);
        // Unpacking needs the program.
        if !packed || place.peers.get("zstd").is_some() {
            all.push(Box::new(BaseBackup::new(place, &place.source, form)));
        }
    }
    if let Some(path) = place.peers.get("restic") {
        all.push(Box::new(Restic::new(place, path)));
    }
    all.push(Box::new(Copies::new(place, false)));
    if place.peers.get("zstd").is_some() {
        all.push(Box::new(Copies::new(place, true)));
    }
    all
}

/// Stages that all tools go through.
struct Rounds<'a> {
    place: &'a Place,
    home: &'a Home,
    results: &'a mut Results,
    data: String,
}

impl Rounds<'_> {
    /// Whether so many more clusters of this size fit on the disk. What does not fit is passed over, and said to be.
    fn room(&mut self, what: &str, clusters: u64) -> bool {
        let wanted = Kept::of(&self.place.source.data).bytes * clusters + SPARE;
        let disk = rustix::fs::statvfs(&self.place.folder).unwrap();
        let free = disk.f_bavail * disk.f_frsize;
        if free >= wanted {
            return true;
        }
        let (wanted, free) = (table::bytes(wanted), table::bytes(free));
        let said = format!(
            "{what} of {}: they take {wanted}, and {free} are free",
            self.data
        );
        tell(&said);
        self.results.passed_over.push(said);
        false
    }

    fn add(&mut self, stage: &str, tool: &dyn Tool, usage: Usage, added: Option<Kept>) {
        let sample = Sample { usage, added };
        self.results
            .add(&self.data, stage, &tool.name(), tool.peer_of(), sample);
    }

    /// First snapshots and restores of them, round after round. What a tool took that does not go on from there goes as soon as it
    /// was brought back: nobody has room for everybody's copy of a large cluster.
    fn first(&mut self, tools: &mut [Box<dyn Tool + '_>], goes_on: &dyn Fn(&dyn Tool) -> bool) {
        let options = &self.place.options;
        let (counted, rounds) = match options.wants(Stage::First) || options.wants(Stage::Restore) {
            true => (true, options.rounds()),
            // For the other stages one is enough.
            false => (false, 1),
        };
        let wanted = verify::content(&self.place.source);
        for round in 0..rounds {
            tell(&format!(
                "first snapshots and restores, round {}",
                round + 1
            ));
            for tool in tools.iter_mut() {
                tool.prepare();
            }
            let job = |tool: &mut dyn Tool| Some(tool.first());
            self.turn(contest::FIRST, tools, round, job, |this, tool| {
                if counted {
                    this.restore(tool, &wanted, true);
                }
                if !goes_on(tool) {
                    tool.prepare();
                }
            });
        }
    }

    /// Next snapshots after the same change each, then what the last of them gives back.
    fn next(
        &mut self,
        tools: &mut [Box<dyn Tool + '_>],
        change: Change,
        rounds: usize,
        look: bool,
    ) {
        let stage = contest::next_after(&change.name());
        tell(&stage);
        for round in 0..rounds {
            let seconds = change.apply(&self.place.source, self.place.data);
            if round == 0 && change.share > 0.0 {
                tell(&format!(
                    "the checkpoint of the change itself took {seconds:.2} s"
                ));
            }
            self.turn(&stage, tools, round, |tool| tool.next(), |_, _| {});
        }
        if look {
            let wanted = verify::content(&self.place.source);
            self.restores(tools, &wanted);
        }
    }

    /// Each once: those that read from the server, then, with the server stopped, the others.
    fn turn<'t>(
        &mut self,
        stage: &str,
        tools: &mut [Box<dyn Tool + 't>],
        round: usize,
        mut job: impl FnMut(&mut dyn Tool) -> Option<Job>,
        mut then: impl FnMut(&mut Self, &mut dyn Tool),
    ) {
        for cold in [false, true] {
            if cold && !tools.iter().any(|tool| tool.cold()) {
                continue;
            }
            if cold {
                self.home.run(&["pg", "stop", "source"]);
            }
            for number in order(tools.len(), round) {
                let tool = &mut tools[number];
                if tool.cold() != cold {
                    continue;
                }
                let before = Kept::of(&tool.repository());
                if !cold {
                    self.place.source.checkpoint();
                }
                tool.before();
                let Some(job) = job(tool.as_mut()) else {
                    tool.after();
                    continue;
                };
                let server = (!cold).then_some(&self.place.source);
                let cold_caches = self.place.options.cold;
                let (usage, _) = measured(job, &self.place.folder, server, cold_caches);
                tool.after();
                let added = Kept::of(&tool.repository()).since(before);
                self.add(stage, &*tools[number], usage, Some(added));
                then(self, &mut *tools[number]);
            }
            if cold {
                self.home.run(&["pg", "start", "source"]);
            }
        }
    }

    /// Restores of the last of each, started and compared.
    fn restores(&mut self, tools: &mut [Box<dyn Tool + '_>], wanted: &str) {
        for tool in tools {
            self.restore(&mut **tool, wanted, false);
        }
    }

    fn restore(&mut self, tool: &mut dyn Tool, wanted: &str, count: bool) {
        self.place.owned("restored");
        let cold = self.place.options.cold;
        let (usage, _) = measured(tool.restore(), &self.place.folder, None, cold);
        verify::restored(&tool.restored(), wanted, &tool.name());
        tool.discard();
        if count {
            self.add(contest::RESTORE, tool, usage, None);
        }
    }

    fn list(&mut self, tools: &[Box<dyn Tool + '_>]) {
        tell("lists");
        for round in 0..5 {
            for number in order(tools.len(), round) {
                let tool = &*tools[number];
                if let Some(job) = tool.list() {
                    let (usage, _) =
                        measured(job, &self.place.folder, None, self.place.options.cold);
                    self.add(contest::LIST, tool, usage, None);
                }
            }
        }
    }

    /// PostgreSQL 18 and its own incremental backups.
    fn incremental(&mut self) {
        if self.place.peers.get("pg_combinebackup").is_none() {
            return;
        }
        tell("18: first backups");
        let place = self.place;
        let source = source(self.home, "source18", PgMajor::V18, place.data, None);
        let mut tools: Vec<Box<dyn Tool + '_>> = vec![
            Box::new(Ours::new(place, "source18", PgMajor::V18, ZSTD, "new")),
            Box::new(BaseBackup::new(place, &source, Form::Incremental)),
        ];
        for tool in &mut tools {
            tool.prepare();
            measured(tool.first(), &place.folder, None, false);
        }
        tell(contest::INCREMENTAL);
        for round in 0..place.options.rounds().max(3) {
            Change::new(0.001, Where::Random).apply(&source, place.data);
            for number in order(tools.len(), round) {
                let tool = &mut tools[number];
                let before = Kept::of(&tool.repository());
                source.checkpoint();
                let job = tool.next().unwrap();
                let (usage, _) = measured(job, &place.folder, Some(&source), place.options.cold);
                let added = Kept::of(&tool.repository()).since(before);
                self.add(contest::INCREMENTAL, &*tools[number], usage, Some(added));
            }
            let wanted = verify::content(&source);
            for number in order(tools.len(), round) {
                let tool = &mut tools[number];
                let (usage, _) = measured(tool.restore(), &place.folder, None, place.options.cold);
                verify::restored(&tool.restored(), &wanted, &tool.name());
                tool.discard();
                let sample = Sample { usage, added: None };
                let (who, of) = match tool.name() {
                    name if name == ZSTD => {
                        (format!("{ZSTD} (restore)"), format!("{ZSTD} (restore)"))
                    }
                    _ => ("pg_combinebackup".to_owned(), format!("{ZSTD} (restore)")),
                };
                self.results
                    .add(&self.data, contest::COMBINE, &who, &of, sample);
            }
        }
        for tool in &mut tools {
            tool.prepare();
        }
        self.home.destroy("source18");
        OsUser::current().create_dir(&place.folder.join("repositories"));
    }
}

/// Whose turn it is, one after the other: another begins each round.
pub(crate) fn order(count: usize, round: usize) -> impl Iterator<Item = usize> {
    (0..count).map(move |turn| (turn + round) % count)
}

#[cfg(test)]
mod tests {
    use super::order;

    #[test]
    fn everybody_has_a_turn_and_another_begins_each_round() {
        assert_eq!(order(3, 0).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(order(3, 4).collect::<Vec<_>>(), [1, 2, 0]);
    }
}
