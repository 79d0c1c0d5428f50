//! Noticing the end of a session while nothing is asked of it.

use crate::client::{Client, unexpected};
use crate::error::Error;
use crate::server_error::ServerError;

impl Client {
    /// Waits, between commands, until the server ends the session or the connection breaks, and returns
    /// how; the client is closed then. Completes at once when it is closed already.
    ///
    /// Dropping the future loses nothing: the session goes on, and what the server said meanwhile is kept.
    pub async fn closed(&mut self) -> Error {
        let mut last_words = None;
        loop {
            let frame = match self.framed() {
                // No limit: silence is what is hoped for.
                Ok(framed) => framed.read_on().await,
                Err(error) => return last_words.unwrap_or(error),
            };
            match frame {
                Ok(frame) => match frame.tag() {
                    b'N' => self.note(&frame),
                    b'S' => {
                        if let Err(error) =
                            super::connect::note_parameter(frame, &mut self.parameters)
                        {
                            self.framed = None;
                            return error;
                        }
                    }
                    b'A' => {}
                    // It says why, and hangs up.
                    b'E' => {
                        let words = ServerError::parse(&frame.body());
                        last_words = Some(Error::from_server("session", words));
                    }
                    _ => {
                        self.framed = None;
                        return unexpected("session", &frame);
                    }
                },
                Err(error) => {
                    self.framed = None;
                    return last_words.unwrap_or(error);
                }
            }
        }
    }
}
