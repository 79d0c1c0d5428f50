//! Asking a server to stop what a connection is doing.

use bytes::{BufMut, Bytes};
use tokio::time::timeout;

use crate::client::Peer;
use crate::client::connect::connect_for_cancel;
use crate::error::{Error, ErrorKind, Result};

const CANCEL_REQUEST: i32 = 80_877_102;

/// The right to cancel what a [`Client`](crate::Client) is doing, from anywhere.
///
/// It does not hold the connection open. `Debug` does not show the key.
#[derive(Clone)]
pub struct CancelToken {
    pub(super) peer: Peer,
    pub(super) process: i32,
    pub(super) key: Bytes,
}

impl std::fmt::Debug for CancelToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CancelToken")
            .field("process", &self.process)
            .finish_non_exhaustive()
    }
}

impl CancelToken {
    /// Asks the server to cancel, over a connection of its own, encrypted if the other one was.
    ///
    /// The server never says whether there was anything to cancel: the operation itself then ends
    /// with SQLSTATE 57014, or has ended already. Dropping the future leaves it open whether the
    /// request arrives.
    ///
    /// # Errors
    /// When the server cannot be reached.
    pub async fn cancel(&self) -> Result<()> {
        let config = &self.peer.config;
        let patience = config.connect_timeout.unwrap_or(config.limits.connect);
        let request = async {
            let mut framed = connect_for_cancel(&self.peer).await?;
            let length = i32::try_from(12 + self.key.len())
                .map_err(|_| Error::protocol("the cancel key is too long"))?;
            let output = framed.output();
            output.put_i32(length);
            output.put_i32(CANCEL_REQUEST);
            output.put_i32(self.process);
            output.put_slice(&self.key);
            framed.flush().await?;
            // The server closes the connection once it has passed the request on.
            drop(framed.read().await);
            Ok(())
        };
        match timeout(patience, request).await {
            Ok(result) => result,
            Err(_) => Err(Error::new(
                ErrorKind::Timeout,
                "cancel",
                format!("the server did not take it within {patience:?}"),
            )),
        }
    }
}
