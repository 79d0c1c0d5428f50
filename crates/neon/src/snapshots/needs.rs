//! What a snapshot needs of the machine it is to run on.

use std::collections::BTreeMap;

use neon_pagestore::{Facts, Needs};
use neon_pgctl::Instance;
use neon_pgctl::facts::{Facts as ServerFacts, Provider};

use crate::error::{Error, ErrorKind, Result};
use crate::events::Event;
use crate::neon::Neon;

/// The label under which all facts of the machine and the cluster stand, as JSON of
/// [`neon_pgctl::facts::Facts`], to be [compared](neon_pgctl::facts::compare) where the snapshot is used.
pub(crate) const FACTS: &str = "facts";
/// The label with the name that the instance had.
pub(crate) const PG: &str = "pg";

/// Labels that begin so have the text of a configuration file that was not in the data directory, as Debian keeps them:
/// `config/postgresql.conf`, `config/pg_hba.conf`, `config/pg_ident.conf`.
pub(crate) const CONFIG: &str = "config/";
/// The longest configuration file that is kept so.
const LONGEST: u64 = 256 << 10;

/// Records configuration that stands elsewhere than in the data directory, so that who restores it elsewhere can read it.
pub(crate) fn record_configuration(facts: &mut Facts, instance: &Instance) {
    let main = instance.config_file();
    if main.starts_with(instance.data_dir()) {
        return;
    }
    let folder = main.parent().unwrap_or(&main);
    for name in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
        let path = match name {
            "postgresql.conf" => main.clone(),
            _ => folder.join(name),
        };
        let short = std::fs::metadata(&path).is_ok_and(|facts| facts.len() <= LONGEST);
        if let Some(text) = short.then(|| std::fs::read(&path).ok()).flatten() {
            let text = String::from_utf8_lossy(&text).into_owned();
            facts.labels.insert(format!("{CONFIG}{name}"), text);
        }
    }
}

/// Asks the server, if one runs, or the files. A server whose databases cannot all be asked keeps nobody from a snapshot.
pub(crate) async fn ask(
    neon: &Neon,
    instance: &Instance,
    running: bool,
    subject: &str,
) -> Result<ServerFacts> {
    if running {
        match instance.online_facts().await {
            Ok(facts) => return Ok(facts),
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                neon.tell(Event::Note(format!(
                    "The databases of {subject} could not be asked for extensions and collations: {}.",
                    cause.unwrap_or_else(|| error.to_string())
                )));
            }
        }
    }
    let facts = instance.offline_facts().await;
    facts.map_err(|error| Error::server(subject, error))
}

/// Records them with the snapshot. Without a server nobody tells what is in the databases: then what the parent knew is
/// taken over.
pub(crate) fn record(facts: &mut Facts, found: &ServerFacts, parent: Option<&Facts>) -> Result<()> {
    let mut found = found.clone();
    if let Some(cluster) = &mut found.cluster
        && cluster.databases.is_none()
    {
        let before = parent.and_then(recorded).and_then(|before| before.cluster);
        cluster.databases = before.and_then(|before| before.databases);
    }
    let platform = &found.platform;
    let mut needs = Needs::default();
    needs.architecture = Some(platform.architecture.clone());
    needs.libc = platform.libc.clone();
    needs.icu = platform.icu.map(|version| version.to_string());
    let (mut collations, mut extensions) = (BTreeMap::new(), BTreeMap::new());
    if let Some(cluster) = &found.cluster {
        needs.preload_libraries = cluster.preload.clone();
        for database in cluster.databases.iter().flatten() {
            for extension in &database.extensions {
                extensions.insert(extension.name.clone(), extension.version.clone());
            }
            for collation in &database.collations {
                if collation.provider == Provider::Builtin {
                    continue;
                }
                let version = collation.recorded.as_ref().or(collation.actual.as_ref());
                if let Some(version) = version {
                    let name = collation.name.as_deref().unwrap_or(&collation.locale);
                    collations.insert(format!("{}: {name}", database.name), version.clone());
                }
            }
        }
    }
    needs.collations = collations;
    needs.extensions = extensions;
    facts.needs = needs;
    // What the origin could run says nothing about what this cluster needs, and is long.
    found.platform.extensions.clear();
    found.platform.libraries.clear();
    let text = serde_json::to_string(&found).map_err(|error| {
        Error::new(ErrorKind::Failed, "facts of the machine", "cannot be kept").caused_by(error)
    })?;
    facts.labels.insert(FACTS.to_owned(), text);
    Ok(())
}

/// What was recorded with a snapshot, to be compared with the machine it is to run on; nothing for one that did not.
pub(crate) fn recorded(facts: &Facts) -> Option<ServerFacts> {
    serde_json::from_str(facts.labels.get(FACTS)?).ok()
}
