//! Frames as they are appended to a new pack in another repository: as they are stored here, or sealed, opened or joined where
//! that one stores them in another way.

use neon_snapshot_format::pack::{FrameCipher, FrameRecord};

use crate::crypt::PackCipher;
use crate::error::{Error, Result};
use crate::map::FrameRef;
use crate::pack_file::NewPack;
use crate::read::form::{Stored, context, record, thin};
use crate::read::plain::subject;
use crate::read::{Form, Thinned};

/// Appends a whole frame, sealed once more where it must not lie there open.
pub(super) fn whole(
    pack: &mut NewPack,
    frame: &FrameRef,
    stored: &[u8],
    encrypted: bool,
) -> Result<(FrameRecord, Form)> {
    let known = record(frame)?;
    known.check(stored).map_err(|error| format(frame, error))?;
    if encrypted && !frame.sealed && !stored.is_empty() {
        let sealed = sealed(frame, stored)?;
        let record = resealed(frame, &known, &sealed, true)?;
        return Ok((pack.append(&record, &sealed)?, Form::Wrapped));
    }
    Ok((pack.append(&known, stored)?, Form::Same))
}

/// Appends a thinned frame, sealed or opened if that is how frames are stored there.
pub(super) fn thinned_as(
    pack: &mut NewPack,
    frame: &FrameRef,
    thinned: &Thinned,
    stored: &[u8],
    encrypted: bool,
) -> Result<(FrameRecord, Form)> {
    let length = u32::try_from(stored.len()).unwrap_or(u32::MAX);
    let known = thinned.record(frame, length)?;
    let seal = !stored.is_empty() && (encrypted || frame.sealed);
    let new = if seal == thinned.sealed {
        known.check(stored).map_err(|error| format(frame, error))?;
        pack.append(&known, stored)?
    } else {
        let cipher = PackCipher::new(&frame.pack.key);
        let opened = known.unseal(
            stored,
            thinned.sealed.then_some(&cipher as &dyn FrameCipher),
        );
        let opened = opened.map_err(|error| format(frame, error))?;
        let bytes = match seal {
            true => sealed(frame, opened.bytes())?,
            false => opened.bytes().to_vec(),
        };
        pack.append(&resealed(frame, &known, &bytes, seal)?, &bytes)?
    };
    let form = Form::Thinned(Thinned {
        sealed: new.is_sealed(),
        digest: *new.digest(),
        ..*thinned
    });
    Ok((new, form))
}

/// Appends what comes in several pieces, as one: of a frame there is one in each pack.
pub(super) fn joined(
    pack: &mut NewPack,
    frame: &FrameRef,
    stored: &Stored,
    encrypted: bool,
) -> Result<(FrameRecord, Form)> {
    let plain = stored.decode(frame)?;
    let (seal, codec) = (encrypted || frame.sealed, frame.codec);
    let thinned = thin(&frame.pack, frame.frame, codec, seal, plain.side_by_side())?;
    let new = pack.append_sealed(&thinned)?;
    let form = Form::Thinned(Thinned {
        cells: plain.cells(),
        codec: new.codec(),
        sealed: new.is_sealed(),
        digest: *new.digest(),
    });
    Ok((new, form))
}

fn sealed(frame: &FrameRef, bytes: &[u8]) -> Result<Vec<u8>> {
    let cipher = PackCipher::new(&frame.pack.key);
    let sealed = cipher.seal(context(frame), bytes);
    sealed.map_err(|error| format(frame, error))
}

/// The record of the same content in other stored bytes.
fn resealed(
    frame: &FrameRef,
    known: &FrameRecord,
    stored: &[u8],
    sealed: bool,
) -> Result<FrameRecord> {
    let digest = blake3::hash(stored);
    FrameRecord::from_parts(
        context(frame),
        0,
        u32::try_from(stored.len()).unwrap_or(u32::MAX),
        known.plain_length(),
        known.codec(),
        sealed,
        digest.as_bytes().first_chunk().copied().unwrap_or_default(),
    )
    .map_err(|error| format(frame, error))
}

fn format(frame: &FrameRef, error: neon_snapshot_format::Error) -> Error {
    Error::format(subject(frame), error)
}
