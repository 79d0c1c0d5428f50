//! What is told while something goes on. A library prints nothing: whoever embeds it gives a sink.

use std::fmt;
use std::sync::Arc;

/// Something that happened on the way.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A step began, in words for people: `Stopping postgres on pgdata1.`
    Step(String),
    /// How far a step is. `total` is 0 while nobody knows it.
    Progress {
        /// What is counted, such as `snapshot p1@before`.
        subject: String,
        /// Bytes done.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// Something to know that stops nothing: a setting that quarantine changed, a source that could not be used.
    Note(String),
    /// As a note, but somebody should act.
    Warning(String),
}

/// Takes events, from any thread, and must return soon.
#[derive(Clone)]
pub struct EventSink(Arc<dyn Fn(Event) + Send + Sync>);

impl EventSink {
    /// A sink that calls this.
    pub fn new(tell: impl Fn(Event) + Send + Sync + 'static) -> Self {
        Self(Arc::new(tell))
    }

    pub(crate) fn tell(&self, event: Event) {
        (self.0)(event);
    }
}

impl Default for EventSink {
    /// Nobody listens.
    fn default() -> Self {
        Self::new(drop)
    }
}

impl fmt::Debug for EventSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EventSink")
    }
}
