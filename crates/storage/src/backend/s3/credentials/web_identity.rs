//! A role for a token: `AssumeRoleWithWebIdentity` of the security token service.

use std::path::Path;
use std::time::SystemTime;

use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;
use bytes::Bytes;
use http::StatusCode;
use http_body_util::Full;

use super::{Failed, S3Keys, broken};
use crate::error::{Error, ErrorKind, Operation};
use crate::net::HttpClient;

pub(super) struct Role<'a> {
    pub(super) role_arn: &'a str,
    pub(super) session_name: &'a str,
}

pub(super) async fn fetch(
    http: &HttpClient,
    role: &Role<'_>,
    token_file: &Path,
    endpoint: Option<&str>,
    region: Option<&str>,
) -> Result<S3Keys, Failed> {
    let path = token_file.to_owned();
    let token = tokio::task::spawn_blocking(move || std::fs::read_to_string(path))
        .await
        .map_err(|_| broken("the runtime is shutting down"))?
        .map_err(|error| broken(format!("{}: {error}", token_file.display())))?;
    // In the body, not in the address: addresses end up in logs.
    let form = url::form_urlencoded::Serializer::new(String::new())
        .append_pair("Action", "AssumeRoleWithWebIdentity")
        .append_pair("Version", "2011-06-15")
        .append_pair("RoleArn", role.role_arn)
        .append_pair("RoleSessionName", role.session_name)
        .append_pair("WebIdentityToken", token.trim())
        .finish();
    let address = match (endpoint, region) {
        (Some(endpoint), _) => endpoint.to_owned(),
        (None, Some(region)) => format!("https://sts.{region}.amazonaws.com/"),
        (None, None) => "https://sts.amazonaws.com/".to_owned(),
    };
    let request = http::Request::builder()
        .method("POST")
        .uri(address)
        .header("content-type", "application/x-www-form-urlencoded")
        .header("accept", "application/xml")
        .body(Full::new(Bytes::from(form)))
        .map_err(|_| broken("not an address of a token service"))?;
    let (status, document) = http.document(request).await?;
    if status.is_server_error() {
        let text = format!("the token service answered {status}");
        return Err(Failed::Broken(
            Error::new(ErrorKind::Unavailable, Operation::Open).detail(text),
        ));
    }
    if status != StatusCode::OK {
        let code = element(&document, "Code").unwrap_or_else(|| status.to_string());
        return Err(broken(format!(
            "the token service refused the role: {code}"
        )));
    }
    let text = |name| element(&document, name);
    match (
        text("AccessKeyId"),
        text("SecretAccessKey"),
        text("SessionToken"),
    ) {
        (Some(id), Some(secret), Some(token)) => {
            let expires = text("Expiration").as_deref().and_then(moment);
            Ok(S3Keys::new(id, secret).temporary(token, expires))
        }
        _ => Err(broken("the token service's answer has no keys")),
    }
}

/// The text of the first element of this name; the texts looked for hold no markup.
fn element(document: &str, name: &str) -> Option<String> {
    let (_, rest) = document.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    Some(text.trim().to_owned())
}

/// A moment as both services write it.
pub(super) fn moment(text: &str) -> Option<SystemTime> {
    SystemTime::try_from(DateTime::from_str(text, Format::DateTimeWithOffset).ok()?).ok()
}
