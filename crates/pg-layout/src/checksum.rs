//! The checksum of a relation's page.
//!
//! PostgreSQL's own: 32 interleaved FNV-1a sums over the page read as rows of 32 words, with the
//! checksum field taken as zero, folded together with the block number. Source:
//! `storage/checksum_impl.h`; the same in every supported major.
//!
//! The sums are independent, so the loop is written for the compiler to vectorise. It is compiled
//! twice on x86-64: for the baseline and for AVX2, chosen when it runs. One page alone is bound by the
//! latency of the multiply; [`page_checksums`] therefore works on two pages at a time and is what to
//! call for more than one.
//!
//! This is the one module of the crate with unsafe code: a function compiled for AVX2 may be called
//! only where the processor has it, which [`Kernel::detect`] finds out.

use crate::error::Result;
use crate::page::BlockSize;
use crate::relation::BlockNumber;

const LANES: usize = 32;
const ROW: usize = LANES * 4;
const PRIME: u32 = 16_777_619;

/// The flags, which share a word with the checksum (the word at offset 8).
const CHECKSUM_WORD: usize = 2;
const BESIDE_CHECKSUM: u32 = 0xFFFF_0000;

/// `checksumBaseOffsets`.
const SEEDS: [u32; LANES] = [
    0x5B1F_36E9,
    0xB852_5960,
    0x02AB_50AA,
    0x1DE6_6D2A,
    0x79FF_467A,
    0x9BB9_F8A3,
    0x217E_7CD2,
    0x83E1_3D2C,
    0xF8D4_474F,
    0xE39E_B970,
    0x42C6_AE16,
    0x9932_16FA,
    0x7B09_3B5D,
    0x98DA_FF3C,
    0xF718_902A,
    0x0B1C_9CDB,
    0xE58F_764B,
    0x1876_36BC,
    0x5D7B_3BB1,
    0xE73D_E7DE,
    0x92BE_C979,
    0xCCA6_C0B2,
    0x304A_0979,
    0x85AA_43D4,
    0x7831_25BB,
    0x6CA8_EAA2,
    0xE407_EAC6,
    0x4B5C_FC3E,
    0x9FBF_8C76,
    0x15CA_20BE,
    0xF2CA_9FD3,
    0x959B_D756,
];

/// The checksum that a page at `block` of its fork must carry; never 0.
///
/// The number counts over all segment files of the fork. The checksum stored in the page does not
/// matter. The page's length is its block size.
///
/// # Errors
/// [`OutOfRange`](crate::ErrorKind::OutOfRange) unless the length is a [`BlockSize`].
pub fn page_checksum(page: &[u8], block: BlockNumber) -> Result<u16> {
    BlockSize::of(page)?;
    let [sum] = Kernel::detect().sum([page]);
    Ok(finish(sum, block))
}

/// The checksums of consecutive pages, the first at `first_block`, as an iterator in their order.
///
/// A rest shorter than a page is left out.
pub fn page_checksums(
    pages: &[u8],
    size: BlockSize,
    first_block: BlockNumber,
) -> impl Iterator<Item = u16> {
    let kernel = Kernel::detect();
    let size = size.bytes();
    let whole = pages.chunks_exact(size);
    let mut block = first_block;
    pages
        .chunks(2 * size)
        .flat_map(move |pair| match pair.split_at_checked(size) {
            Some((one, two)) if two.len() == size => kernel.sum([one, two]),
            Some((one, _)) => [kernel.sum([one])[0], 0],
            None => [0, 0],
        })
        .take(whole.len())
        .map(move |sum| {
            let checksum = finish(sum, block);
            block = block.wrapping_add(1);
            checksum
        })
}

/// Which compilation of the loop to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kernel {
    /// The target's baseline.
    Portable,
    /// Only made by [`Kernel::detect`], where the processor has AVX2.
    #[cfg(target_arch = "x86_64")]
    Avx2,
}

impl Kernel {
    /// The fastest this processor can run.
    pub(crate) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") {
            return Self::Avx2;
        }
        Self::Portable
    }

    /// Sums `N` pages of one length at a time.
    pub(crate) fn sum<const N: usize>(self, pages: [&[u8]; N]) -> [u32; N] {
        match self {
            Self::Portable => sum(pages),
            #[cfg(target_arch = "x86_64")]
            #[expect(
                unsafe_code,
                reason = "sound: this variant exists only where AVX2 was detected"
            )]
            // SAFETY: `Kernel::Avx2` is made only by `detect`, which asked the processor.
            Self::Avx2 => unsafe { sum_avx2(pages) },
        }
    }
}

/// [`sum`], compiled for AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn sum_avx2<const N: usize>(pages: [&[u8]; N]) -> [u32; N] {
    sum(pages)
}

/// The 32 sums of each page, folded into one word.
#[inline(always)]
fn sum<const N: usize>(pages: [&[u8]; N]) -> [u32; N] {
    let mut sums = [SEEDS; N];
    let rows = pages.map(|page| page.as_chunks::<ROW>().0);
    let count = rows.iter().map(|rows| rows.len()).min().unwrap_or(0);
    let rows = rows.map(|rows| rows.get(..count).unwrap_or_default());
    for (sums, rows) in sums.iter_mut().zip(rows) {
        if let Some(first) = rows.first() {
            let mut words = words(first);
            words[CHECKSUM_WORD] &= BESIDE_CHECKSUM;
            mix(sums, &words);
        }
    }
    for row in 1..count {
        for (sums, rows) in sums.iter_mut().zip(rows) {
            if let Some(bytes) = rows.get(row) {
                mix(sums, &words(bytes));
            }
        }
    }
    sums.map(|mut sums| {
        mix(&mut sums, &[0; LANES]);
        mix(&mut sums, &[0; LANES]);
        sums.iter().fold(0, |folded, sum| folded ^ sum)
    })
}

#[inline(always)]
fn words(row: &[u8; ROW]) -> [u32; LANES] {
    let mut words = [0; LANES];
    for (word, bytes) in words.iter_mut().zip(row.as_chunks::<4>().0) {
        *word = u32::from_le_bytes(*bytes);
    }
    words
}

#[inline(always)]
fn mix(sums: &mut [u32; LANES], words: &[u32; LANES]) {
    for (sum, word) in sums.iter_mut().zip(words) {
        let mixed = *sum ^ word;
        *sum = mixed.wrapping_mul(PRIME) ^ (mixed >> 17);
    }
}

/// Makes the stored form: the block number mixed in, reduced to 1..=65535.
#[expect(
    clippy::cast_possible_truncation,
    reason = "a remainder of 65535, plus one, fits 16 bits"
)]
const fn finish(sum: u32, block: BlockNumber) -> u16 {
    ((sum ^ block) % 65_535 + 1) as u16
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::error::ErrorKind;

    /// The definition, word by word.
    fn by_definition(page: &[u8], block: u32) -> u16 {
        let mut page = page.to_vec();
        page[8..10].fill(0);
        let mut sums = SEEDS;
        let padding = vec![0; 2 * ROW];
        for (index, word) in page.chunks(4).chain(padding.chunks(4)).enumerate() {
            let mixed = sums[index % LANES] ^ u32::from_le_bytes(word.try_into().unwrap());
            sums[index % LANES] = mixed.wrapping_mul(PRIME) ^ (mixed >> 17);
        }
        let folded = sums.iter().fold(block, |folded, sum| folded ^ sum);
        u16::try_from(folded % 65_535 + 1).unwrap()
    }

    proptest! {
        #[test]
        fn every_kernel_and_batch_computes_the_definition(
            bits in 10_u32..=15,
            seed in prop::collection::vec(any::<u8>(), 1..600),
            first in any::<u32>(),
            count in 0_usize..5,
        ) {
            let size = BlockSize::new(1 << bits).unwrap();
            let pages: Vec<u8> = seed.iter().copied().cycle().take(count * size.bytes()).collect();
            let block = |index: u32| first.wrapping_add(index);
            let expected: Vec<u16> = (0..)
                .zip(pages.chunks(size.bytes()))
                .map(|(index, page)| by_definition(page, block(index)))
                .collect();
            let batch: Vec<u16> = page_checksums(&pages, size, first).collect();
            prop_assert_eq!(&batch, &expected);
            let padded = [&pages[..], &[7; 100]].concat();
            let batch: Vec<u16> = page_checksums(&padded, size, first).collect();
            prop_assert_eq!(&batch, &expected);
            for ((index, page), expected) in (0..).zip(pages.chunks(size.bytes())).zip(&expected) {
                prop_assert_eq!(page_checksum(page, block(index)).unwrap(), *expected);
                let [portable] = Kernel::Portable.sum([page]);
                prop_assert_eq!([portable], Kernel::detect().sum([page]));
                prop_assert_eq!([portable; 2], Kernel::detect().sum([page, page]));
            }
        }
    }

    #[test]
    fn the_stored_checksum_does_not_matter_and_the_block_number_does() {
        let mut page = vec![3; 8192];
        let before = page_checksum(&page, 7).unwrap();
        page[8] = 0xFF;
        assert_eq!(page_checksum(&page, 7).unwrap(), before);
        assert_ne!(page_checksum(&page, 8).unwrap(), before);
        page[10] ^= 1;
        assert_ne!(page_checksum(&page, 7).unwrap(), before);
    }

    #[test]
    fn a_slice_that_is_no_page_is_refused() {
        for len in [0, 1, 512, 8191, 65_536] {
            let error = page_checksum(&vec![0; len], 0).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::OutOfRange);
        }
    }
}
