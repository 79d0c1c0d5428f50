//! What a home remembers of an instance.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use neon_pagestore::{CommitId, LineageId};
use neon_pgctl::Instance;
use serde::{Deserialize, Serialize};

use crate::instances::checkout::{Phase, UnderWay};
use crate::instances::heads::Head;
use crate::instances::replica::ReplicaOf;
use crate::name::Name;

/// How far an instance is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Stage {
    /// Its folder is being made.
    Creating,
    /// It is there.
    Ready,
    /// It is on its way to the trash.
    Destroying,
}

/// What a home remembers of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PgRecord {
    /// Its id: random, never used again.
    pub id: String,
    /// Its name.
    pub name: Name,
    /// How far it is.
    pub stage: Stage,
    /// The major version.
    pub major: String,
    /// The programs it was made with.
    pub bin_dir: PathBuf,
    /// Where its snapshots go.
    pub storage: Name,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// The port it got at its first start, kept for it also while it does not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Whether its server shall run: what a start after a reboot brings back.
    pub wanted: bool,
    /// The history of log it is on: new with every creation, clone and checkout.
    pub lineage: LineageId,
    /// What this lineage began with, if it began with a snapshot: the only snapshot of before that its next one can share
    /// pages with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<Base>,
    /// How many checkouts there were: the number of the next `HEAD{i}`. Never goes down.
    #[serde(default)]
    pub checkouts: u32,
    /// Every timeline that the instance ever was on. A checkout ends on one that is not among them.
    #[serde(default)]
    pub timelines: BTreeSet<u32>,
    /// Where the cluster is, of an adopted instance; below the home if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adopted: Option<AdoptedPlace>,
    /// How its folder came to be, of one made from a snapshot: `copy`, `reflink`, `subvolume`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// The data directory, if somebody chose a place for it; below the home if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pgdata: Option<PathBuf>,
    /// Whether the folder for tablespaces beside that place is ours: said before we make it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tablespaces_beside: bool,
    /// What it has on file systems that are mounted somewhere, and where they are: below the home relative to it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub disks: BTreeMap<PathBuf, PathBuf>,
    /// Whose replica it is, of one that was made to follow another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replica: Option<ReplicaOf>,
    /// The instance of this name whose directory is gone, while it is made anew from a snapshot: holds again if that fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_place_of: Option<Box<Self>>,
    /// The states before its checkouts that are kept, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub heads: Vec<Head>,
    /// A checkout that is under way, or was when a command was killed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkout: Option<UnderWay>,
}

impl PgRecord {
    /// The role that we connect as, where something says which: that of an adopted cluster, or of the pass file.
    pub(crate) fn superuser(&self, instance: &Instance) -> Option<String> {
        if let Some(place) = &self.adopted
            && place.superuser.is_some()
        {
            return place.superuser.clone();
        }
        let line = std::fs::read_to_string(instance.pass_file()?).ok()?;
        let user = line.split(':').nth(3)?;
        (!user.contains('\\')).then(|| user.to_owned())
    }

    /// Whether its data directory is being rewritten.
    pub(crate) fn is_changing(&self) -> bool {
        let phase = self.checkout.as_ref().map(|under_way| under_way.phase);
        phase == Some(Phase::Changing)
    }

    /// Whether a checkout is done, and its server not started.
    pub(crate) fn is_rolled_back(&self) -> bool {
        let phase = self.checkout.as_ref().map(|under_way| under_way.phase);
        phase == Some(Phase::Starting)
    }
}

/// The snapshot that a lineage began with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// Its id.
    pub snapshot: CommitId,
    /// The storage it was taken from, by its name then; absent for one that came from outside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<Name>,
    /// Where it is, while it is needed, of one in a storage that is not attached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locator: Option<String>,
    /// Where in the log the clean stop is with which the directory was handed over: from there on others ran servers on
    /// it. Absent while it is being made, and of lineages that began before this was written down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handed_over: Option<String>,
}

/// Where an adopted cluster is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct AdoptedPlace {
    /// Its data directory.
    pub data_dir: PathBuf,
    /// Its configuration file, where that is not in the data directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_file: Option<PathBuf>,
    /// The port it had, where neither its files nor the options of its start said so: that of its environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The folder of its socket, as it is configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket_dir: Option<PathBuf>,
    /// A file with the role and password to connect with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pass_file: Option<PathBuf>,
    /// The role to connect as without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub superuser: Option<String>,
    /// Who starts and stops it, if not we.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub managed_by: Option<String>,
}
