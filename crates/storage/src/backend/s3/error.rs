//! What the SDK's errors mean.
//!
//! Their own text can quote requests, so only the provider's code and message and the text of
//! transport errors pass; none of them holds a credential.

use std::fmt;
use std::time::Duration;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

use crate::error::{Error, ErrorKind, Operation, Retry};

/// What the provider said.
#[derive(Debug)]
struct Said(String);

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Said {}

/// The HTTP status of an answer, zero if there was none.
pub(super) fn status<E>(error: &SdkError<E, HttpResponse>) -> u16 {
    error
        .raw_response()
        .map_or(0, |answer| answer.status().as_u16())
}

/// Lowers an error of the SDK.
pub(super) fn lower<E>(
    operation: Operation,
    subject: &str,
    error: &SdkError<E, HttpResponse>,
) -> Error
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    let new = |kind, said: String| {
        Error::new(kind, operation)
            .subject(subject)
            .because(Said(said))
    };
    match error {
        SdkError::ServiceError(context) => {
            let (code, message) = (context.err().code(), context.err().message());
            let status = status(error);
            let said = format!(
                "{} {}: {}",
                status,
                code.unwrap_or("(no code)"),
                message.unwrap_or("(no message)")
            );
            let kind = kind(status, code.unwrap_or_default());
            let lowered = new(kind, said);
            let pause = context
                .raw()
                .headers()
                .get("retry-after")
                .and_then(|seconds| seconds.parse().ok())
                .map(Duration::from_secs);
            match (kind, pause) {
                (ErrorKind::Unavailable, Some(pause)) => lowered.retry(Retry::After(pause)),
                (ErrorKind::Invalid, _) if code == Some("NoSuchBucket") => {
                    lowered.detail("there is no such bucket")
                }
                (ErrorKind::Invalid, _) if matches!(status, 301 | 307 | 308) => {
                    lowered.detail("the bucket is in another region")
                }
                _ => lowered,
            }
        }
        other => {
            let text = crate::net::chain(other);
            match credentials(other) {
                Some(CredentialsError::CredentialsNotLoaded(_)) => {
                    new(ErrorKind::Unauthenticated, text).detail("no credentials found")
                }
                Some(failed) => match ours(failed) {
                    Some(inner) if inner.kind() == ErrorKind::Unavailable => {
                        new(ErrorKind::Unavailable, text)
                    }
                    _ => new(ErrorKind::Unauthenticated, text),
                },
                None => match other {
                    SdkError::ConstructionFailure(_) => new(ErrorKind::Invalid, text),
                    SdkError::ResponseError(_) => {
                        new(ErrorKind::Corrupt, text).retry(Retry::MayHelp)
                    }
                    _ => new(ErrorKind::Unavailable, text),
                },
            }
        }
    }
}

fn kind(status: u16, code: &str) -> ErrorKind {
    match code {
        "NoSuchKey" | "NotFound" | "NoSuchUpload" => return ErrorKind::NotFound,
        "NoSuchBucket" | "InvalidBucketName" | "PermanentRedirect" => return ErrorKind::Invalid,
        "InvalidAccessKeyId"
        | "NotSignedUp"
        | "SignatureDoesNotMatch"
        | "ExpiredToken"
        | "InvalidToken"
        | "TokenRefreshRequired"
        | "RequestTimeTooSkewed"
        | "ExpiredTokenException" => {
            return ErrorKind::Unauthenticated;
        }
        "RequestTimeout"
        | "SlowDown"
        | "Throttling"
        | "TooManyRequests"
        | "InternalError"
        | "ServiceUnavailable"
        | "ConditionalRequestConflict"
        | "OperationAborted" => {
            return ErrorKind::Unavailable;
        }
        "NotImplemented" | "MethodNotAllowed" => return ErrorKind::Unsupported,
        "PreconditionFailed" => return ErrorKind::Precondition,
        _ => {}
    }
    match status {
        401 => ErrorKind::Unauthenticated,
        403 => ErrorKind::Denied,
        404 | 410 => ErrorKind::NotFound,
        405 | 501 => ErrorKind::Unsupported,
        412 => ErrorKind::Precondition,
        408 | 409 | 429 | 500.. => ErrorKind::Unavailable,
        _ => ErrorKind::Invalid,
    }
}

/// The failure to find credentials among an error's causes.
fn credentials<'e>(error: &'e (dyn std::error::Error + 'static)) -> Option<&'e CredentialsError> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        cause = error.source();
    }
    None
}

/// Our own error among the causes of a failed fetch.
fn ours(error: &CredentialsError) -> Option<&Error> {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        cause = error.source();
    }
    None
}
