//! One request for each frame, however many ask for it at once.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};

use crate::error::{Error, Result};
use crate::read::memory::Address;

/// What one request brings: the frames it was made for.
pub(crate) type Landed = std::result::Result<Arc<[(Address, Bytes)]>, Arc<Error>>;
/// A request under way. Whoever waits for it drives it; it ends when nobody does.
pub(crate) type Flight = Shared<BoxFuture<'static, Landed>>;

#[derive(Debug, Default)]
pub(crate) struct Flights {
    under_way: HashMap<Address, WeakShared<BoxFuture<'static, Landed>>>,
}

impl Flights {
    /// The request that brings this frame, if there is one.
    pub(crate) fn join(&self, address: Address) -> Option<Flight> {
        self.under_way.get(&address).and_then(WeakShared::upgrade)
    }

    /// Announces a request for frames.
    pub(crate) fn depart(
        &mut self,
        addresses: impl Iterator<Item = Address>,
        request: BoxFuture<'static, Landed>,
    ) -> Flight {
        let flight = request.shared();
        if let Some(weak) = flight.downgrade() {
            addresses.for_each(|address| {
                self.under_way.insert(address, weak.clone());
            });
        }
        flight
    }

    /// Forgets that a frame is on its way.
    pub(crate) fn arrive(&mut self, address: Address) {
        self.under_way.remove(&address);
    }
}

/// One frame of what a request brought. Everybody who waited for a failed one gets an error of their own.
pub(crate) fn unload(landed: &Landed, address: Address) -> Result<Bytes> {
    match landed {
        Ok(frames) => frames
            .iter()
            .find(|(of, _)| *of == address)
            .map(|(_, bytes)| bytes.clone())
            .ok_or_else(|| Error::damaged(format!("frame {}", address.1), "was not brought")),
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
