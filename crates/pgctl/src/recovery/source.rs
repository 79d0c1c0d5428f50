//! Where recovery gets its WAL: a command, and what we put around it to learn how it went.
//!
//! The server tells two outcomes apart: "it is not there" (exit 1 to 125) and "stop" (above, or a signal).
//! What was missing it does not log. So the command given to the server is the caller's in a subshell,
//! followed by lines of ours that note each file that was not there. They also answer for timelines that
//! are taken although the source has no history of them.

use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};

/// Where the WAL comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum WalSource {
    /// A command as PostgreSQL's `restore_command`: run by a shell in the data directory, `%f` is the file
    /// asked for, `%p` where to put it, `%r` the oldest file still needed, `%%` a percent sign.
    ///
    /// It exits with 0 and the whole file in place, with 1 to 125 when the file is not there, and with more
    /// than 125 when it cannot tell: a storage that does not answer must not look like the end of WAL.
    Command(String),
    /// A folder of segments and `.history` files that the server's user can read.
    Directory(PathBuf),
}

/// Files in the folder of a run.
pub(crate) const MISSES: &str = "misses";
const HISTORY: &str = "taken";

impl WalSource {
    /// The command alone.
    pub(crate) fn command(&self) -> Result<String> {
        match self {
            Self::Command(text) if text.trim().is_empty() || text.contains('\0') => {
                Err(Error::new(
                    ErrorKind::Invalid,
                    "WAL source",
                    "the command is empty or holds a NUL",
                ))
            }
            Self::Command(text) => Ok(text.clone()),
            Self::Directory(path) => {
                let folder = quoted(path)?;
                // A folder that cannot be looked into, or a file that cannot be read, is not a missing file.
                Ok(format!(
                    "if [ -f {folder}/%f ]; then cp {folder}/%f \"%p\" || exit 200; \
                     elif [ -r {folder}/. ] && [ -x {folder}/. ]; then exit 1; else exit 201; fi"
                ))
            }
        }
    }

    /// The `restore_command` of a run whose own files lie in `folder`; with `segments` off all of those are
    /// missing, and only histories are asked for.
    pub(crate) fn restore_command(&self, folder: &Path, segments: bool) -> Result<String> {
        let mut command = self.command()?;
        if !segments {
            command = format!("case %f in *.history) ;; *) exit 1;; esac\n{command}");
        }
        let misses = quoted(&folder.join(MISSES))?;
        let taken = quoted(&folder.join(HISTORY))?;
        // The newlines end a comment in the caller's text; the subshell keeps its `exit` to itself.
        Ok(format!(
            "(\n{command}\n)\nstatus=$?\n\
             [ $status -ne 0 ] || exit 0\n\
             case %f in *.history) if [ $status -le 125 ] && [ -f {taken}/%f ]; then \
             cp {taken}/%f \"%p\" && exit 0; exit 202; fi;; esac\n\
             echo %f $status >>{misses} || exit 203\n\
             exit $status"
        ))
    }

    /// The command with its placeholders filled in, to ask for a file ourselves.
    pub(crate) fn ask(&self, file: &str, to: &Path) -> Result<String> {
        Ok(fill(&self.command()?, file, &to.display().to_string()))
    }
}

/// The folder of placeholders for timelines that are taken.
pub(crate) fn taken_dir(folder: &Path) -> PathBuf {
    folder.join(HISTORY)
}

/// Replaces placeholders as the server does (`replace_percent_placeholders`); others stay as they are.
fn fill(command: &str, file: &str, to: &str) -> String {
    let mut filled = String::with_capacity(command.len());
    let mut rest = command;
    while let Some((before, after)) = rest.split_once('%') {
        filled.push_str(before);
        let mut letters = after.chars();
        match letters.next() {
            Some('f') => filled.push_str(file),
            Some('p') => filled.push_str(to),
            // Nothing is known to be needed no more.
            Some('r') => filled.push_str("000000010000000000000001"),
            Some('%') => filled.push('%'),
            _ => {
                filled.push('%');
                rest = after;
                continue;
            }
        }
        rest = letters.as_str();
    }
    filled.push_str(rest);
    filled
}

/// A path as one word of a shell, inside a `restore_command`.
fn quoted(path: &Path) -> Result<String> {
    let Some(text) = path.to_str().filter(|text| !text.contains('\0')) else {
        return Err(Error::path(
            ErrorKind::Invalid,
            path,
            "is not UTF-8, so no setting can hold it",
        ));
    };
    Ok(format!(
        "'{}'",
        text.replace('\'', r"'\''").replace('%', "%%")
    ))
}

/// A file that the source did not have, in the order asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Miss {
    pub(crate) file: String,
    pub(crate) status: i32,
}

/// Reads the notes; a line that is still being written is left out.
pub(crate) fn parse_misses(text: &str) -> Vec<Miss> {
    text.split_inclusive('\n')
        .filter(|line| line.ends_with('\n'))
        .filter_map(|line| {
            let (file, status) = line.trim_end().split_once(' ')?;
            Some(Miss {
                file: file.to_owned(),
                status: status.parse().ok()?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// What the server would run for this file, and its exit status.
    fn run(source: &WalSource, folder: &Path, file: &str, to: &Path) -> i32 {
        let command = source.restore_command(folder, true).unwrap();
        let command = fill(&command, file, to.to_str().unwrap());
        Command::new("/bin/sh")
            .args(["-c", &command])
            .status()
            .unwrap()
            .code()
            .unwrap()
    }

    #[test]
    fn any_folder_name_is_one_word() {
        let scratch = tempfile::tempdir().unwrap();
        let archive = scratch.path().join("it's 100% $(touch x) \"a\"");
        std::fs::create_dir(&archive).unwrap();
        std::fs::write(archive.join("000000010000000000000001"), b"wal").unwrap();
        let source = WalSource::Directory(archive);
        let to = scratch.path().join("to");
        assert_eq!(
            run(&source, scratch.path(), "000000010000000000000001", &to),
            0
        );
        assert_eq!(std::fs::read(&to).unwrap(), b"wal");
        assert_eq!(
            run(&source, scratch.path(), "000000010000000000000002", &to),
            1
        );
        let misses = std::fs::read_to_string(scratch.path().join(MISSES)).unwrap();
        let miss = Miss {
            file: "000000010000000000000002".to_owned(),
            status: 1,
        };
        assert_eq!(parse_misses(&misses), [miss]);
        let gone = WalSource::Directory(scratch.path().join("gone"));
        assert!(run(&gone, scratch.path(), "000000010000000000000002", &to) > 125);
    }

    #[test]
    fn statuses_of_the_callers_command_come_through() {
        let scratch = tempfile::tempdir().unwrap();
        let to = scratch.path().join("to");
        for (command, expected) in [
            ("exit 7 # why", 7),
            ("exit 130", 130),
            ("kill -9 $$; echo", 137),
            ("no_such_program", 127),
        ] {
            let command = command.replace("$$", "$(sh -c 'echo $PPID')");
            let status = run(
                &WalSource::Command(command.clone()),
                scratch.path(),
                "00000002.history",
                &to,
            );
            assert_eq!(status, expected, "{command}");
        }
    }

    #[test]
    fn a_timeline_that_is_taken_has_a_history_unless_the_source_fails() {
        let scratch = tempfile::tempdir().unwrap();
        let to = scratch.path().join("to");
        std::fs::create_dir(taken_dir(scratch.path())).unwrap();
        std::fs::write(taken_dir(scratch.path()).join("00000002.history"), b"taken").unwrap();
        let missing = WalSource::Command("exit 1".to_owned());
        assert_eq!(run(&missing, scratch.path(), "00000002.history", &to), 0);
        assert_eq!(run(&missing, scratch.path(), "00000003.history", &to), 1);
        let broken = WalSource::Command("exit 150".to_owned());
        assert_eq!(run(&broken, scratch.path(), "00000002.history", &to), 150);
    }

    #[test]
    fn placeholders_are_filled_as_the_server_does() {
        assert_eq!(fill("a %f %p %% %x %", "F", "/p"), "a F /p % %x %");
        assert_eq!(fill("%é%f", "F", "/p"), "%éF");
    }
}
