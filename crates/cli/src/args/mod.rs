//! The grammar of the command line. Help texts are the doc comments; each verb shows examples.

pub(crate) mod first;
pub(crate) mod pg;
pub(crate) mod snapshot;
pub(crate) mod storage;

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::failure::{Failure, say};

/// The name of the program, once, as a literal for texts.
macro_rules! program {
    () => {
        "neon"
    };
}
/// Examples below a help text: pairs of a command without the program's name, and what it does.
macro_rules! examples {
    ($($line:literal => $what:literal),+ $(,)?) => {
        concat!("Examples:", $("\n  ", crate::args::program!(), " ", $line, "\n      ", $what),+)
    };
}
pub(crate) use {examples, program};

/// The name of the program.
pub(crate) const NAME: &str = program!();
/// What its variables begin with.
pub(crate) const PREFIX: &str = "NEON_";

/// Snapshot-first management of PostgreSQL: create, snapshot, branch, roll back, move.
#[derive(Debug, Parser)]
#[command(
    name = NAME,
    version,
    arg_required_else_help = true,
    max_term_width = 110,
    after_help = examples!(
        "pg create" => "a new cluster, running, with the URI to connect to it",
        "snapshot create pgdata1@before" => "an image of it, while it runs",
        "pg create --snapshot pgdata1@before" => "a second cluster, as the first was then",
        "pg list" => "what runs here",
        "storage attach -t s3 -n tank s3://bucket/prefix" => "a place for snapshots, like a remote of git",
        "help pg create" => "all about one command",
    )
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// What every verb takes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Options of every command")]
pub(crate) struct Global {
    /// The folder that everything is kept in (NEON_HOME; else /var/lib/neon as root, ~/.local/share/neon)
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) home: Option<PathBuf>,
    /// A folder with programs of PostgreSQL, before all others; may be repeated (NEON_PG_BIN)
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) pg_bin: Vec<PathBuf>,
    /// As root: the user that servers run as (NEON_OS_USER; else postgres)
    #[arg(long, global = true, value_name = "USER")]
    pub(crate) os_user: Option<String>,
    /// How results are printed: for people, one JSON document, or one a line (NEON_OUTPUT; else table)
    #[arg(short, long, global = true, value_enum, value_name = "FORMAT")]
    pub(crate) output: Option<Format>,
    /// Say nothing on the way: no steps, no progress
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Format {
    #[default]
    Table,
    Json,
    Ndjson,
}

/// What a destructive verb takes.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Consent {
    /// Do not ask
    #[arg(short, long)]
    pub(crate) yes: bool,
    /// Only show what would happen
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Instances: data directories and the servers on them
    #[command(subcommand, arg_required_else_help = true)]
    Pg(pg::Pg),
    /// Snapshots: immutable, bootable images of whole clusters
    #[command(subcommand, arg_required_else_help = true)]
    Snapshot(snapshot::Snapshot),
    /// Storages: places for snapshots, like remotes of git
    #[command(subcommand, arg_required_else_help = true)]
    Storage(storage::Storage),
    /// Makes one cluster, remembers where its snapshots go, and takes the first
    ///
    /// Nothing is stored in the background. init stores the cluster as it begins; after that neon stop, neon export and neon
    /// snapshot create store it as it is then, and nothing else does. What a server writes in between is in its data
    /// directory only, and lost with it.
    #[command(after_help = examples!(
        "init --storage_dest=s3://bucket/prefix" => "an empty cluster whose snapshots go to S3",
        "init --snapshot_path=/var/backups/base --snapshot_format=pgdata --storage_dest=s3://bucket/prefix" => "what is there already, with S3 from now on",
    ))]
    Init(first::Init),
    /// Starts the cluster of init, restored first if it is missing here, and what else ran before a reboot
    ///
    /// Nothing is stored while it runs: neon stop, or neon snapshot create, stores what was written. What is restored is the
    /// newest of these, and how old that is gets printed.
    #[command(after_help = examples!(
        "start" => "after init, or after a reboot",
        "start --storage_dest=s3://bucket/prefix" => "on a machine that knows nothing but the bucket",
    ))]
    Start(first::Start),
    /// Stops the cluster of init and takes a snapshot of how it was left
    #[command(after_help = examples!("stop" => "when it returns, everything that was committed is where snapshots go"))]
    Stop,
    /// Takes a snapshot of the cluster of init and writes it elsewhere, this once
    #[command(after_help = examples!(
        "export --snapshot_path=/mnt/copy --snapshot_format=pgdata" => "as a data directory",
        "export --snapshot_path=s3://other/prefix" => "into another storage",
    ))]
    Export(first::Export),
    /// What was done in this home
    #[command(subcommand, arg_required_else_help = true)]
    Op(Op),
    /// Looks for what is not as it should be, and says what repairs it; exit code 1 with an error
    #[command(after_help = examples!(
        "doctor" => "what is wrong here, if anything",
        "doctor --fix --dry-run" => "what would be settled",
        "doctor --fix --yes" => "settles what killed commands left, then looks",
        "doctor --offline" => "without asking distant storages",
    ))]
    Doctor(Doctor),
    /// Takes back what was done last: a create, a replica, a destroy, a checkout, a destroyed snapshot, a detach
    #[command(after_help = examples!(
        "undo --dry-run" => "what would be taken back",
        "undo --yes" => "takes it back; once more, what was before that",
        "undo 4f1c2a9b --yes" => "takes back what has this id in op log, though more was done since",
    ))]
    Undo(Undo),
    /// Settings, and where each comes from
    #[command(subcommand, arg_required_else_help = true)]
    Config(Config),
    /// Prints what makes a shell complete commands, and names of instances, snapshots and storages
    #[command(after_help = examples!(
        "completions bash > /etc/bash_completion.d/neon" => "for everybody who uses bash",
        "completions zsh > ~/.zfunc/_neon" => "for yourself with zsh, where fpath has ~/.zfunc",
        "completions fish > ~/.config/fish/completions/neon.fish" => "for yourself with fish",
    ))]
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: Shell,
    },
    /// What could stand where somebody pressed the tabulator: completions ask it
    #[command(hide = true, after_help = examples!("complete bash 2 -- neon pg cr" => "create"))]
    Complete {
        /// The shell that asks
        #[arg(value_enum)]
        shell: Shell,
        /// Which word is to be completed, from 0
        index: usize,
        /// The line so far, with the program
        #[arg(last = true)]
        words: Vec<OsString>,
    },
    /// Writes the manual pages into a folder
    #[command(after_help = examples!("man /usr/local/share/man/man1" => "one page for each command"))]
    Man {
        /// The folder; made if it is not there
        folder: PathBuf,
    },
}

impl Verb {
    /// Whether it changes nothing, so that it leaves nothing half done.
    pub(crate) const fn only_looks(&self) -> bool {
        use pg::Pg;
        use snapshot::Snapshot;
        use storage::Storage;
        matches!(
            self,
            Self::Pg(Pg::List | Pg::Show(_) | Pg::Psql(_) | Pg::Url(_) | Pg::Logs(_))
                | Self::Snapshot(
                    Snapshot::List(_)
                        | Snapshot::Show(_)
                        | Snapshot::Diff(_)
                        | Snapshot::Verify(_)
                        | Snapshot::Check(_)
                )
                | Self::Storage(Storage::List(_) | Storage::Show(_) | Storage::Check(_))
                | Self::Op(_)
                | Self::Config(_)
        )
    }
}

impl Verb {
    /// Whether it makes no home where none is: it looks, or says what it would do.
    pub(crate) const fn makes_no_home(&self) -> bool {
        match self {
            Self::Doctor(wanted) => !wanted.fix || wanted.dry_run,
            Self::Undo(wanted) => wanted.consent.dry_run,
            Self::Pg(pg::Pg::Trash(wanted)) => !wanted.empty || wanted.dry_run,
            _ => self.only_looks(),
        }
    }
}

/// What the doctor takes.
#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Settle what can be settled: shows it and asks first
    #[arg(long)]
    pub(crate) fix: bool,
    /// Ask no storage but folders of this machine
    #[arg(long)]
    pub(crate) offline: bool,
    /// With --fix: do not ask
    #[arg(short, long, requires = "fix")]
    pub(crate) yes: bool,
    /// With --fix: only show what would be settled
    #[arg(long, requires = "fix")]
    pub(crate) dry_run: bool,
}

/// What undo takes.
#[derive(Debug, Args)]
pub(crate) struct Undo {
    /// What to take back, by its id in `op log` or the first digits of it; the last that can be, if not said
    #[arg(value_name = "OPERATION")]
    pub(crate) operation: Option<String>,
    #[command(flatten)]
    pub(crate) consent: Consent,
}

/// Shells with completions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// Verbs on the operation log.
#[derive(Debug, Subcommand)]
pub(crate) enum Op {
    /// Lists what was done, newest first
    #[command(after_help = examples!(
        "op log" => "the last twenty operations",
        "op log -n 0 --output ndjson" => "all of them, a line each, for a program",
    ))]
    Log {
        /// At most this many, the newest; 0 for all
        #[arg(short = 'n', long, default_value_t = 20, value_name = "COUNT")]
        limit: usize,
    },
}

/// Verbs on settings.
#[derive(Debug, Subcommand)]
pub(crate) enum Config {
    /// Lists every setting with its value; secrets are never shown
    #[command(after_help = examples!(
        "config show --origin" => "each value with where it comes from",
    ))]
    Show {
        /// Also where each value comes from
        #[arg(long)]
        origin: bool,
    },
}

/// A port that a server can have.
fn port(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err("is not a port: 1 to 65535".to_owned()),
    }
}

/// The whole grammar.
pub(crate) fn grammar() -> clap::Command {
    Arguments::command()
}

/// Reads the arguments. The error is the exit code after help, the version or what is wrong with them was shown; to
/// programs, as everything that goes wrong is.
pub(crate) fn parse(
    arguments: impl IntoIterator<Item = OsString>,
    output: Option<&OsStr>,
) -> Result<Arguments, u8> {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    Arguments::try_parse_from(&arguments).map_err(|error| {
        let mut code = u8::try_from(error.exit_code()).unwrap_or(2);
        if error.use_stderr()
            && let Some(format) = for_programs(&arguments, output)
        {
            let text = error.render().to_string();
            usage(&text).show(format, false);
        } else if let Err(unread) = error.print()
            // On the result stream for help, on the error stream else; that nobody reads it changes nothing.
            && unread.kind() != std::io::ErrorKind::BrokenPipe
        {
            say(&format!("error: {unread}"));
            code = code.max(1);
        }
        code
    })
}

/// The format for programs, if arguments that cannot be understood ask for one, or else the environment.
fn for_programs(arguments: &[OsString], output: Option<&OsStr>) -> Option<Format> {
    let words = arguments.iter().map_while(|word| word.to_str());
    let mut words = words.take_while(|word| *word != "--");
    let mut asked = output.and_then(OsStr::to_str);
    while let Some(word) = words.next() {
        let joined = word.strip_prefix("--output=");
        let joined = joined.or_else(|| word.strip_prefix("-o").filter(|rest| !rest.is_empty()));
        if let Some(value) = joined {
            asked = Some(value.trim_start_matches('='));
        } else if word == "--output" || word == "-o" {
            asked = words.next();
        }
    }
    let format = <Format as ValueEnum>::from_str(asked?, true).ok()?;
    (format != Format::Table).then_some(format)
}

/// What is wrong with arguments: the first paragraph says what, the next may say what was meant, the last how it is used.
fn usage(text: &str) -> Failure {
    let mut paragraphs = text
        .split("\n\n")
        .map(|paragraph| paragraph.split_whitespace().collect::<Vec<_>>().join(" "));
    let what = paragraphs.next().unwrap_or_default();
    let failure = Failure::usage(what.trim_start_matches("error: "));
    let hint = paragraphs.find(|next| next.starts_with("tip: ") || next.starts_with("Usage: "));
    match hint {
        Some(hint) => failure.hinted(hint.trim_start_matches("tip: ")),
        None => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grammar_is_sound() {
        grammar().debug_assert();
    }

    #[test]
    fn every_verb_that_does_something_shows_an_example() {
        fn walk(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            if command.get_name() == "help" {
                return;
            }
            if command.has_subcommands() {
                command
                    .get_subcommands()
                    .for_each(|command| walk(command, &path));
            } else {
                let after = command.get_after_help().map(ToString::to_string);
                assert!(
                    after.is_some_and(|text| text.contains("Examples:\n  neon ")),
                    "{path} has no example"
                );
            }
        }
        walk(&grammar(), "");
    }
}
