//! Whether a snapshot runs on this machine: asked before any data moves.

use neon_pagestore::Facts;
use neon_pgctl::facts::{self, Cluster, Database, Difference, Extension, Impact, Platform};

use crate::error::{Error, ErrorKind, Result};
use crate::events::Event;
use crate::neon::Neon;
use crate::snapshots::needs;

/// What a snapshot says of where it comes from, as the comparison takes it. What is not known is empty.
fn origin(facts: &Facts) -> facts::Facts {
    if let Some(recorded) = needs::recorded(facts) {
        return recorded;
    }
    let (needs, cluster) = (&facts.needs, &facts.cluster);
    let mut origin = facts::Facts::default();
    origin.platform = Platform::default();
    origin.platform.major = cluster.major.number();
    origin.platform.libc.clone_from(&needs.libc);
    origin.platform.icu = needs.icu.as_ref().and_then(|version| {
        let digits: String = version
            .chars()
            .skip_while(|letter| !letter.is_ascii_digit())
            .take_while(char::is_ascii_digit)
            .collect();
        digits.parse().ok()
    });
    let here = std::env::consts::ARCH;
    let architecture = needs.architecture.as_deref().unwrap_or(here);
    origin.platform.little_endian = little_endian(architecture);
    architecture.clone_into(&mut origin.platform.architecture);
    let mut described = Cluster::default();
    described.major = cluster.major.number();
    described.block_size = cluster.block_size;
    described.segment_blocks = cluster.segment_blocks;
    described.wal_block_size = cluster.wal_block_size;
    described.wal_segment_size = cluster.wal_segment_size.into();
    described.checksums = cluster.checksum_version != 0;
    described.preload.clone_from(&needs.preload_libraries);
    let mut database = Database::default();
    for (name, version) in &needs.extensions {
        let mut extension = Extension::default();
        extension.name.clone_from(name);
        extension.version.clone_from(version);
        database.extensions.push(extension);
    }
    described.databases = Some(vec![database]);
    origin.cluster = Some(described);
    origin
}

fn little_endian(architecture: &str) -> bool {
    let big = [
        "s390x",
        "powerpc64",
        "powerpc",
        "ppc64",
        "ppc",
        "mips",
        "sparc64",
    ];
    !big.contains(&architecture)
}

/// Tells what is different here, with its repair, and refuses what would not run.
pub(crate) fn check(
    neon: &Neon,
    subject: &str,
    facts: &Facts,
    platform: Platform,
    force: bool,
) -> Result<()> {
    let mut here = facts::Facts::default();
    here.platform = platform;
    let mut refused = None;
    for difference in facts::compare(&origin(facts), &here) {
        let text = told(&difference);
        match difference.impact {
            Impact::Notice => neon.tell(Event::Note(text)),
            Impact::Fails if force => neon.tell(Event::Warning(text)),
            // The worst comes first.
            Impact::Impossible | Impact::Fails => {
                if refused.is_some() {
                    neon.tell(Event::Warning(text));
                } else {
                    refused = Some(difference);
                }
            }
            _ => neon.tell(Event::Warning(text)),
        }
    }
    let Some(worst) = refused else {
        return Ok(());
    };
    let mut repair = repair(&worst);
    if worst.impact == Impact::Fails {
        repair.push_str("; or create it all the same with --force");
    }
    Err(Error::new(
        ErrorKind::Environment,
        subject,
        format!("would not run here: {worst}"),
    )
    .hinted(repair))
}

fn told(difference: &Difference) -> String {
    match repair(difference) {
        repair if repair.is_empty() => difference.to_string(),
        repair => format!("{difference}; {repair}"),
    }
}

fn repair(difference: &Difference) -> String {
    let mut parts: Vec<&str> = difference.advice.as_deref().into_iter().collect();
    parts.extend(difference.statements.iter().map(String::as_str));
    parts.join("; ")
}
