//! `pg psql`, `pg url`, `pg logs`

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use neon_pg::{Name, OsUser};
use serde_json::json;

use super::{Scene, Then};
use crate::args::pg::{Logs, Psql, Url};
use crate::args::{Format, NAME};
use crate::failure::{Failure, Outcome};
use crate::render::{Answer, write};

/// How often a log is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// The URI that connects to an instance, with its password.
pub(crate) async fn uri(name: &Name, database: &str, scene: &Scene<'_>) -> Outcome<String> {
    let instance = scene.neon.pg().instance(name).await?;
    instance.uri(database).map_err(|error| {
        let failure = Failure::own(
            1,
            "failed/server-not-running",
            format!("pg {name}: no server runs"),
        )
        .hinted(format!("{NAME} pg start {name}"));
        match error.hint() {
            Some(hint) => failure.because(hint),
            None => failure,
        }
    })
}

pub(crate) async fn url(wanted: &Url, scene: &Scene<'_>) -> Outcome<Answer> {
    let uri = uri(&wanted.name, &wanted.database, scene).await?;
    let instance = scene.neon.pg().instance(&wanted.name).await?;
    if let Some(user) = instance.peer().and_then(OsUser::name) {
        scene.note(&format!(
            "No password of {name} is known here, and its socket asks who connects: use it as {user} (runuser -u {user} -- …); \
             {NAME} pg psql {name} does",
            name = wanted.name
        ));
    }
    Ok(Answer::of(
        uri.clone(),
        json!({ "name": wanted.name, "url": uri }),
    ))
}

/// Becomes psql, with the URI in its environment: arguments can be read by everybody on the machine.
pub(crate) async fn psql(wanted: &Psql, scene: &Scene<'_>) -> Outcome<Then> {
    let uri = uri(&wanted.name, &wanted.database, scene).await?;
    let instance = scene.neon.pg().instance(&wanted.name).await?;
    let installation = instance.installation();
    let beside = installation.tool("psql").ok();
    let is_beside = beside.is_some();
    let program = match beside {
        Some(program) => program,
        None => on_path(scene).ok_or_else(|| {
            Failure::environment(format!(
                "psql is neither in {} nor on PATH",
                installation.bin_dir().display()
            ))
            .hinted(format!(
                "install the client of PostgreSQL (Debian: apt-get install postgresql-client), \
                 or use any client with the URI of: {} pg url {}",
                NAME, wanted.name
            ))
        })?,
    };
    let mut command = Command::new(program);
    // Root is let in as the user that the server runs as, which a socket without a password may want to see. Nor does root run
    // what others can write.
    let others = (is_beside && installation.is_others("psql")).then(|| instance.os_user());
    let user = instance.peer().or(others);
    for variable in scene.surroundings.names() {
        if is_of_connection(variable) || user.is_some() && !is_for_everybody(variable) {
            command.env_remove(variable);
        }
    }
    for (key, value) in connection(&uri) {
        command.env(key, value);
    }
    if let Some(libraries) = installation.library_path() {
        command.env("LD_LIBRARY_PATH", libraries);
    }
    if let Some(user) = user {
        command.uid(user.uid()).gid(user.gid());
    }
    command.args(&wanted.arguments);
    Ok(Then::Become(Box::new(command)))
}

/// Whether a variable may go to a program that another user than ours runs, who can read it in `/proc`: how it looks and what it
/// is operated with. Nothing else of ours is theirs to see.
fn is_for_everybody(variable: &OsStr) -> bool {
    const KEPT: [&str; 17] = [
        "COLORTERM",
        "COLUMNS",
        "EDITOR",
        "LANG",
        "LANGUAGE",
        "LESS",
        "LESSCHARSET",
        "LINES",
        "MORE",
        "NO_COLOR",
        "PAGER",
        "PATH",
        "TERM",
        "TERMINFO",
        "TZ",
        "TZDIR",
        "VISUAL",
    ];
    let bytes = variable.as_encoded_bytes();
    let of_looks = ["LC_", "PG", "PSQL_"].iter();
    let mut of_looks = of_looks.map(|start| bytes.starts_with(start.as_bytes()));
    of_looks.any(|is| is) || KEPT.iter().any(|kept| variable == *kept)
}

/// Whether a variable is one that libpq connects by: all of `PG…` but those that say how answers and programs look.
fn is_of_connection(variable: &OsStr) -> bool {
    const KEPT: [&str; 6] = [
        "PGAPPNAME",
        "PGCLIENTENCODING",
        "PGCONNECT_TIMEOUT",
        "PGDATESTYLE",
        "PGLOCALEDIR",
        "PGTZ",
    ];
    variable.as_encoded_bytes().starts_with(b"PG") && !KEPT.iter().any(|kept| variable == *kept)
}

/// The parts of a URI that we made, as the variables of libpq.
fn connection(uri: &str) -> Vec<(&'static str, String)> {
    let rest = uri.strip_prefix("postgresql://").unwrap_or(uri);
    let (login, rest) = rest.split_once('@').unwrap_or(("", rest));
    let (user, password) = login.split_once(':').unwrap_or((login, ""));
    let (place, rest) = rest.split_once('/').unwrap_or((rest, ""));
    let (database, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (mut host, mut port) = match place.rsplit_once(':') {
        Some((host, port)) => (host.trim_matches(['[', ']']), port),
        None => (place, ""),
    };
    for pair in query.split('&') {
        match pair.split_once('=') {
            Some(("host", value)) => host = value,
            Some(("port", value)) => port = value,
            _ => {}
        }
    }
    [
        ("PGHOST", host),
        ("PGPORT", port),
        ("PGUSER", user),
        ("PGPASSWORD", password),
        ("PGDATABASE", database),
    ]
    .into_iter()
    .filter(|(_, value)| !value.is_empty())
    .map(|(key, value)| (key, unescaped(value)))
    .collect()
}

fn unescaped(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let escaped = (*first == b'%')
            .then(|| after.get(..2))
            .flatten()
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        match escaped {
            Some(byte) => {
                bytes.push(byte);
                rest = after.get(2..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn on_path(scene: &Scene<'_>) -> Option<PathBuf> {
    let path = scene.surroundings.get("PATH")?;
    std::env::split_paths(path)
        .map(|folder| folder.join("psql"))
        .find(|program| program.is_file())
}

pub(crate) async fn logs(wanted: &Logs, scene: &Scene<'_>) -> Outcome<Answer> {
    let instance = scene.neon.pg().instance(&wanted.name).await?;
    let lines = instance.log_tail(wanted.lines);
    if lines.is_empty() && scene.neon.pg().record_of(&wanted.name)?.adopted.is_some() {
        scene.note(&format!(
            "{} was adopted, and its server has no log collector: it logs where who started it said (journalctl -u UNIT, the file of pg_ctl -l, /var/log/postgresql)",
            wanted.name
        ));
    }
    if !wanted.follow {
        let text = lines.join("\n");
        let rows = lines
            .into_iter()
            .map(|line| json!({ "line": line }))
            .collect();
        return Ok(Answer {
            text,
            ..Answer::list(&crate::render::Table::new(&[]), "lines", rows)
        });
    }
    let mut watched: Vec<Watched> = Vec::new();
    // What was there before is shown as its tail; each file goes on from its end.
    let mut first = true;
    for line in &lines {
        print(scene, line.as_bytes())?;
    }
    loop {
        let files = instance.log_files();
        for path in [Some(files.start), files.collected].into_iter().flatten() {
            if !watched.iter().any(|file| file.path == path) {
                watched.push(Watched::new(path, first));
            }
        }
        first = false;
        for file in &mut watched {
            for line in file.lines() {
                print(scene, &line)?;
            }
        }
        if scene.is_stopped() {
            return Err(Failure::Silent { exit: 0 });
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn print(scene: &Scene<'_>, line: &[u8]) -> Outcome<()> {
    if scene.settings.output == Format::Table {
        let mut whole = line.to_vec();
        whole.push(b'\n');
        return write(&whole);
    }
    let line = json!({ "line": String::from_utf8_lossy(line) });
    write(format!("{line}\n").as_bytes())
}

/// A file that is followed.
struct Watched {
    path: PathBuf,
    at: u64,
    inode: u64,
    partial: Vec<u8>,
}

impl Watched {
    fn new(path: PathBuf, from_end: bool) -> Self {
        let meta = std::fs::metadata(&path).ok();
        Self {
            at: meta
                .as_ref()
                .filter(|_| from_end)
                .map_or(0, MetadataExt::size),
            inode: meta.map_or(0, |meta| meta.ino()),
            path,
            partial: Vec::new(),
        }
    }

    /// The whole lines that came since.
    fn lines(&mut self) -> Vec<Vec<u8>> {
        let Some(mut new) = self.news(&self.path.clone()) else {
            return Vec::new();
        };
        let mut whole = std::mem::take(&mut self.partial);
        whole.append(&mut new);
        let mut lines: Vec<Vec<u8>> = whole
            .split(|byte| *byte == b'\n')
            .map(<[u8]>::to_vec)
            .collect();
        self.partial = lines.pop().unwrap_or_default();
        lines
    }

    fn news(&mut self, path: &Path) -> Option<Vec<u8>> {
        let mut file = File::open(path).ok()?;
        let meta = file.metadata().ok()?;
        if meta.ino() != self.inode || meta.size() < self.at {
            // Another file of that name, or it was begun anew.
            (self.inode, self.at) = (meta.ino(), 0);
        }
        file.seek(SeekFrom::Start(self.at)).ok()?;
        let mut new = Vec::new();
        let read = file.take(1 << 20).read_to_end(&mut new).ok()?;
        self.at = self.at.saturating_add(u64::try_from(read).unwrap_or(0));
        Some(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leads_to_another_server_is_not_passed_on() {
        for variable in [
            "PGHOST",
            "PGHOSTADDR",
            "PGPORT",
            "PGDATABASE",
            "PGUSER",
            "PGPASSWORD",
            "PGPASSFILE",
            "PGSERVICE",
            "PGSERVICEFILE",
            "PGOPTIONS",
            "PGSSLMODE",
            "PGSSLCERT",
            "PGREQUIREPEER",
            "PGREQUIREAUTH",
            "PGCHANNELBINDING",
            "PGTARGETSESSIONATTRS",
            "PGLOADBALANCEHOSTS",
            "PGKRBSRVNAME",
            "PGGSSENCMODE",
            "PGSYSCONFDIR",
        ] {
            assert!(is_of_connection(OsStr::new(variable)), "{variable}");
        }
        for variable in ["PGAPPNAME", "PGTZ", "PSQLRC", "PSQL_PAGER", "PAGER", "PATH"] {
            assert!(!is_of_connection(OsStr::new(variable)), "{variable}");
        }
    }

    #[test]
    fn nothing_secret_goes_to_a_psql_of_another_user() {
        for variable in [
            "NEON_PASSPHRASE",
            "NEON_HOME",
            "AWS_SECRET_ACCESS_KEY",
            "AWS_SESSION_TOKEN",
            "SSH_AUTH_SOCK",
            "VAULT_TOKEN",
            "HOME",
            "LD_PRELOAD",
            "PSQLRC",
        ] {
            assert!(!is_for_everybody(OsStr::new(variable)), "{variable}");
        }
        for variable in [
            "TERM",
            "LANG",
            "LC_ALL",
            "PAGER",
            "PSQL_PAGER",
            "PSQL_EDITOR",
            "EDITOR",
            "TZ",
            "COLUMNS",
            "LINES",
            "PATH",
            "PGAPPNAME",
            "PGTZ",
        ] {
            assert!(is_for_everybody(OsStr::new(variable)), "{variable}");
        }
    }

    #[test]
    fn a_uri_becomes_the_variables_of_libpq() {
        let of = |uri| {
            let mut text = String::new();
            for (key, value) in connection(uri) {
                text.push_str(&format!("{key}={value} "));
            }
            text
        };
        assert_eq!(
            of("postgresql://me:a%3Ab%40@localhost:5440/my%20db"),
            "PGHOST=localhost PGPORT=5440 PGUSER=me PGPASSWORD=a:b@ PGDATABASE=my db "
        );
        assert_eq!(
            of("postgresql://me@/db?host=%2Ftmp%2Fx&port=1"),
            "PGHOST=/tmp/x PGPORT=1 PGUSER=me PGDATABASE=db "
        );
        assert_eq!(
            of("postgresql://me@[::1]:7/db"),
            "PGHOST=::1 PGPORT=7 PGUSER=me PGDATABASE=db "
        );
    }
}
