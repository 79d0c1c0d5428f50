//! A pack on its way into a storage.
//!
//! The thread that makes frames writes them into a bounded channel; a task of the runtime feeds the channel
//! to one create-only put. A slow storage so holds the thread up, and memory stays at a few pieces. Unless
//! the thread says that the pack is complete, the body ends with an error and the storage keeps nothing.

use std::io::{self, Write};
use std::sync::Arc;

use bytes::Bytes;
use neon_snapshot_format::pack::{
    Codec, EncodedFrame, FrameCipher, FrameRecord, PackOptions, PackWriter,
};
use neon_storage::{Body, Key, Storage};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::bridge::Bridge;
use crate::error::{Error, ErrorKind, Result};
use crate::map::{FrameRef, PackRef};
use crate::repository::put_new;

/// Packs are ended when they have grown to this.
pub(crate) const PACK_SIZE: u64 = 64 << 20;
const PIECE: usize = 256 << 10;
/// Pieces under way between the thread and the storage.
const PIECES: usize = 4;

/// Writes one pack from a thread outside of the runtime.
///
/// Dropped before [`finish`](Self::finish), it leaves nothing in the storage.
#[derive(Debug)]
pub struct PackUpload {
    writer: PackWriter<Pieces>,
    pack: PackRef,
    put: Uploaded,
}

/// A pack whose last byte was handed over. It is durable when [`wait`](Self::wait) returns.
#[derive(Debug)]
#[must_use = "the pack is in the storage only when this was waited for"]
pub struct Uploaded {
    bridge: Bridge,
    task: Option<JoinHandle<neon_storage::Result<u64>>>,
    key: Key,
}

impl Uploaded {
    /// Waits until the storage has the pack, as durable as it promises; returns the pack's size.
    ///
    /// # Errors
    /// What the storage returns.
    pub fn wait(mut self) -> Result<u64> {
        self.outcome()
    }

    fn outcome(&mut self) -> Result<u64> {
        let Some(task) = self.task.take() else {
            return Err(Error::new(
                ErrorKind::Storage,
                self.key.as_str(),
                "was given up",
            ));
        };
        match self.bridge.wait(task) {
            Ok(Ok(size)) => Ok(size),
            Ok(Err(error)) => Err(Error::storage(self.key.as_str(), error)),
            Err(error) => Err(Error::new(
                ErrorKind::Storage,
                self.key.as_str(),
                "the task that stored it failed",
            )
            .caused_by(error)),
        }
    }

    /// Why a pack could not be written: the storage's own error, if it was the storage that stopped taking it.
    fn why(&mut self, error: neon_snapshot_format::Error) -> Error {
        use std::error::Error as _;
        let gone = error
            .source()
            .and_then(|source| source.downcast_ref::<io::Error>())
            .is_some_and(|source| source.kind() == io::ErrorKind::BrokenPipe);
        match gone.then(|| self.outcome()) {
            Some(Err(storage)) => storage,
            _ => Error::format(self.key.as_str(), error),
        }
    }
}

impl PackUpload {
    /// Begins a pack under this key.
    ///
    /// # Errors
    /// When there is no runtime to run the put on, and what the storage returns.
    pub(crate) fn begin(
        bridge: &Bridge,
        storage: Arc<dyn Storage>,
        key: Key,
        pack: PackRef,
        codec: Codec,
        cipher: Option<Arc<dyn FrameCipher>>,
    ) -> Result<Self> {
        let (sender, receiver) = mpsc::channel(PIECES);
        let target = key.clone();
        let task = bridge.spawn(async move {
            let body = Body::stream(body(receiver));
            let stored = put_new(&*storage, &target, body).await?;
            Ok(stored.size)
        });
        let put = Uploaded {
            bridge: bridge.clone(),
            task: Some(task),
            key,
        };
        let stream = Pieces {
            bridge: bridge.clone(),
            sender,
            piece: Vec::with_capacity(PIECE),
        };
        let options = PackOptions {
            id: pack.id,
            codec,
            cipher,
        };
        match PackWriter::new(stream, options) {
            Ok(writer) => Ok(Self { writer, pack, put }),
            Err(error) => Err(Error::format(put.key.as_str(), error)),
        }
    }

    /// The pack.
    pub fn pack(&self) -> PackRef {
        self.pack
    }

    /// Bytes written so far.
    pub fn position(&self) -> u64 {
        self.writer.position()
    }

    /// Appends a frame. Waits while the storage is slower than the frames come. The address is good once the
    /// pack is durable.
    ///
    /// # Errors
    /// What the cipher or the storage returns.
    pub fn append(&mut self, frame: &EncodedFrame<'_>) -> Result<FrameRef> {
        match self.writer.append_encoded(frame) {
            Ok(record) => Ok(reference(self.pack, &record)),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// Ends the pack. The rest of it is stored while the caller goes on; see [`Uploaded::wait`].
    ///
    /// # Errors
    /// What the storage returns.
    pub fn finish(self) -> Result<Uploaded> {
        let Self { writer, put, .. } = self;
        let ended = writer.finish(0, None).and_then(|pieces| {
            pieces.end().map_err(|error| {
                neon_snapshot_format::Error::io(put.key.as_str(), "cannot be stored", error)
            })
        });
        let mut put = put;
        match ended {
            Ok(()) => Ok(put),
            Err(error) => Err(put.why(error)),
        }
    }

    /// The storage's own error, if it was the storage that failed. Nothing of the pack remains.
    fn failed(&mut self, error: neon_snapshot_format::Error) -> Error {
        self.put.why(error)
    }
}

/// A frame's address and what its pack's directory says about it.
pub(crate) fn reference(pack: PackRef, record: &FrameRecord) -> FrameRef {
    FrameRef {
        pack,
        frame: record.address().frame,
        offset: record.offset(),
        stored_length: record.stored_length(),
        plain_length: record.plain_length(),
        codec: record.codec(),
        sealed: record.is_sealed(),
        digest: *record.digest(),
    }
}

#[derive(Debug)]
enum Piece {
    Bytes(Bytes),
    End,
}

/// The body of the put: an error unless the end was said.
fn body(
    receiver: mpsc::Receiver<Piece>,
) -> impl futures_util::Stream<Item = io::Result<Bytes>> + Send + 'static {
    futures_util::stream::unfold(Some(receiver), |receiver| async move {
        let mut receiver = receiver?;
        match receiver.recv().await {
            Some(Piece::Bytes(bytes)) => Some((Ok(bytes), Some(receiver))),
            Some(Piece::End) => None,
            None => Some((
                Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the writer of the pack gave up",
                )),
                None,
            )),
        }
    })
}

#[derive(Debug)]
struct Pieces {
    bridge: Bridge,
    sender: mpsc::Sender<Piece>,
    piece: Vec<u8>,
}

impl Pieces {
    fn send(&mut self, piece: Piece) -> io::Result<()> {
        self.bridge.wait(self.sender.send(piece)).map_err(|_| {
            io::Error::new(
                io::ErrorKind::BrokenPipe,
                "the storage stopped taking the pack",
            )
        })
    }

    fn end(mut self) -> io::Result<()> {
        self.flush()?;
        self.send(Piece::End)
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.piece.extend_from_slice(bytes);
        if self.piece.len() >= PIECE {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE));
        self.send(Piece::Bytes(Bytes::from(piece)))
    }
}

#[cfg(test)]
mod tests {
    use neon_storage::{Fault, Faulty, Memory, StorageExt};

    use super::*;
    use crate::crypt::DataKey;
    use crate::id::WriterId;
    use crate::keys;

    fn pack() -> PackRef {
        PackRef {
            id: WriterId::random().unwrap().new_pack().unwrap(),
            key: DataKey::random().unwrap(),
        }
    }

    /// Runs in a thread beside the runtime, as writers do.
    async fn beside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        tokio::task::spawn_blocking(work).await.unwrap()
    }

    fn begin(storage: Arc<dyn Storage>, pack: PackRef) -> PackUpload {
        let bridge = Bridge::current().unwrap();
        let key = keys::pack(pack.id).unwrap();
        PackUpload::begin(&bridge, storage, key, pack, Codec::Lz4, None).unwrap()
    }

    fn noise(length: usize, seed: u64) -> Vec<u8> {
        let mut state = seed | 1;
        std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[0]
        })
        .take(length)
        .collect()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn what_was_appended_is_in_the_storage_where_its_address_says() {
        let storage: Arc<dyn Storage> = Arc::new(Memory::new());
        let pack = pack();
        let to = Arc::clone(&storage);
        let (frames, size) = beside(move || {
            let mut upload = begin(to, pack);
            let frames: Vec<_> = (0..40)
                .map(|seed| {
                    let plain = noise(100_000, seed);
                    let frame = EncodedFrame::new(&plain, Codec::None).unwrap();
                    (upload.append(&frame).unwrap(), plain)
                })
                .collect();
            (frames, upload.finish().unwrap().wait().unwrap())
        })
        .await;
        let bytes = storage.read(&keys::pack(pack.id).unwrap()).await.unwrap();
        assert_eq!(bytes.len() as u64, size);
        for (frame, plain) in frames {
            let from = usize::try_from(frame.offset).unwrap();
            assert_eq!(bytes[from..from + plain.len()], plain);
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_pack_that_is_given_up_leaves_nothing() {
        let storage: Arc<dyn Storage> = Arc::new(Memory::new());
        let to = Arc::clone(&storage);
        let task = beside(move || {
            let mut upload = begin(to, pack());
            for seed in 0..40 {
                let plain = noise(100_000, seed);
                let frame = EncodedFrame::new(&plain, Codec::None).unwrap();
                upload.append(&frame).unwrap();
            }
            upload.put.task.take().unwrap()
        })
        .await;
        assert!(task.await.unwrap().is_err());
        assert!(storage.list_all("").await.unwrap().is_empty());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_storage_that_fails_is_named_as_the_cause() {
        let inner: Arc<dyn Storage> = Arc::new(Memory::new());
        let storage: Arc<dyn Storage> = Arc::new(Faulty::planned(Arc::clone(&inner), |_, _, _| {
            Some(Fault::Fail(neon_storage::ErrorKind::Unavailable))
        }));
        let error = beside(move || {
            let mut upload = begin(storage, pack());
            for seed in 0..100 {
                let plain = noise(100_000, seed);
                let frame = EncodedFrame::new(&plain, Codec::None).unwrap();
                if let Err(error) = upload.append(&frame) {
                    return error;
                }
            }
            match upload.finish() {
                Err(error) => error,
                Ok(uploaded) => uploaded.wait().unwrap_err(),
            }
        })
        .await;
        assert_eq!(error.kind(), ErrorKind::Storage, "{error:?}");
        assert!(inner.list_all("").await.unwrap().is_empty());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_pack_is_never_written_over_another() {
        let storage: Arc<dyn Storage> = Arc::new(Memory::new());
        let pack = pack();
        for expected in [None, Some(ErrorKind::Exists)] {
            let to = Arc::clone(&storage);
            let outcome = beside(move || begin(to, pack).finish().and_then(Uploaded::wait)).await;
            assert_eq!(outcome.err().map(|error| error.kind()), expected);
        }
    }
}
