//! The pages that the parent has, by their digests: what came and is the same is not stored again.

use std::ops::Range;

use neon_snapshot_format::{Entry, SnapshotPath};

use crate::error::Result;
use crate::map::{At, FileKind, MappedFile, PageDigest, Walk};
use crate::write::snapshot::SnapshotWriter;

/// Some pages of a file of the parent.
#[derive(Debug)]
pub(crate) struct KnownPages {
    first: u32,
    pages: Vec<Known>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    Nothing,
    Zero,
    Digest(PageDigest),
}

impl KnownPages {
    /// Whether the parent has this page with this digest; none means zeros.
    pub(crate) fn is(&self, page: u32, digest: Option<PageDigest>) -> bool {
        let index = page.checked_sub(self.first);
        let known = index.and_then(|index| self.pages.get(index as usize));
        match (known, digest) {
            (Some(Known::Zero), None) => true,
            (Some(Known::Digest(known)), Some(digest)) => *known == digest,
            _ => false,
        }
    }

    /// Whether the parent has none of these pages.
    pub(crate) fn has_none_in(&self, first: u32, count: u32) -> bool {
        let from = first.saturating_sub(self.first) as usize;
        let pages = self.pages.iter().skip(from).take(count as usize);
        pages.into_iter().all(|page| *page == Known::Nothing)
    }
}

/// What the parent has of one file, in order: the part of its map that is needed to compare pages. Kept from one part of
/// the file to the next, so that its map is walked once and not for each part.
#[derive(Debug)]
pub(crate) struct KnownFile {
    path: SnapshotPath,
    size: u64,
    spans: Vec<Span>,
    digests: Vec<PageDigest>,
}

/// Neighbouring pages.
#[derive(Debug, Clone, Copy)]
struct Span {
    page: u32,
    count: u32,
    /// Where their digests begin; none of zeros.
    digests: Option<usize>,
}

impl KnownFile {
    fn new(file: MappedFile, size: u64) -> Self {
        let mut at = 0_usize;
        let spans = file.extents.iter().map(|extent| Span {
            page: extent.page,
            count: extent.count,
            digests: match extent.at {
                At::Zeros => None,
                At::Frame { .. } => {
                    let from = at;
                    at = at.saturating_add(extent.count as usize);
                    Some(from)
                }
            },
        });
        Self {
            spans: spans.collect(),
            path: file.path,
            size,
            digests: file.digests,
        }
    }

    /// These of its pages.
    fn pages(&self, range: &Range<u32>) -> KnownPages {
        let mut pages = vec![Known::Nothing; range.len()];
        let end = |span: &Span| span.page.saturating_add(span.count);
        let before = self.spans.partition_point(|span| end(span) <= range.start);
        let spans = self.spans.iter().skip(before);
        for span in spans.take_while(|span| span.page < range.end) {
            for page in span.page.max(range.start)..end(span).min(range.end) {
                let known = match span.digests {
                    None => Known::Zero,
                    Some(from) => {
                        let index = from.saturating_add((page - span.page) as usize);
                        let digest = self.digests.get(index);
                        digest.map_or(Known::Nothing, |digest| Known::Digest(*digest))
                    }
                };
                if let Some(slot) = pages.get_mut((page - range.start) as usize) {
                    *slot = known;
                }
            }
        }
        KnownPages {
            first: range.start,
            pages,
        }
    }
}

impl SnapshotWriter {
    /// What the parent has of a part of a file that is to be compared: of whole files always, because many of them come
    /// only because nobody knows whether they changed; of ranges only if that was asked for. `last` is the file that was
    /// asked for last.
    pub(crate) fn known_pages(
        &self,
        entry: &Entry,
        range: &Range<u64>,
        last: &mut Option<KnownFile>,
    ) -> Result<Option<KnownPages>> {
        let Some(parent) = self
            .parent
            .as_ref()
            .filter(|_| self.options.compare || self.comes_whole(entry, range))
        else {
            return Ok(None);
        };
        if range.is_empty() {
            return Ok(None);
        }
        let file = match last.take().filter(|last| last.path == entry.path) {
            Some(file) => file,
            None => {
                let mut walk = Walk::new(&parent.view, true).from(&entry.path);
                let Some(file) = parent.maps.wait(self.bridge(), &mut walk)? else {
                    return Ok(None);
                };
                match file.attributes.kind {
                    FileKind::File { size } if file.path == entry.path => {
                        KnownFile::new(file, size)
                    }
                    _ => return Ok(None),
                }
            }
        };
        let page_size = self.page_size();
        let page = |page: u64| u32::try_from(page).unwrap_or(u32::MAX);
        let first = page(range.start / page_size);
        let end = page(range.end.min(file.size).div_ceil(page_size));
        let pages = file.pages(&(first..end.max(first)));
        *last = Some(file);
        Ok(Some(pages))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypt::DataKey;
    use crate::map::{Attributes, Extent, FrameRef, PackRef};
    use neon_snapshot_format::pack::PackId;

    fn in_frame() -> At {
        let frame = FrameRef {
            pack: PackRef {
                id: PackId([1; 16]),
                key: DataKey([2; 32]),
            },
            frame: 0,
            offset: 0,
            stored_length: 1,
            plain_length: 1,
            codec: 0,
            sealed: false,
            digest: [0; 16],
        };
        At::Frame { frame, offset: 0 }
    }

    #[test]
    fn any_part_of_a_file_has_the_digests_of_its_own_pages() {
        // Pages 2 to 4, zeros 4 to 9, nothing at 9, page 10, page 11.
        let extents: Vec<Extent> = [
            (2, 2, in_frame()),
            (4, 5, At::Zeros),
            (10, 1, in_frame()),
            (11, 1, in_frame()),
        ]
        .into_iter()
        .map(|(page, count, at)| Extent { page, count, at })
        .collect();
        let size = 12 * 8192;
        let mapped = MappedFile {
            path: SnapshotPath::new("base/5/1").unwrap(),
            attributes: Attributes {
                kind: FileKind::File { size },
                mode: 0o600,
                owner: None,
                modified: 0,
            },
            extents,
            digests: vec![[2; 16], [3; 16], [10; 16], [11; 16]],
        };
        let file = KnownFile::new(mapped, size);
        let expected = |page: u32| match page {
            2 | 3 | 10 | 11 => Known::Digest([u8::try_from(page).unwrap(); 16]),
            4..=8 => Known::Zero,
            _ => Known::Nothing,
        };
        for first in 0..14 {
            for end in first..15 {
                let part = file.pages(&(first..end));
                let pages: Vec<Known> = (first..end).map(expected).collect();
                assert_eq!((part.first, part.pages), (first, pages), "{first}..{end}");
            }
        }
    }
}
