//! Whether the process of some number is the server that a pid file tells of.
//!
//! A number alone says nothing: after a crash or a reboot any process may have it, the server of another data
//! directory above all, whose owner is the same user. The working directory decides where we may see it; root
//! in a container often may not (`CAP_SYS_PTRACE`). Then the name, the arguments and the time of the start
//! tell. What stays in doubt counts as running: a start that is refused can be repeated, a second server on one
//! data directory cannot be taken back.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::pid_file::{PID_FILE, PidFile};
use crate::process::{self, Process};

/// A server writes down the time some moments after its process began; by how much a clock that was set
/// meanwhile may add to it is anybody's guess.
const SAME_START: Duration = Duration::from_secs(120);

/// The server that a pid file tells of, if it runs.
pub(crate) fn running(file: &PidFile, data_dir: &Path) -> Option<Process> {
    let process = Process::open(file.pid)?;
    is_server(&process, file, data_dir).then_some(process)
}

fn is_server(process: &Process, file: &PidFile, data_dir: &Path) -> bool {
    let traits = Traits {
        arguments: process::command_line(process.pid()).unwrap_or_default(),
        name: process::name(process.pid()),
        began: process::began(process.pid()),
        here: process.serves(data_dir),
        same_user: process.may_serve(data_dir),
    };
    traits.is_server(file.started, data_dir)
}

/// What can be seen of a process.
#[derive(Debug)]
struct Traits {
    /// The program first; empty where they are hidden.
    arguments: Vec<String>,
    name: Option<String>,
    began: Option<SystemTime>,
    /// Whether the data directory is its working directory.
    here: Option<bool>,
    same_user: bool,
}

impl Traits {
    /// `told` is when the server that is looked for began, as it wrote down itself.
    fn is_server(&self, told: Option<SystemTime>, data_dir: &Path) -> bool {
        match self.here {
            Some(false) => false,
            // Somebody's shell may stand in a data directory too; a server of another name began when the file
            // says.
            Some(true) => self.may_be_postgres() || self.began_at(told),
            None if self.is_backend() || !self.may_be_postgres() || !self.same_user => false,
            None => match self.data_dir() {
                Some(named) if is_same(&named, data_dir) => true,
                // `-D` may also name a folder of configuration, which tells where the data is.
                Some(named) if named.join("PG_VERSION").exists() => false,
                _ => self.began_at(told),
            },
        }
    }

    /// Servers of vendors have names of their own around the word; an emulator has it among its arguments.
    fn may_be_postgres(&self) -> bool {
        let programs = self.arguments.iter().take(3);
        let mut words = self.name.iter().chain(programs).peekable();
        words.peek().is_none()
            || words.any(|word| {
                let word = word.rsplit('/').next().unwrap_or_default();
                word.contains("postgres") || word.contains("postmaster")
            })
    }

    /// A server keeps its arguments, what it starts shows what it is.
    fn is_backend(&self) -> bool {
        let title = self.arguments.first();
        title.is_some_and(|title| title.starts_with("postgres: "))
    }

    fn began_at(&self, told: Option<SystemTime>) -> bool {
        let (Some(told), Some(began)) = (told, self.began) else {
            return true;
        };
        let apart = told
            .duration_since(began)
            .unwrap_or_else(|error| error.duration());
        apart <= SAME_START
    }

    /// The folder that the arguments name, if they name it from the root on.
    fn data_dir(&self) -> Option<PathBuf> {
        let mut arguments = self.arguments.iter().skip(1);
        let mut named = None;
        while let Some(argument) = arguments.next() {
            if argument == "-D" {
                named = arguments.next().cloned();
            } else if let Some(value) = argument.strip_prefix("-D") {
                named = Some(value.to_owned());
            }
        }
        named.map(PathBuf::from).filter(|path| path.is_absolute())
    }
}

/// Whether two paths lead to one folder; where that cannot be looked at, whether they are written the same.
fn is_same(one: &Path, other: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (std::fs::metadata(one), std::fs::metadata(other)) {
        (Ok(one), Ok(other)) => (one.dev(), one.ino()) == (other.dev(), other.ino()),
        _ => one == other,
    }
}

/// Whether the pid file of a data directory is still the one that was judged.
pub(crate) fn is_unchanged(file: &PidFile, data_dir: &Path) -> bool {
    matches!(PidFile::read(data_dir), Ok(Some(now)) if now == *file)
        && data_dir.join(PID_FILE).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn hidden(name: &str, arguments: &[&str]) -> Traits {
        Traits {
            arguments: arguments.iter().map(|&word| word.to_owned()).collect(),
            name: Some(name.to_owned()),
            began: Some(at(1_000)),
            here: None,
            same_user: true,
        }
    }

    #[test]
    fn a_process_that_cannot_be_looked_into_is_told_by_name_arguments_and_start() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = |name: &str| {
            let path = scratch.path().join(name);
            std::fs::create_dir(&path).unwrap();
            path
        };
        let (ours, theirs, conf) = (folder("ours"), folder("theirs"), folder("conf"));
        std::fs::write(ours.join("PG_VERSION"), "15\n").unwrap();
        std::fs::write(theirs.join("PG_VERSION"), "15\n").unwrap();
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let told = Some(at(1_001));
        let long_ago = Some(at(1));
        let program = "/usr/lib/postgresql/15/bin/postgres";

        let server = hidden("postgres", &[program, "-D", &text(&ours)]);
        assert!(server.is_server(told, &ours));
        // A clock that was set since does not make it another one.
        assert!(server.is_server(long_ago, &ours));
        let other = hidden("postgres", &[program, "-D", &text(&theirs)]);
        assert!(!other.is_server(told, &ours));
        let attached = hidden("postgres", &[program, &format!("-D{}", text(&theirs))]);
        assert!(!attached.is_server(told, &ours));
        let configured = hidden("postgres", &[program, "-D", &text(&conf)]);
        assert!(configured.is_server(told, &ours));
        assert!(!configured.is_server(long_ago, &ours));
        let silent = hidden("postgres", &[program]);
        assert!(silent.is_server(told, &ours) && !silent.is_server(long_ago, &ours));
        let backend = hidden("postgres", &["postgres: checkpointer "]);
        assert!(!backend.is_server(told, &ours));
        let sleep = hidden("sleep", &["sleep", "600"]);
        assert!(!sleep.is_server(told, &ours));
        let vendor = hidden("edb-postgres", &["/opt/edb/bin/edb-postgres"]);
        assert!(vendor.is_server(told, &ours));
        let emulated = hidden("qemu-x86_64", &["qemu-x86_64", program]);
        assert!(emulated.is_server(told, &ours));
        let nobodys = Traits {
            same_user: false,
            ..hidden("postgres", &[program])
        };
        assert!(!nobodys.is_server(told, &ours));
        // Nothing at all to see: it may be the server.
        let invisible = Traits {
            arguments: Vec::new(),
            name: None,
            began: None,
            here: None,
            same_user: true,
        };
        assert!(invisible.is_server(told, &ours));
    }

    #[test]
    fn a_shell_in_the_data_directory_is_no_server() {
        let dir = Path::new("/nonexistent");
        let shell = Traits {
            here: Some(true),
            ..hidden("bash", &["bash"])
        };
        assert!(!shell.is_server(Some(at(1)), dir));
        assert!(shell.is_server(Some(at(1_001)), dir));
        let elsewhere = Traits {
            here: Some(false),
            ..hidden("postgres", &["postgres", "-D", "/nonexistent"])
        };
        assert!(!elsewhere.is_server(Some(at(1_001)), dir));
    }
}
