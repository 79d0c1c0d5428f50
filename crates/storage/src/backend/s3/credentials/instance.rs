//! The role of the machine, from the metadata service of the cloud (version 2: with a session
//! token, so that a tricked proxy can't fetch keys).

use bytes::Bytes;
use http::StatusCode;
use http_body_util::Full;
use serde_json::Value;

use super::{Failed, S3Keys, broken};
use crate::net::HttpClient;

const USUAL: &str = "http://169.254.169.254";
const ROLES: &str = "/latest/meta-data/iam/security-credentials/";

pub(super) async fn fetch(http: &HttpClient, endpoint: Option<&str>) -> Result<S3Keys, Failed> {
    let base = endpoint.unwrap_or(USUAL).trim_end_matches('/');
    let request = |method: &str, path: &str, header: (&str, &str)| {
        http::Request::builder()
            .method(method)
            .uri(format!("{base}{path}"))
            .header(header.0, header.1)
            .body(Full::new(Bytes::new()))
            .map_err(|_| broken("not an address of a metadata service"))
    };
    let ttl = ("x-aws-ec2-metadata-token-ttl-seconds", "21600");
    let (status, token) = match http
        .document(request("PUT", "/latest/api/token", ttl)?)
        .await
    {
        Ok(answer) => answer,
        // Not on a machine of that kind.
        Err(error) => return Err(Failed::Nothing(format!("no metadata service: {error}"))),
    };
    if status != StatusCode::OK {
        return Err(broken(format!(
            "the metadata service refused a session: {status}"
        )));
    }
    let session = ("x-aws-ec2-metadata-token", token.trim());
    let (status, roles) = http.document(request("GET", ROLES, session)?).await?;
    let role = match (status, roles.lines().next().map(str::trim)) {
        (StatusCode::OK, Some(role)) if !role.is_empty() => role,
        (StatusCode::OK | StatusCode::NOT_FOUND, _) => {
            return Err(Failed::Nothing("the machine has no role".to_owned()));
        }
        _ => return Err(broken(format!("the metadata service answered {status}"))),
    };
    let path = format!("{ROLES}{role}");
    let (status, document) = http.document(request("GET", &path, session)?).await?;
    if status != StatusCode::OK {
        return Err(broken(format!(
            "the metadata service answered {status} for the role"
        )));
    }
    let document: Value = serde_json::from_str(&document)
        .map_err(|_| broken("the metadata service's answer is no JSON"))?;
    let text = |name: &str| {
        document
            .get(name)
            .and_then(Value::as_str)
            .map(str::to_owned)
    };
    match (text("AccessKeyId"), text("SecretAccessKey"), text("Token")) {
        (Some(id), Some(secret), Some(token)) => {
            let expires = text("Expiration")
                .as_deref()
                .and_then(super::web_identity::moment);
            Ok(S3Keys::new(id, secret).temporary(token, expires))
        }
        _ => Err(broken("the metadata service's answer has no keys")),
    }
}
