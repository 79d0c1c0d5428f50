//! Where notices and warnings of a server go.

use std::fmt;
use std::sync::Arc;

use crate::server_error::ServerError;

/// Called with each notice and warning as it arrives. It is called between reads of the connection,
/// so it must not block; nothing is kept.
#[derive(Clone)]
pub struct NoticeHandler(Arc<dyn Fn(&ServerError) + Send + Sync>);

impl NoticeHandler {
    /// Wraps a function.
    pub fn new(handler: impl Fn(&ServerError) + Send + Sync + 'static) -> Self {
        Self(Arc::new(handler))
    }

    pub(crate) fn call(&self, notice: &ServerError) {
        (self.0)(notice);
    }
}

impl fmt::Debug for NoticeHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NoticeHandler")
    }
}
