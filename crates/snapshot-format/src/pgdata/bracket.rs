//! A backup that is open on a running server.

use std::sync::Arc;

use neon_pg_layout::Lsn;

/// Answers with the server's present insert position.
type InsertPosition = Arc<
    dyn Fn() -> std::result::Result<Lsn, Box<dyn std::error::Error + Send + Sync>> + Send + Sync,
>;

/// A backup that the server has begun and that stays open while its files are copied.
#[derive(Clone)]
pub struct Bracket {
    pub(crate) start: Lsn,
    pub(crate) insert_position: InsertPosition,
}

impl Bracket {
    /// The position that the start of the backup returned, and a question to the server: where it has
    /// inserted log by now (on a standby: replayed). It is asked only about pages that look damaged.
    pub fn new(
        start: Lsn,
        insert_position: impl Fn() -> std::result::Result<Lsn, Box<dyn std::error::Error + Send + Sync>>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        Self {
            start,
            insert_position: Arc::new(insert_position),
        }
    }
}

impl std::fmt::Debug for Bracket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bracket")
            .field("start", &self.start)
            .finish_non_exhaustive()
    }
}
