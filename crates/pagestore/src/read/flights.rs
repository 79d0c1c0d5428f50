//! One request for each frame, however many ask for it at once.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};

use crate::error::{Error, Result};
use crate::map::Cells;
use crate::read::memory::Address;
use crate::read::plain::{Part, Plain, subject};

/// What one request brings: the frames it was made for.
pub(crate) type Landed = std::result::Result<Arc<[(Address, Plain)]>, Arc<Error>>;
/// A request under way. Whoever waits for it drives it; it ends when nobody does.
pub(crate) type Flight = Shared<BoxFuture<'static, Landed>>;

#[derive(Debug, Default)]
pub(crate) struct Flights {
    /// With the cells that it was made for.
    under_way: HashMap<Address, (Cells, WeakShared<BoxFuture<'static, Landed>>)>,
}

impl Flights {
    /// The request that brings these cells of a frame, if there is one.
    pub(crate) fn join(&self, address: Address, cells: Cells) -> Option<Flight> {
        let (brought, flight) = self.under_way.get(&address)?;
        brought.contains(cells).then(|| flight.upgrade()).flatten()
    }

    /// Announces a request for parts of frames.
    pub(crate) fn depart(&mut self, parts: &[Part], request: BoxFuture<'static, Landed>) -> Flight {
        let flight = request.shared();
        if let Some(weak) = flight.downgrade() {
            for part in parts {
                let promised = (part.cells, weak.clone());
                self.under_way.insert(part.frame.id(), promised);
            }
        }
        flight
    }

    /// Forgets that a frame is on its way.
    pub(crate) fn arrive(&mut self, address: Address) {
        self.under_way.remove(&address);
    }
}

/// One part of what a request brought. Everybody who waited for a failed one gets an error of their own.
pub(crate) fn unload(landed: &Landed, part: &Part) -> Result<Plain> {
    match landed {
        Ok(frames) => frames
            .iter()
            .find(|(of, plain)| *of == part.frame.id() && plain.cells().contains(part.cells))
            .map(|(_, plain)| plain.clone())
            .ok_or_else(|| Error::damaged(subject(&part.frame), "was not brought")),
        Err(error) => {
            let copy = Error::new(error.kind(), error.subject(), error.reason().to_owned());
            Err(match std::error::Error::source(&**error) {
                Some(_) => copy.caused_by(Cause(Arc::clone(error))),
                None => copy,
            })
        }
    }
}

/// The cause of an error that several got.
#[derive(Debug)]
struct Cause(Arc<Error>);

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match std::error::Error::source(&*self.0) {
            Some(source) => fmt::Display::fmt(source, f),
            None => fmt::Display::fmt(&self.0, f),
        }
    }
}

impl std::error::Error for Cause {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&*self.0)?.source()
    }
}
