//! Completions: a script for each shell, which asks this program what could stand where somebody pressed the tabulator.
//!
//! So they know the names of instances, snapshots and storages, and never more verbs than the program they complete.

mod names;

use std::ffi::{OsStr, OsString};

use clap_complete::engine::{
    ArgValueCompleter, CompletionCandidate, PathCompleter, ValueCompleter,
};
use neon_pg::PgMajor;

use crate::args::{NAME, Shell, grammar};
use crate::failure::Outcome;
use crate::render::write;
use crate::surroundings::Surroundings;
use names::{Kind, Names};

/// The script that makes a shell ask.
pub(crate) fn script(shell: Shell) -> Outcome<u8> {
    let script = match shell {
        Shell::Bash => include_str!("neon.bash"),
        Shell::Zsh => include_str!("neon.zsh"),
        Shell::Fish => include_str!("neon.fish"),
    };
    write(script.replace("NAME", NAME).as_bytes())?;
    Ok(0)
}

/// What could stand as the word of this index: a line each, with what it means after a tabulator for shells that show it.
pub(crate) fn words(
    shell: Shell,
    index: usize,
    words: Vec<OsString>,
    surroundings: &Surroundings,
) -> Outcome<u8> {
    let bare = words.get(index).is_none_or(|word| word.is_empty());
    let names = Names::of(&words, surroundings);
    let mut grammar = with_names(grammar(), &names);
    let here = std::env::current_dir().ok();
    let found = clap_complete::engine::complete(&mut grammar, words, index, here.as_deref());
    // Nothing to offer is no failure: the shell goes on with what it has.
    let mut found = found.unwrap_or_default();
    if bare {
        only_what_is_asked_for(&mut found);
    }
    let mut text = String::new();
    for candidate in found {
        let Some(value) = candidate.get_value().to_str() else {
            continue;
        };
        if value.contains(['\n', '\t']) {
            continue;
        }
        text.push_str(value);
        let help = candidate.get_help().map(ToString::to_string);
        if shell != Shell::Bash
            && let Some(line) = help.as_deref().and_then(|help| help.lines().next())
        {
            text.push_str(&format!("\t{line}"));
        }
        text.push('\n');
    }
    write(text.as_bytes())?;
    Ok(0)
}

/// Where nothing is typed yet, verbs and names do not drown in options; where there are none of these, the long
/// options say what there is.
fn only_what_is_asked_for(found: &mut Vec<CompletionCandidate>) {
    let starts = |candidate: &CompletionCandidate, with: &str| {
        let value = candidate.get_value().to_string_lossy();
        value.starts_with(with)
    };
    if found.iter().any(|one| !starts(one, "-")) {
        found.retain(|one| !starts(one, "-"));
    } else {
        found.retain(|one| starts(one, "--"));
    }
}

/// The grammar, whose arguments know what could be given: what an argument takes is told by what its help calls it.
fn with_names(command: clap::Command, names: &Names) -> clap::Command {
    // What makes something gives it a name that is not there yet.
    let makes = ["create", "adopt", "init", "import"].contains(&command.get_name());
    let both = command.get_name() == "diff";
    command
        .mut_args(|argument| {
            let called = argument
                .get_value_names()
                .and_then(<[_]>::first)
                .map_or_else(
                    || argument.get_id().as_str().to_uppercase(),
                    ToString::to_string,
                );
            let id = argument.get_id().as_str();
            let is_new = makes && (argument.is_positional() || ["name", "named"].contains(&id));
            let completer = match called.as_str() {
                "PGDATA@TAG" if is_new => Offered::Names(Kind::Tagged),
                _ if is_new && called != "PATH" => return argument,
                "PGDATA" => Offered::Names(Kind::Instance),
                "PGDATA@TAG" => Offered::Names(Kind::Snapshot),
                "SNAPSHOT" => Offered::NamesOrPath(Kind::Snapshot),
                "BEFORE" | "AFTER" if both => Offered::Names(Kind::State),
                "STORAGE" => Offered::Names(Kind::Storage),
                "STORAGE|ADDRESS" | "STORAGE|ADDRESS|PATH" => Offered::NamesOrPath(Kind::Storage),
                "LOCATOR" | "SOURCE" | "PREFIX" => Offered::Path,
                "MAJOR" => Offered::Majors,
                _ => return argument,
            };
            argument.add(ArgValueCompleter::new(completer.by(names.clone())))
        })
        .mut_subcommands(|verb| with_names(verb, names))
}

/// What an argument is offered.
#[derive(Debug, Clone, Copy)]
enum Offered {
    Names(Kind),
    NamesOrPath(Kind),
    Path,
    Majors,
}

impl Offered {
    fn by(self, names: Names) -> impl Fn(&OsStr) -> Vec<CompletionCandidate> {
        move |typed| {
            let named = |kind| {
                let typed = typed.to_string_lossy();
                let all = names.all(kind).into_iter();
                all.filter(|name| name.starts_with(&*typed))
                    .map(CompletionCandidate::new)
                    .collect()
            };
            let path = || PathCompleter::any().complete(typed);
            let is_path = typed.to_string_lossy().starts_with(['/', '.']);
            match self {
                Self::Names(kind) => named(kind),
                Self::NamesOrPath(kind) if !is_path => named(kind),
                Self::NamesOrPath(_) | Self::Path => path(),
                Self::Majors => PgMajor::ALL
                    .iter()
                    .map(ToString::to_string)
                    .filter(|major| major.starts_with(&*typed.to_string_lossy()))
                    .map(CompletionCandidate::new)
                    .collect(),
            }
        }
    }
}
