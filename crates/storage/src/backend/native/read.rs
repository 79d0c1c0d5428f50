//! Reading files in pieces, off the async threads.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};

use crate::error::{Error, ErrorKind, Operation, Result, from_io};
use crate::key::Key;

/// How much is read at a time.
const CHUNK: u64 = 512 * 1024;

/// Runs blocking work to its end, also when the caller goes away.
pub(super) async fn blocking<T: Send + 'static>(
    operation: Operation,
    subject: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        Error::new(ErrorKind::Unavailable, operation)
            .subject(subject)
            .detail("the runtime is shutting down")
            .because(error)
    })
}

/// The bytes of a range as they are read. The file stays what it was when it was opened: objects
/// are replaced by name, never written in place.
pub(super) fn chunks(key: Key, file: File, range: Range<u64>) -> BoxStream<'static, Result<Bytes>> {
    let state = Some((Arc::new(file), range, key));
    stream::unfold(state, |state| async move {
        let (file, range, key) = state?;
        if range.is_empty() {
            return None;
        }
        let end = range.end.min(range.start.saturating_add(CHUNK));
        let (reader, piece, subject) = (Arc::clone(&file), range.start..end, key.clone());
        let read = blocking(Operation::Get, key.as_str(), move || {
            exact(&reader, &subject, piece)
        });
        match read.await.and_then(|read| read) {
            Ok(bytes) => Some((Ok(bytes), Some((file, end..range.end, key)))),
            Err(error) => Some((Err(error), None)),
        }
    })
    .boxed()
}

/// Reads one range whole; a file that is shorter is corrupt.
pub(super) fn exact(file: &File, key: &Key, range: Range<u64>) -> Result<Bytes> {
    let length = usize::try_from(range.end.saturating_sub(range.start))
        .map_err(|_| Error::new(ErrorKind::Invalid, Operation::Get).subject(key.as_str()))?;
    let mut bytes = BytesMut::zeroed(length);
    file.read_exact_at(&mut bytes, range.start)
        .map_err(|error| from_io(Operation::Get, key.as_str(), error))?;
    Ok(bytes.freeze())
}
