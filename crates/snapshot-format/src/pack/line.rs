//! Frames on their way into a pack: encoded by several threads, appended in order.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fmt;
use std::io::Write;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::error::{Error, ErrorKind, Result};
use crate::pack::frame::{
    Codec, EncodedFrame, FRAME_SIZE, FrameCipher, FrameContext, FrameEncoder, SealedFrame,
};
use crate::pack::write::{PackOptions, PackWriter, SnapshotRoot};

/// Encoded frames that wait for those before them, per thread. With the buffers they came in a mebibyte.
const WAITING: usize = 4;

/// Takes plain frames and gives them numbers at once. What is appended when is its own business; the bytes
/// of the pack are the same with any number of threads.
pub(crate) struct FrameLine<W> {
    pack: PackWriter<W>,
    numbered: u64,
    threads: Option<Threads>,
    /// Buffers to be used again.
    spare: Vec<Vec<u8>>,
}

struct Threads {
    /// None once no more come.
    jobs: Option<SyncSender<Job>>,
    waiting: VecDeque<Receiver<Result<Done>>>,
    limit: usize,
    running: Vec<JoinHandle<()>>,
}

struct Job {
    address: FrameContext,
    content: Content,
    done: SyncSender<Result<Done>>,
}

enum Content {
    Plain(Vec<u8>),
    Zeros(u64),
}

struct Done {
    frame: SealedFrame<'static>,
    /// The buffer that the frame came in.
    spare: Vec<u8>,
}

impl<W> fmt::Debug for FrameLine<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrameLine")
            .field("numbered", &self.numbered)
            .finish_non_exhaustive()
    }
}

impl<W: Write> FrameLine<W> {
    pub(crate) fn new(pack: PackWriter<W>) -> Self {
        Self {
            numbered: pack.next_frame(),
            pack,
            threads: None,
            spare: Vec::new(),
        }
    }

    /// Encodes in so many threads beside the caller's.
    pub(crate) fn threads(mut self, count: usize) -> Self {
        self.threads = (count > 0).then(|| Threads::start(count, &self.pack));
        self
    }

    pub(crate) fn next_frame(&self) -> u64 {
        self.numbered
    }

    /// An empty buffer for the next frame.
    pub(crate) fn buffer(&mut self) -> Vec<u8> {
        self.spare.pop().unwrap_or_default()
    }

    /// Takes a frame; returns its number.
    pub(crate) fn push(&mut self, plain: Vec<u8>) -> Result<u64> {
        self.take(Content::Plain(plain))
    }

    /// Takes a frame of zeros.
    pub(crate) fn push_zeros(&mut self, length: u64) -> Result<u64> {
        self.take(Content::Zeros(length))
    }

    fn take(&mut self, content: Content) -> Result<u64> {
        let number = self.numbered;
        self.numbered += 1;
        let Some(threads) = &mut self.threads else {
            match content {
                Content::Zeros(length) => {
                    self.pack.append_encoded(&EncodedFrame::zeros(length)?)?;
                }
                Content::Plain(plain) => {
                    self.pack.append(&plain)?;
                    self.keep(plain);
                }
            }
            return Ok(number);
        };
        let (done, receiver) = sync_channel(1);
        let address = FrameContext {
            pack: self.pack.options().id,
            frame: number,
        };
        let job = Job {
            address,
            content,
            done,
        };
        // Never waits: it has room for as many as are let wait.
        let sent = threads.jobs.as_ref().map(|jobs| jobs.send(job));
        if !matches!(sent, Some(Ok(()))) {
            return Err(lost());
        }
        threads.waiting.push_back(receiver);
        if threads.waiting.len() >= threads.limit {
            self.append_next()?;
        }
        Ok(number)
    }

    fn keep(&mut self, mut buffer: Vec<u8>) {
        if buffer.capacity() >= FRAME_SIZE {
            buffer.clear();
            self.spare.push(buffer);
        }
    }

    /// Appends the frame that was pushed first; whether there was one.
    fn append_next(&mut self) -> Result<bool> {
        let waiting = self.threads.as_mut().map(|threads| &mut threads.waiting);
        let Some(receiver) = waiting.and_then(VecDeque::pop_front) else {
            return Ok(false);
        };
        let Done { frame, spare } = receiver.recv().map_err(|_| lost())??;
        self.pack.append_sealed(&frame)?;
        self.keep(spare);
        if let Cow::Owned(stored) = frame.stored {
            self.keep(stored);
        }
        Ok(true)
    }

    /// As [`PackWriter::finish`].
    pub(crate) fn finish(mut self, start_up: u64, snapshot: Option<SnapshotRoot>) -> Result<W> {
        while self.append_next()? {}
        drop(self.threads.take());
        self.pack.finish(start_up, snapshot)
    }
}

impl Threads {
    fn start<W: Write>(count: usize, pack: &PackWriter<W>) -> Self {
        let limit = count * WAITING;
        let (jobs, receiver) = sync_channel::<Job>(limit);
        let receiver = Arc::new(Mutex::new(receiver));
        let running = (0..count)
            .map(|_| {
                let jobs = Arc::clone(&receiver);
                let PackOptions { codec, cipher, .. } = pack.options().clone();
                std::thread::spawn(move || encode_all(&jobs, codec, cipher.as_deref()))
            })
            .collect();
        Self {
            jobs: Some(jobs),
            waiting: VecDeque::new(),
            limit,
            running,
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        drop(self.jobs.take());
        for thread in self.running.drain(..) {
            // One that panicked has been missed already by who waited for it.
            drop(thread.join());
        }
    }
}

fn encode_all(jobs: &Mutex<Receiver<Job>>, codec: Codec, cipher: Option<&dyn FrameCipher>) {
    let mut encoder = FrameEncoder::new(codec);
    loop {
        let next = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = next else { return };
        let done = encode(&mut encoder, job.content, job.address, cipher);
        // Whoever waited may have given up.
        drop(job.done.send(done));
    }
}

fn encode(
    encoder: &mut FrameEncoder,
    content: Content,
    address: FrameContext,
    cipher: Option<&dyn FrameCipher>,
) -> Result<Done> {
    let (frame, spare) = match content {
        Content::Zeros(length) => (EncodedFrame::zeros(length)?, Vec::new()),
        Content::Plain(plain) => encoder.encode_vec(plain)?,
    };
    let frame = frame.seal(address, cipher)?;
    Ok(Done { frame, spare })
}

fn lost() -> Error {
    Error::new(ErrorKind::Inconsistent, "a compressing thread", "panicked")
}
