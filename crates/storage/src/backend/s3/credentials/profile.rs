//! Profiles in the files of the AWS tools: sections in brackets, `key = value` below them.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use super::web_identity::Role;
use super::{Failed, S3Keys, broken, web_identity};
use crate::net::HttpClient;
use crate::secret::Secret;

/// What a profile says.
pub(super) enum Profile {
    Keys(S3Keys),
    WebIdentity(WebIdentity),
}

pub(super) struct WebIdentity {
    role_arn: String,
    session_name: String,
    token_file: PathBuf,
    region: Option<String>,
}

impl WebIdentity {
    pub(super) async fn fetch(&self, http: &HttpClient) -> Result<S3Keys, Failed> {
        let role = Role {
            role_arn: &self.role_arn,
            session_name: &self.session_name,
        };
        web_identity::fetch(http, &role, &self.token_file, None, self.region.as_deref()).await
    }
}

/// Reads a profile; a setting in an earlier file hides one in a later.
pub(super) async fn load(files: &[PathBuf], name: &str) -> Result<Profile, Failed> {
    let files_read = files.to_vec();
    let texts = tokio::task::spawn_blocking(move || {
        files_read
            .iter()
            .map(|path| read(path))
            .collect::<Result<Vec<_>, Failed>>()
    })
    .await
    .map_err(|_| broken("the runtime is shutting down"))??;
    let mut settings = HashMap::new();
    for text in texts.iter().flatten() {
        for (key, value) in section(text, name) {
            settings.entry(key).or_insert(value);
        }
    }
    if settings.is_empty() {
        return Err(Failed::Nothing(format!("no profile `{name}`")));
    }
    let take = |key: &str| settings.get(key).cloned();
    if let (Some(id), Some(secret)) = (take("aws_access_key_id"), take("aws_secret_access_key")) {
        let session_token = take("aws_session_token").map(Secret::from);
        return Ok(Profile::Keys(S3Keys {
            session_token,
            ..S3Keys::new(id, secret)
        }));
    }
    // Half a pair is a mistake, and no reason to look elsewhere.
    for half in ["aws_access_key_id", "aws_secret_access_key"] {
        if settings.contains_key(half) {
            return Err(broken(format!(
                "profile `{name}` has `{half}` without its other half"
            )));
        }
    }
    if let (Some(role_arn), Some(token_file)) = (take("role_arn"), take("web_identity_token_file"))
    {
        return Ok(Profile::WebIdentity(WebIdentity {
            role_arn,
            session_name: take("role_session_name").unwrap_or_else(|| "neon-storage".to_owned()),
            token_file: token_file.into(),
            region: take("region"),
        }));
    }
    let foreign = [
        "credential_process",
        "sso_session",
        "sso_start_url",
        "source_profile",
        "credential_source",
    ];
    match foreign.iter().find(|key| settings.contains_key(**key)) {
        Some(key) => Err(broken(format!(
            "profile `{name}` uses `{key}`, which is not supported: give a credentials source"
        ))),
        None => Err(Failed::Nothing(format!("profile `{name}` has no keys"))),
    }
}

fn read(path: &Path) -> Result<Option<String>, Failed> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(broken(format!("{}: {error}", path.display()))),
    }
}

/// The settings of one profile: `[name]` in a credentials file, `[profile name]` in a config file.
fn section(text: &str, name: &str) -> Vec<(String, String)> {
    let mut settings = Vec::new();
    let mut ours = false;
    for line in text.lines() {
        // Indented lines belong to nested settings of services, which say nothing about keys.
        let nested = line.starts_with([' ', '\t']);
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(header) = line
            .strip_prefix('[')
            .and_then(|rest| rest.split(']').next())
        {
            let header = header.trim();
            ours = header == name
                || header
                    .strip_prefix("profile")
                    .is_some_and(|rest| rest.starts_with([' ', '\t']) && rest.trim() == name);
        } else if ours
            && !nested
            && let Some((key, value)) = line.split_once('=')
        {
            settings.push((key.trim().to_lowercase(), value.trim().to_owned()));
        }
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::section;

    #[test]
    fn sections_are_told_apart() {
        let text = "\
[default]\naws_access_key_id=A\n# comment\n[profile work] \naws_access_key_id = B\ns3 =\n  region = x\n\
[workshop]\naws_access_key_id = C\n";
        let key = |name| {
            section(text, name)
                .into_iter()
                .find(|(key, _)| key == "aws_access_key_id")
                .map(|(_, value)| value)
        };
        assert_eq!(key("default").as_deref(), Some("A"));
        assert_eq!(key("work").as_deref(), Some("B"));
        assert_eq!(key("workshop").as_deref(), Some("C"));
        assert_eq!(key("shop"), None);
        assert!(!section(text, "work").iter().any(|(key, _)| key == "region"));
    }
}
