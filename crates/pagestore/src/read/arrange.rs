//! The order in which a restore reads: by frame, each once.
//!
//! After many snapshots that each changed pages here and there, neighbouring pages lie in as many frames as there were
//! snapshots, and each of these frames has pages of files far apart. Read in the order of files, either all these frames are
//! held at once or each is read again and again. So files are gathered to a window, their pages sorted by frame, and
//! written where they belong as the frames come.

use std::collections::VecDeque;
use std::ops::Range;

use neon_snapshot_format::pack::PackId;

use crate::error::Result;
use crate::map::FrameRef;
use crate::read::feed::FilePart;
use crate::read::layout::Layout;

/// Plain bytes of frames that are worked on together.
pub(crate) const BATCH: u64 = 8 << 20;
/// What writing a part costs, in bytes.
const PART: u64 = 4096;
/// By how much zeros, which are not read and mostly not written, cost less than other bytes.
const ZEROS: u64 = 16;

/// Where a frame lies.
type Place = (PackId, u64);

/// Neighbouring pages of one frame, or zeros beside them.
struct Run {
    place: Option<Place>,
    plain: u32,
    part: usize,
    range: Range<u64>,
}

/// Sorts parts of files into batches, such that each frame is needed by one batch only.
///
/// Parts of files that `whole` names are not cut; their frames may be needed once more.
///
/// # Errors
/// [`Malformed`](crate::ErrorKind::Malformed) when the map does not cover a part.
pub(crate) fn arrange(
    parts: &[FilePart],
    page_size: u32,
    whole: impl Fn(&FilePart) -> bool,
) -> Result<VecDeque<Vec<FilePart>>> {
    let mut runs: Vec<Run> = Vec::new();
    for (number, part) in parts.iter().enumerate() {
        let first = runs.len();
        let layout = Layout::new(&part.file, page_size);
        layout.each(&part.range, |range, frame| {
            let run = Run {
                place: frame.map(|(frame, _)| place(frame)),
                plain: frame.map_or(0, |(frame, _)| frame.plain_length),
                part: number,
                range,
            };
            match runs.get_mut(first..).and_then(<[Run]>::last_mut) {
                Some(last) if last.place == run.place || run.place.is_none() => {
                    last.range.end = run.range.end;
                }
                // Zeros go with what follows them if nothing is before.
                Some(last) if last.place.is_none() => {
                    last.place = run.place;
                    last.plain = run.plain;
                    last.range.end = run.range.end;
                }
                _ => runs.push(run),
            }
        })?;
        let own = runs.get_mut(first..).unwrap_or_default();
        match own {
            [] => runs.push(Run {
                place: None,
                plain: 0,
                part: number,
                range: part.range.clone(),
            }),
            [only, rest @ ..] if whole(part) && !rest.is_empty() => {
                only.range = part.range.clone();
                let frames = rest.iter().map(|run| run.plain);
                only.plain = frames.fold(only.plain, u32::saturating_add);
                runs.truncate(first + 1);
            }
            _ => {}
        }
    }
    runs.sort_unstable_by_key(|run| (run.place, run.part, run.range.start));
    let mut batches = VecDeque::new();
    let (mut batch, mut weight, mut last) = (Vec::new(), 0, None);
    for run in runs {
        let same = run.place.is_some() && run.place == last;
        if !same && weight >= BATCH {
            batches.push_back(joined(std::mem::take(&mut batch), parts));
            weight = 0;
        }
        if !same {
            weight += u64::from(run.plain);
        }
        weight += PART + (run.range.end - run.range.start) / ZEROS;
        last = run.place;
        batch.push(run);
    }
    if !batch.is_empty() {
        batches.push_back(joined(batch, parts));
    }
    Ok(batches)
}

fn place(frame: &FrameRef) -> Place {
    (frame.pack.id, frame.offset)
}

/// Runs in the order of files, neighbours as one.
fn joined(mut runs: Vec<Run>, parts: &[FilePart]) -> Vec<FilePart> {
    runs.sort_by_key(|run| (run.part, run.range.start));
    let mut out: Vec<FilePart> = Vec::new();
    let mut last = None;
    for run in runs {
        match out.last_mut() {
            Some(before) if last == Some(run.part) && before.range.end == run.range.start => {
                before.range.end = run.range.end;
            }
            _ => out.extend(parts.get(run.part).map(|part| FilePart {
                file: std::sync::Arc::clone(&part.file),
                range: run.range,
            })),
        }
        last = Some(run.part);
    }
    out
}
