//! `postmaster.pid` and the lock file beside a socket.
//!
//! The server writes three lines first and the others as it learns them, and rewrites the last when its
//! state changes; a reader sees any of these moments. So every line may be missing and only the first
//! must be a number. Source: `utils/pidfile.h` and `CreateLockFile`.

use crate::error::{Error, Result};

const SUBJECT: &str = "postmaster.pid";

/// What a `postmaster.pid` says. The same in every supported major.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PostmasterPid {
    /// The process id.
    pub pid: u32,
    /// Whether it is a single-user server, whose id is written as a negative number.
    pub single_user: bool,
    /// The data directory, as the server was given it: a path, in no encoding.
    pub data_dir: Option<Vec<u8>>,
    /// When the server started, in seconds since 1970.
    pub start_time: Option<i64>,
    /// Its port.
    pub port: Option<u16>,
    /// Its first socket directory, a path; `None` also when it has none.
    pub socket_dir: Option<Vec<u8>>,
    /// The first address it listens on; `None` also when it listens on none.
    pub listen_address: Option<String>,
    /// Key and id of its shared memory segment.
    pub shared_memory: Option<(u64, u64)>,
    /// What it is doing.
    pub status: Option<PostmasterStatus>,
}

/// The last line of a `postmaster.pid`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PostmasterStatus {
    /// Not ready for connections yet.
    Starting,
    /// On its way down.
    Stopping,
    /// Ready for connections.
    Ready,
    /// In recovery, and not (yet) open to read-only connections.
    Standby,
    /// A word this crate does not know.
    Other(String),
}

impl PostmasterPid {
    /// Parses a `postmaster.pid`, or the lock file of a socket, which has the first five lines.
    ///
    /// # Errors
    /// [`Malformed`](crate::ErrorKind::Malformed) when the first line is no process id: the file was
    /// just created, is empty after a crash of the machine, or is another file.
    pub fn parse(content: &[u8]) -> Result<Self> {
        let mut lines = content.split(|&byte| byte == b'\n');
        let first = String::from_utf8_lossy(lines.next().unwrap_or_default());
        let first = first.trim();
        let (single_user, digits) = match first.strip_prefix('-') {
            Some(digits) => (true, digits),
            None => (false, first),
        };
        let pid = digits.parse().ok().filter(|pid| *pid != 0);
        let pid =
            pid.ok_or_else(|| Error::malformed(SUBJECT, "no process id in the first line"))?;
        let mut next = || lines.next().filter(|line| !line.is_empty());
        let text = |line: Option<&[u8]>| {
            let line = line.map(String::from_utf8_lossy)?;
            let word = line.trim();
            (!word.is_empty()).then(|| word.to_owned())
        };
        Ok(Self {
            pid,
            single_user,
            data_dir: next().map(ToOwned::to_owned),
            start_time: text(next()).and_then(|line| line.parse().ok()),
            port: text(next()).and_then(|line| line.parse().ok()),
            socket_dir: next().map(ToOwned::to_owned),
            listen_address: text(next()),
            shared_memory: text(next()).and_then(|line| {
                let (key, id) = line.split_once(char::is_whitespace)?;
                Some((key.parse().ok()?, id.trim_start().parse().ok()?))
            }),
            status: text(next()).map(|word| match word.as_str() {
                "starting" => PostmasterStatus::Starting,
                "stopping" => PostmasterStatus::Stopping,
                "ready" => PostmasterStatus::Ready,
                "standby" => PostmasterStatus::Standby,
                _ => PostmasterStatus::Other(word),
            }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: &str =
        "1234\n/srv/data\n1795167245\n5432\n/run\n*\n    10111248     65566\nready   \n";

    #[test]
    fn a_complete_file_is_understood() {
        let read = PostmasterPid::parse(FULL.as_bytes()).unwrap();
        assert_eq!(
            (read.pid, read.single_user, read.port),
            (1234, false, Some(5432))
        );
        assert_eq!(read.data_dir.as_deref(), Some(&b"/srv/data"[..]));
        assert_eq!(read.listen_address.as_deref(), Some("*"));
        assert_eq!(read.shared_memory, Some((10_111_248, 65_566)));
        assert_eq!(read.status, Some(PostmasterStatus::Ready));
    }

    #[test]
    fn paths_are_taken_to_the_byte() {
        let read = PostmasterPid::parse(b"1\n/srv/ caf\xE9 \n1\n5432\n /run\t\n").unwrap();
        assert_eq!(read.data_dir.as_deref(), Some(&b"/srv/ caf\xE9 "[..]));
        assert_eq!(read.socket_dir.as_deref(), Some(&b" /run\t"[..]));
        assert_eq!(read.port, Some(5432));
    }

    #[test]
    fn every_moment_of_its_writing_is_understood() {
        for len in 5..FULL.len() {
            let read = PostmasterPid::parse(&FULL.as_bytes()[..len]).unwrap();
            assert_eq!(read.pid, 1234);
        }
        let single = PostmasterPid::parse(b"-77\n/srv/data\n1795167245\n0\n\n\n").unwrap();
        assert_eq!((single.pid, single.single_user), (77, true));
        assert_eq!((single.socket_dir, single.status), (None, None));
        let later = PostmasterPid::parse(FULL.replace("ready   ", "dreaming").as_bytes()).unwrap();
        assert_eq!(
            later.status,
            Some(PostmasterStatus::Other("dreaming".to_owned()))
        );
    }

    #[test]
    fn a_file_without_process_id_is_refused() {
        for content in ["", "\n", "0\n", "--1\n", "x\n", "99999999999\n", "\0\0\0\0"] {
            assert!(
                PostmasterPid::parse(content.as_bytes()).is_err(),
                "{content:?}"
            );
        }
    }
}
