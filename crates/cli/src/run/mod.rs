//! From arguments to the library to results.

mod config;
mod doctor;
mod first;
mod manual;
mod op;
mod pg;
mod psql;
mod snapshot;
mod storage;

use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use neon_pg::Neon;
use serde::Serialize;
use serde_json::Value;

use crate::args::{Arguments, Format, Verb};
use crate::failure::{self, Failure, Outcome};
use crate::progress::Progress;
use crate::render::Answer;
use crate::settings::Settings;
use crate::surroundings::Surroundings;
use crate::{complete, home, signals};

/// What is left to do when a verb is done.
pub(crate) enum Then {
    /// Print this.
    Print(Answer),
    /// Become this program.
    Become(Box<Command>),
}

impl From<Answer> for Then {
    fn from(answer: Answer) -> Self {
        Self::Print(answer)
    }
}

/// What verbs work with.
pub(crate) struct Scene<'a> {
    pub(crate) neon: &'a Neon,
    pub(crate) settings: &'a Settings,
    pub(crate) surroundings: &'a Surroundings,
    progress: &'a Progress,
    cancel: &'a AtomicBool,
}

impl Scene<'_> {
    /// Something that does not go as it should, and stops nothing.
    pub(crate) fn warn(&self, text: &str) {
        self.progress.show(neon_pg::Event::Warning(text.to_owned()));
    }

    /// Whether somebody asked to stop.
    pub(crate) fn is_stopped(&self) -> bool {
        self.cancel.load(Ordering::SeqCst)
    }

    /// Something to know.
    pub(crate) fn note(&self, text: &str) {
        self.progress.show(neon_pg::Event::Note(text.to_owned()));
    }

    /// What will be done, for who is asked: also when nothing else is to be said.
    pub(crate) fn plan(&self, text: &str) {
        self.progress.plan(text);
    }

    /// A step of our own.
    pub(crate) fn step(&self, text: &str) {
        self.progress.show(neon_pg::Event::Step(text.to_owned()));
    }
}

/// Does what was asked, prints what it came to, and returns the exit code.
pub(crate) fn command(arguments: Arguments) -> u8 {
    failure::guarded(AssertUnwindSafe(|| {
        let surroundings = Surroundings::read();
        let format = arguments.global.output.unwrap_or_default();
        let settings = match Settings::gather(&arguments.global, &surroundings) {
            Ok(settings) => settings,
            Err(failure) => return told(&failure, format, &surroundings),
        };
        match run(arguments, &settings, &surroundings) {
            Ok(exit) => exit,
            Err(failure) => told(&failure, settings.output, &surroundings),
        }
    }))
}

fn told(failure: &Failure, format: Format, surroundings: &Surroundings) -> u8 {
    failure.show(format, surroundings.colours());
    failure.exit_code()
}

fn run(arguments: Arguments, settings: &Settings, surroundings: &Surroundings) -> Outcome<u8> {
    let then = match arguments.verb {
        Verb::Completions { shell } => return complete::script(shell),
        Verb::Complete {
            shell,
            index,
            words,
        } => return complete::words(shell, index, words, surroundings),
        Verb::Man { folder } => manual::pages(&folder)?.into(),
        Verb::Config(verb) => config::run(&verb, settings).into(),
        verb => in_home(verb, arguments.global.quiet, settings, surroundings)?,
    };
    match then {
        Then::Print(answer) => {
            answer.print(settings.output)?;
            Ok(answer.exit)
        }
        Then::Become(mut command) => {
            let error = std::os::unix::process::CommandExt::exec(&mut *command);
            let program = command.get_program().to_string_lossy().into_owned();
            Err(Failure::io(format!("{program} cannot be run"), &error))
        }
    }
}

/// What needs a home and a runtime.
fn in_home(
    verb: Verb,
    quiet: bool,
    settings: &Settings,
    surroundings: &Surroundings,
) -> Outcome<Then> {
    let cancel = Arc::new(AtomicBool::new(false));
    let progress = Arc::new(Progress::new(
        settings.output,
        quiet,
        surroundings.colours(),
    ));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::io("the runtime", &error))?;
    let only_looks = verb.only_looks();
    let to_read = verb.makes_no_home();
    let neon = home::open(settings, surroundings, &progress, &cancel, to_read)?;
    let scene = Scene {
        neon: &neon,
        settings,
        surroundings,
        progress: &progress,
        cancel: &cancel,
    };
    let work = async {
        match verb {
            Verb::Pg(verb) => pg::run(verb, &scene).await,
            Verb::Snapshot(verb) => snapshot::run(verb, &scene).await.map(Then::from),
            Verb::Storage(verb) => storage::run(verb, &scene).await.map(Then::from),
            Verb::Doctor(wanted) => doctor::run(&wanted, &scene).await.map(Then::from),
            Verb::Init(wanted) => first::init(wanted, &scene).await.map(Then::from),
            Verb::Start(wanted) => first::start(wanted, &scene).await.map(Then::from),
            Verb::Stop => first::stop(&scene).await.map(Then::from),
            Verb::Export(wanted) => first::export(wanted, &scene).await.map(Then::from),
            Verb::Undo(wanted) => op::undo(&wanted, &scene).await.map(Then::from),
            Verb::Op(verb) => op::run(&verb, &scene).map(Then::from),
            Verb::Config(_)
            | Verb::Completions { .. }
            | Verb::Complete { .. }
            | Verb::Man { .. } => Err(Failure::usage("needs no home")),
        }
    };
    let outcome = runtime.block_on(signals::until_stopped(&cancel, &progress, work));
    let outcome = outcome.map_err(|failure| {
        if only_looks {
            failure.changed_nothing()
        } else {
            failure
        }
    });
    progress.finish();
    // Threads that still read or write when a command was stopped are not waited for.
    runtime.shutdown_timeout(Duration::from_millis(100));
    outcome
}

/// A path as it is meant from here.
fn absolute(path: &Path) -> Outcome<PathBuf> {
    std::path::absolute(path).map_err(|error| Failure::io(path.display().to_string(), &error))
}

/// A snapshot as it is meant from here: a path that is there becomes absolute, a name stays a name.
fn absolute_snapshot(text: &str) -> Outcome<String> {
    let is_file = || text.ends_with(".neon") && Path::new(text).exists();
    let is_path = text.contains('/') || text == "." || text == ".." || is_file();
    if is_path {
        absolute_place(text)
    } else {
        Ok(text.to_owned())
    }
}

/// A place as it is meant from here: of an address nothing changes.
fn absolute_place(text: &str) -> Outcome<String> {
    if text.contains("://") || text.contains(':') && !text.contains('/') {
        return Ok(text.to_owned());
    }
    let path = absolute(Path::new(text))?;
    let shown = path
        .to_str()
        .ok_or_else(|| Failure::usage(format!("{text} is no text")))?;
    Ok(shown.to_owned())
}

/// As JSON, as the library says it.
fn data(value: &impl Serialize) -> Outcome<Value> {
    serde_json::to_value(value)
        .map_err(|error| Failure::usage("the result is no JSON").because(error.to_string()))
}

/// Adds to an object whether something was done.
fn mark(whole: &mut Value, key: &str, value: bool) {
    if let Value::Object(whole) = whole {
        whole.insert(key.to_owned(), Value::Bool(value));
    }
}

/// The wall clock, in seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
