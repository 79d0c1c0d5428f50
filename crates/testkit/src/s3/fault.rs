//! What a test can make go wrong with a request.

use std::time::Duration;

use http::{Method, StatusCode};

/// What a test can know about a request before deciding its fate.
#[derive(Debug, Clone)]
pub struct RequestInfo {
    /// How many requests came before.
    pub number: u64,
    /// The method.
    pub method: Method,
    /// The path as it was sent, with the bucket and percent-encoding.
    pub path: String,
    /// The query as it was sent.
    pub query: String,
    /// The headers.
    pub headers: http::HeaderMap,
}

impl RequestInfo {
    /// Whether the query has this parameter.
    pub fn asks(&self, parameter: &str) -> bool {
        self.query
            .split('&')
            .any(|pair| pair.split('=').next() == Some(parameter))
    }

    /// A plain upload of an object.
    pub fn is_put_object(&self) -> bool {
        self.method == Method::PUT && !self.asks("uploadId") && self.path.matches('/').count() > 1
    }

    /// The request that turns an upload into an object.
    pub fn is_complete(&self) -> bool {
        self.method == Method::POST && self.asks("uploadId")
    }

    /// A read of an object.
    pub fn is_get_object(&self) -> bool {
        self.method == Method::GET && !self.asks("list-type") && !self.asks("uploads")
    }
}

/// The fate of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Answered with an error, nothing is done.
    Answer {
        /// The status.
        status: StatusCode,
        /// The code in the body of the error.
        code: String,
        /// The `Retry-After` header, in seconds.
        retry_after: Option<u64>,
    },
    /// Answered with this document as if all were well, nothing is done.
    Say(String),
    /// Handled so much later.
    Delay(Duration),
    /// The connection closes before anything is done.
    Drop,
    /// Everything is done, then the connection closes without an answer.
    LoseAnswer,
    /// The answer's body ends after so many bytes by a closed connection.
    CutBody(u64),
    /// Nothing ever comes back.
    Hang,
}

impl Fault {
    /// An error answer.
    pub fn answer(status: u16, code: &str) -> Self {
        Self::Answer {
            status: StatusCode::from_u16(status).unwrap(),
            code: code.to_owned(),
            retry_after: None,
        }
    }
}
