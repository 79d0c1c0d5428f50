//! What several modules need.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use neon_pagestore::map::{
    At, Attributes, BlockSink, Extent, FileKind, FileState, FrameRef, Group, Machine, MapFrame,
    PackRef, RunWriter, Step, Walk, decode_runs, encode_runs,
};
use neon_pagestore::{
    ClusterFacts, Commit, CommitId, Committed, Facts, OpenOptions, Repository, SnapshotName,
    Writing,
};
use neon_pg_layout::{PgMajor, SystemIdentifier};
use neon_snapshot_format::pack::{
    Codec, EncodedFrame, Flags, FrameCipher, PackOptions, PackWriter,
};
use neon_snapshot_format::{SnapshotKind, SnapshotPath};
use neon_storage::{Storage, StorageExt};

pub(crate) const GRACE: Duration = Duration::from_secs(3600);

pub(crate) fn options() -> OpenOptions {
    OpenOptions::new().grace(GRACE)
}

pub(crate) async fn init(storage: &(impl Storage + Clone)) -> Repository {
    Repository::init(Arc::new(storage.clone()), options())
        .await
        .unwrap()
}

pub(crate) async fn open(storage: &(impl Storage + Clone)) -> Repository {
    Repository::open(Arc::new(storage.clone()), options())
        .await
        .unwrap()
}

/// A commit without pages that no other equals.
pub(crate) fn empty_commit(names: &[&str]) -> Commit {
    static TAKEN: AtomicI64 = AtomicI64::new(1_700_000_000);
    let system = SystemIdentifier::new(7_710_187_071_172_605_999).unwrap();
    let cluster = ClusterFacts::new(system, PgMajor::V17, 8192, 131_072);
    let mut facts = Facts::new(
        SnapshotKind::Cold,
        TAKEN.fetch_add(1, Ordering::Relaxed),
        cluster,
    );
    facts.names = names
        .iter()
        .map(|name| name.parse::<SnapshotName>().unwrap())
        .collect();
    Commit {
        flags: Flags::default(),
        facts,
        runs: Bytes::new(),
    }
}

pub(crate) async fn take(repository: &Repository, names: &[&str]) -> Committed {
    let writing = repository.begin_writing().await.unwrap();
    writing.commit(&empty_commit(names)).await.unwrap()
}

pub(crate) async fn snapshot(repository: &Repository, name: &str) -> CommitId {
    take(repository, &[name]).await.id
}

/// Puts the frames of a map into a pack.
struct Blocks {
    writer: PackWriter<Vec<u8>>,
    pack: PackRef,
}

impl Blocks {
    fn new(writing: &Writing, sealed: bool) -> Self {
        let pack = writing.new_pack().unwrap();
        let mut options = PackOptions::new(pack.id);
        options.cipher = writing
            .cipher(&pack)
            .filter(|_| sealed)
            .map(|cipher| Arc::new(cipher) as Arc<dyn FrameCipher>);
        Self {
            writer: PackWriter::new(Vec::new(), options).unwrap(),
            pack,
        }
    }

    fn frame(&mut self, plain: &[u8]) -> FrameRef {
        let frame = EncodedFrame::new(plain, Codec::Lz4).unwrap();
        let record = self.writer.append_encoded(&frame).unwrap();
        FrameRef {
            pack: self.pack,
            frame: record.address().frame,
            offset: record.offset(),
            stored_length: record.stored_length(),
            plain_length: record.plain_length(),
            codec: record.codec(),
            sealed: record.is_sealed(),
            digest: *record.digest(),
        }
    }

    async fn store(self, writing: &Writing) -> neon_pagestore::Result<()> {
        let key = Repository::pack_key(self.pack.id)?;
        let bytes = self.writer.finish(0, None).unwrap();
        let stored = writing.repository().storage().create(&key, bytes).await;
        stored
            .map(drop)
            .map_err(|error| neon_pagestore::Error::storage(key.as_str(), error))
    }
}

impl BlockSink for Blocks {
    fn put(&mut self, plain: &[u8]) -> neon_pagestore::Result<FrameRef> {
        Ok(self.frame(plain))
    }
}

/// The seed of a page of zeros, which this writer stores in a frame all the same.
pub(crate) const ZEROS: u64 = u64::MAX;

/// Content of a file of one page that no other equals and that does not compress away.
pub(crate) fn page(seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; 8192];
    if seed == ZEROS {
        return bytes;
    }
    let mut output = blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof();
    output.fill(&mut bytes);
    bytes
}

/// A writer's whole work: a snapshot in which these files of one page are new since the parent. Up to sixteen share a frame, so
/// that collections thin frames as soon as some of them are written anew.
pub(crate) async fn try_write(
    repository: &Repository,
    parent: Option<CommitId>,
    files: &[(&str, u64)],
    names: &[&str],
) -> neon_pagestore::Result<Committed> {
    try_write_as(repository, parent, files, names, true).await
}

/// As [`try_write`]; without `sealed` nothing is encrypted that this writer stores in packs, not even where it should be.
pub(crate) async fn try_write_as(
    repository: &Repository,
    parent: Option<CommitId>,
    files: &[(&str, u64)],
    names: &[&str],
    sealed: bool,
) -> neon_pagestore::Result<Committed> {
    let writing = repository.begin_writing().await?;
    let mut commit = empty_commit(names);
    commit.facts.parent = parent;
    let mut runs = Vec::new();
    if let Some(parent) = parent {
        runs = decode_runs(&writing.protect(parent).await?.runs)?;
    }
    let mut files = files.to_vec();
    files.sort_unstable();
    let (mut data, mut blocks) = (Blocks::new(&writing, sealed), Blocks::new(&writing, sealed));
    let mut run = RunWriter::new(&mut blocks, 8192)?;
    let together = files.chunks(16).flat_map(|some| {
        let pages: Vec<u8> = some.iter().flat_map(|(_, seed)| page(*seed)).collect();
        let frame = data.frame(&pages);
        some.iter()
            .zip((0..).step_by(8192))
            .map(move |(file, offset)| (file, frame, offset))
    });
    for ((path, seed), frame, offset) in together.collect::<Vec<_>>() {
        let plain = page(*seed);
        let digest = blake3::hash(&plain);
        let state = FileState::Present {
            attributes: Attributes {
                kind: FileKind::File { size: 8192 },
                mode: 0o600,
                owner: None,
                modified: 0,
            },
            limit: 0,
        };
        let group = Group {
            path: SnapshotPath::new(path.as_bytes().to_vec()).unwrap(),
            state,
            extents: vec![Extent {
                page: 0,
                count: 1,
                at: At::Frame { frame, offset },
            }],
        };
        run.push(&group, &[*digest.as_bytes().first_chunk().unwrap()])?;
    }
    let (newest, _) = run.finish()?;
    data.store(&writing).await?;
    blocks.store(&writing).await?;
    runs.insert(0, newest);
    commit.runs = encode_runs(&runs).into();
    writing.commit(&commit).await
}

pub(crate) async fn write(
    repository: &Repository,
    parent: Option<CommitId>,
    files: &[(&str, u64)],
    names: &[&str],
) -> CommitId {
    try_write(repository, parent, files, names)
        .await
        .unwrap()
        .id
}

/// Reads every file of a snapshot and checks its content; returns paths and seeds.
pub(crate) async fn read(
    repository: &Repository,
    id: CommitId,
) -> neon_pagestore::Result<Vec<String>> {
    let (_, commit) = repository.read_commit(id).await?;
    let reader = repository.frames();
    let mut walk = Walk::new(&commit.view()?, true);
    let mut paths = Vec::new();
    loop {
        match walk.step()? {
            Step::Need(frames) => {
                for frame in frames {
                    let content = MapFrame::decode(&reader.get(&frame).await?)?;
                    walk.feed(&frame, content);
                }
            }
            Step::Ready(None) => return Ok(paths),
            Step::Ready(Some(file)) => {
                let FileKind::File { size } = file.attributes.kind else {
                    continue;
                };
                let mut digests = file.digests.iter();
                for extent in &file.extents {
                    let At::Frame { frame, offset } = &extent.at else {
                        continue;
                    };
                    for number in 0..extent.count {
                        let left = size - u64::from(extent.page + number) * 8192;
                        let from = u64::from(offset + number * 8192);
                        let page = from..from + left.min(8192);
                        let page = reader.get_range(frame, page).await?;
                        let digest = digests.next().unwrap();
                        assert_eq!(blake3::hash(&page).as_bytes()[..16], *digest);
                    }
                }
                paths.push(file.path.to_string());
            }
        }
    }
}
