//! Bounds on what a peer may make us wait for or hold.

use std::time::Duration;

/// Limits of a client's connection. Every wait and every buffer has one.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Limits {
    /// How long connecting and logging in to one server may take when `connect_timeout` says nothing.
    pub connect: Duration,
    /// How long the server may take to complete a message, and how long it may take to accept one.
    /// A base backup is silent while its checkpoint runs, so this is longer than
    /// `checkpoint_timeout` usually is.
    pub silence: Duration,
    /// The largest message accepted, in bytes: a row of a result, for one.
    pub message: usize,
    /// The largest result that is collected in memory, in bytes.
    pub result: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(30),
            silence: Duration::from_secs(15 * 60),
            message: 16 << 20,
            result: 64 << 20,
        }
    }
}

impl Limits {
    /// The same limits with another `silence`.
    #[must_use]
    pub fn with_silence(mut self, silence: Duration) -> Self {
        self.silence = silence;
        self
    }

    /// The same limits with another `connect`.
    #[must_use]
    pub fn with_connect(mut self, connect: Duration) -> Self {
        self.connect = connect;
        self
    }

    /// The same limits with another `message`.
    #[must_use]
    pub fn with_message(mut self, message: usize) -> Self {
        self.message = message;
        self
    }

    /// The same limits with another `result`.
    #[must_use]
    pub fn with_result(mut self, result: usize) -> Self {
        self.result = result;
        self
    }
}
