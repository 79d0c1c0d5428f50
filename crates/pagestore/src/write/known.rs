//! The pages that the parent has, by their digests: what came and is the same is not stored again.

use std::ops::Range;

use neon_snapshot_format::Entry;

use crate::error::Result;
use crate::map::{At, FileKind, PageDigest, Walk};
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

impl SnapshotWriter {
    /// What the parent has of a part of a file that is to be compared: of whole files always, because many of them come
    /// only because nobody knows whether they changed; of parts only if that was asked for.
    pub(crate) fn known_pages(
        &self,
        entry: &Entry,
        range: &Range<u64>,
    ) -> Result<Option<KnownPages>> {
        let whole = *range == (0..entry.size());
        let Some(parent) = self
            .parent
            .as_ref()
            .filter(|_| whole || self.options.compare)
        else {
            return Ok(None);
        };
        if range.is_empty() {
            return Ok(None);
        }
        let mut walk = Walk::new(&parent.view, true).from(&entry.path);
        let Some(file) = parent.maps.wait(self.bridge(), &mut walk)? else {
            return Ok(None);
        };
        let FileKind::File { size } = file.attributes.kind else {
            return Ok(None);
        };
        if file.path != entry.path {
            return Ok(None);
        }
        let page_size = self.page_size();
        let page = |offset: u64| u32::try_from(offset.div_ceil(page_size)).unwrap_or(u32::MAX);
        let first = u32::try_from(range.start / page_size).unwrap_or(u32::MAX);
        let end = page(range.end.min(size)).max(first);
        let mut pages = vec![Known::Nothing; (end - first) as usize];
        let mut digests = file.digests.iter();
        for extent in &file.extents {
            for page in extent.page..extent.end() {
                let known = match extent.at {
                    At::Zeros => Known::Zero,
                    At::Frame { .. } => match digests.next() {
                        Some(digest) => Known::Digest(*digest),
                        None => Known::Nothing,
                    },
                };
                let index = page.checked_sub(first).map(|index| index as usize);
                if let Some(slot) = index.and_then(|index| pages.get_mut(index)) {
                    *slot = known;
                }
            }
        }
        Ok(Some(KnownPages { first, pages }))
    }
}
