//! A snapshot's map as a whole.

use crate::map::{FrameRef, PageDigest, RunRef};

/// The map of a snapshot: its runs, newest first, at most [`MAX_RUNS`](crate::map::MAX_RUNS).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// The runs.
    pub runs: Vec<RunRef>,
    /// Bytes in a page.
    pub page_size: u32,
}

/// Where one page is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PagePlace {
    /// The snapshot has no such file, or the file ends before.
    NotThere,
    /// All its bytes are zero.
    Zeros,
    /// In a frame.
    Frame {
        /// Which.
        frame: FrameRef,
        /// Where it begins in the frame's plain bytes. The last page of a file may be shorter than a page.
        offset: u32,
        /// Its digest, if it was asked for.
        digest: Option<PageDigest>,
    },
}
