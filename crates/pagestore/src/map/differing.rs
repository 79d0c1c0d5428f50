//! Which pages of one file differ, by what is known of it on two sides.

use std::ops::Range;

use crate::map::{At, Extent, PageDigest};

/// One side of a comparison.
#[derive(Debug)]
pub(crate) struct Known {
    /// How many pages the file has there; 0 when it is not there.
    pub(crate) count: u32,
    /// Where some of them are. The others lie where both sides have the same.
    pub(crate) pieces: Vec<Piece>,
    pub(crate) digests: Vec<PageDigest>,
}

/// An extent, and the number of its first page's digest.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Piece {
    pub(crate) extent: Extent,
    pub(crate) digest: usize,
}

/// What a comparison told.
#[derive(Debug, Default)]
pub(crate) struct Compared {
    /// Pages that differ.
    pub(crate) pages: Vec<Range<u32>>,
    /// Pages that may; the last is looked at first.
    pub(crate) open: Vec<OpenPage>,
}

/// A page that one side does not know: what the shared rest says about it decides.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OpenPage {
    pub(crate) page: u32,
    /// Whether it is the second side that does not know it.
    pub(crate) in_second: bool,
    /// Its digest on the other side; nothing for a zero page.
    pub(crate) known: Option<PageDigest>,
}

enum Status<'a> {
    Absent,
    Shared,
    Here(&'a Piece),
}

impl Known {
    /// What is known of a page, and up to which page that holds.
    fn at(&self, next: &mut usize, page: u32) -> (Status<'_>, u32) {
        if page >= self.count {
            return (Status::Absent, u32::MAX);
        }
        while self
            .pieces
            .get(*next)
            .is_some_and(|piece| piece.extent.end() <= page)
        {
            *next += 1;
        }
        match self.pieces.get(*next) {
            Some(piece) if piece.extent.page <= page => {
                (Status::Here(piece), piece.extent.end().min(self.count))
            }
            Some(piece) => (Status::Shared, piece.extent.page.min(self.count)),
            None => (Status::Shared, self.count),
        }
    }

    fn digest(&self, piece: &Piece, page: u32) -> Option<PageDigest> {
        let within = (page - piece.extent.page) as usize;
        match piece.extent.at {
            At::Zeros => None,
            At::Frame { .. } => self.digests.get(piece.digest + within).copied(),
        }
    }
}

/// Whether a page lies at the same place in both.
fn same_place(one: &Piece, other: &Piece, page: u32, page_size: u32) -> bool {
    let offset = |piece: &Piece, offset: u32| {
        u64::from(offset) + u64::from(page - piece.extent.page) * u64::from(page_size)
    };
    match (&one.extent.at, &other.extent.at) {
        (At::Zeros, At::Zeros) => true,
        (
            At::Frame { frame, offset: at },
            At::Frame {
                frame: second,
                offset: second_at,
            },
        ) => frame.id() == second.id() && offset(one, *at) == offset(other, *second_at),
        _ => false,
    }
}

/// Compares two sides.
pub(crate) fn compare(sides: &[Known; 2], page_size: u32, with_digests: bool) -> Compared {
    let [one, other] = sides;
    let end = one.count.max(other.count);
    let (mut next, mut other_next, mut page) = (0, 0, 0);
    let mut compared = Compared::default();
    while page < end {
        let (status, until) = one.at(&mut next, page);
        let (other_status, other_until) = other.at(&mut other_next, page);
        let range = page..until.min(other_until).min(end);
        page = range.end;
        match (status, other_status) {
            (Status::Shared, Status::Shared) => {}
            (Status::Absent, _) | (_, Status::Absent) => compared.pages.push(range),
            (Status::Here(piece), Status::Here(second)) => {
                if same_place(piece, second, range.start, page_size) {
                    continue;
                }
                let differs = |page: &u32| {
                    let digest = one.digest(piece, *page);
                    !with_digests || digest.is_none() || digest != other.digest(second, *page)
                };
                let pages = range.filter(differs).map(|page| page..page + 1);
                compared.pages.extend(pages);
            }
            (Status::Here(piece), Status::Shared) => {
                compared.against_shared(one, piece, range, true, with_digests);
            }
            (Status::Shared, Status::Here(piece)) => {
                compared.against_shared(other, piece, range, false, with_digests);
            }
        }
    }
    compared
}

impl Compared {
    /// A page of a frame that only one side has is another page, unless digests say otherwise; a zero page
    /// may be one in the rest too.
    fn against_shared(
        &mut self,
        side: &Known,
        piece: &Piece,
        range: Range<u32>,
        in_second: bool,
        with_digests: bool,
    ) {
        if !with_digests && matches!(piece.extent.at, At::Frame { .. }) {
            self.pages.push(range);
            return;
        }
        self.open.extend(range.rev().map(|page| OpenPage {
            page,
            in_second,
            known: side.digest(piece, page),
        }));
    }
}
