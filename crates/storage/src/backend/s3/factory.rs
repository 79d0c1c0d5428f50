//! From locator and variables to a configuration.
//!
//! Options of the locator win over variables.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::config::{Checksum, Encryption, S3Config};
use super::credentials::{S3Credentials, S3Keys};
use super::probe::Conditional;
use super::storage::S3;
use crate::error::{Error, ErrorKind, Operation, Result};
use crate::key::Key;
use crate::layer::Prefix;
use crate::locator::Locator;
use crate::registry::{Context, Factory};
use crate::secret::Secret;
use crate::storage::Storage;
use crate::variables::{Variables, invalid};

/// Opens `s3://` locators.
#[derive(Debug)]
pub(crate) struct S3Factory;

#[async_trait]
impl Factory for S3Factory {
    async fn open(&self, locator: &Locator, context: &Context) -> Result<Arc<dyn Storage>> {
        let config = S3Config::from_locator(locator, context)?;
        let bucket: Arc<dyn Storage> = Arc::new(S3::open(config).await?);
        match locator.path().as_str() {
            "" => Ok(bucket),
            prefix => {
                let prefix =
                    Key::new(prefix).map_err(|error| locator.invalid(error.to_string()))?;
                Ok(Arc::new(Prefix::new(bucket, prefix)))
            }
        }
    }
}

/// What WAL-G knows and this backend doesn't do.
const NOT_DONE: &[&str] = &[
    "S3_USE_LIST_OBJECTS_V1",
    "S3_RETENTION_PERIOD",
    "S3_RETENTION_MODE",
    "S3_REQUEST_ADDITIONAL_HEADERS",
    "AWS_DUAL_STACK",
    "S3_CSE_KMS_ID",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
];

impl S3Config {
    /// The configuration that a locator and its context mean. The prefix in the locator is not
    /// part of it.
    pub fn from_locator(locator: &Locator, context: &Context) -> Result<Self> {
        if locator.user().is_some() || locator.password().is_some() {
            return Err(locator.invalid("credentials don't belong into a locator of `s3`"));
        }
        let bucket = locator.host().ok_or_else(|| locator.invalid("no bucket"))?;
        let mut config = Self::new(bucket);
        config.apply_variables(&context.variables)?;
        config.credentials = match &context.s3_credentials {
            Some(credentials) => credentials.clone(),
            None => {
                S3Credentials::from_variables(&context.variables, context.aws_files.as_deref())?
            }
        };
        let mut sse = Sse::default();
        for (name, value) in locator.options() {
            config
                .apply_option(&name, &value, context, &mut sse)
                .map_err(|problem| locator.invalid(format!("option `{name}`: {problem}")))?;
        }
        if let Some(encryption) = sse
            .encryption()
            .map_err(|problem| locator.invalid(problem))?
        {
            config.encryption = Some(encryption);
        }
        config.probe_prefix = locator.path();
        config.probe_memory = context.probe_memory.clone();
        if let Some(endpoint) = &config.endpoint
            && !(endpoint.starts_with("http://") || endpoint.starts_with("https://"))
        {
            return Err(locator.invalid("the endpoint does not begin with http:// or https://"));
        }
        Ok(config)
    }

    fn apply_option(
        &mut self,
        name: &str,
        value: &str,
        context: &Context,
        sse: &mut Sse,
    ) -> Result<(), String> {
        let text = || value.to_owned();
        let number = || value.parse::<u64>().map_err(|_| "not a number".to_owned());
        let flag = || match value {
            "true" | "1" => Ok(true),
            "false" | "0" => Ok(false),
            _ => Err("neither true nor false".to_owned()),
        };
        match name {
            "endpoint" => self.endpoint = Some(text()),
            "region" => self.region = Some(text()),
            "path-style" => self.path_style = Some(flag()?),
            "storage-class" => self.storage_class = Some(text()),
            "sse" => sse.name = Some(text()),
            "sse-kms-id" => sse.key = Some(text()),
            "checksum" => {
                self.checksum = match value {
                    "automatic" => Checksum::Automatic,
                    "none" => Checksum::None,
                    "md5" => Checksum::Md5,
                    _ => return Err("none of automatic, none, md5".to_owned()),
                };
            }
            "part-size" => self.set_part_size(number()?),
            "max-part-size" => self.max_part_size = number()?,
            "concurrency" => {
                self.upload_concurrency = usize::try_from(number()?).map_err(|_| "too large")?;
            }
            "bulk-delete" => self.bulk_delete = flag()?,
            "list-page" => self.list_page = u16::try_from(number()?).map_err(|_| "too large")?,
            "attempts" => self.attempts = u32::try_from(number()?).map_err(|_| "too large")?,
            "connect-timeout" => self.connect_timeout = Duration::from_secs(number()?),
            "read-timeout" => self.read_timeout = Duration::from_secs(number()?),
            "profile" => {
                let files = profile_files(&context.variables, context.aws_files.as_deref());
                self.credentials = S3Credentials::Profile {
                    files,
                    name: text(),
                };
            }
            "credentials" => {
                self.credentials = match value {
                    "anonymous" => S3Credentials::Anonymous,
                    "instance" => S3Credentials::Instance { endpoint: None },
                    _ => return Err("neither anonymous nor instance".to_owned()),
                };
            }
            "conditional" => {
                self.conditional = match value {
                    "automatic" => Conditional::Automatic,
                    "trusted" => Conditional::Trusted,
                    "probed" => Conditional::Probed,
                    "unused" => Conditional::Unused,
                    _ => return Err("none of automatic, trusted, probed, unused".to_owned()),
                };
            }
            _ => return Err("there is no such option".to_owned()),
        }
        Ok(())
    }

    fn set_part_size(&mut self, size: u64) {
        self.part_size = size;
        self.max_part_size = self.max_part_size.max(size);
    }

    fn apply_variables(&mut self, variables: &Variables) -> Result<()> {
        if let Some(name) = NOT_DONE.iter().find(|name| {
            variables
                .get(name)
                .is_some_and(|value| !matches!(value, "false" | "-1" | "0"))
        }) {
            return Err(Error::new(ErrorKind::Unsupported, Operation::Open)
                .subject(*name)
                .detail("this backend has no such setting"));
        }
        let first = |names: &[&str]| {
            names
                .iter()
                .find_map(|name| variables.get(name))
                .map(str::to_owned)
        };
        self.endpoint = first(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT", "AWS_ENDPOINT_URL"]);
        self.region = first(&["AWS_REGION", "AWS_DEFAULT_REGION"]);
        self.path_style = variables.flag("AWS_S3_FORCE_PATH_STYLE")?;
        self.storage_class = first(&["S3_STORAGE_CLASS"]);
        let sse = Sse {
            name: first(&["S3_SSE"]),
            key: first(&["S3_SSE_KMS_ID"]),
        };
        self.encryption = sse
            .encryption()
            .map_err(|problem| invalid("S3_SSE", &problem))?;
        if let Some(key) = variables.get("S3_SSE_C") {
            use base64::Engine;
            let key = base64::engine::general_purpose::STANDARD.encode(key);
            self.encryption = Some(Encryption::Customer(Secret::new(key)));
        }
        if let Some(size) = variables.number("S3_MAX_PART_SIZE")? {
            self.set_part_size(size);
        }
        if let Some(count) = variables.number("UPLOAD_CONCURRENCY")? {
            self.upload_concurrency = usize::try_from(count).unwrap_or(usize::MAX);
        }
        if let Some(count) = variables.number("S3_MAX_RETRIES")? {
            self.attempts = u32::try_from(count).unwrap_or(u32::MAX).saturating_add(1);
        }
        if let Some(path) = first(&["S3_CA_CERT_FILE", "AWS_CA_BUNDLE"]) {
            self.ca_certificate = Some(
                std::fs::read(&path)
                    .map_err(|error| crate::error::from_io(Operation::Open, &path, error))?,
            );
        }
        Ok(())
    }
}

/// Two settings that mean something only together, in whichever order they come.
#[derive(Default)]
struct Sse {
    name: Option<String>,
    key: Option<String>,
}

impl Sse {
    fn encryption(self) -> Result<Option<Encryption>, String> {
        match (self.name.as_deref(), self.key) {
            (None, None) => Ok(None),
            (Some("AES256"), None) => Ok(Some(Encryption::Provider)),
            (Some("aws:kms"), key) => Ok(Some(Encryption::Kms(key))),
            (None, key) => Ok(Some(Encryption::Kms(key))),
            (Some("AES256"), Some(_)) => {
                Err("of server-side encryption: AES256 takes no key of the key service".to_owned())
            }
            (Some(_), _) => {
                Err("of server-side encryption is neither AES256 nor aws:kms".to_owned())
            }
        }
    }
}

impl S3Credentials {
    /// What the AWS tools would use by these variables: keys, else a token file with a role, else
    /// the profile (`AWS_PROFILE`, else `default`), else the machine's role. One half of a pair
    /// alone is an error: other credentials than were meant would be used.
    pub fn from_variables(variables: &Variables, files: Option<&[PathBuf]>) -> Result<Self> {
        let first = |names: &[&str]| names.iter().find_map(|name| variables.get(name));
        let id = first(&["AWS_ACCESS_KEY_ID", "AWS_ACCESS_KEY"]);
        let secret = first(&["AWS_SECRET_ACCESS_KEY", "AWS_SECRET_KEY"]);
        match (id, secret) {
            (Some(id), Some(secret)) => {
                let session_token = first(&["AWS_SESSION_TOKEN"]).map(Secret::from);
                return Ok(Self::Static(S3Keys {
                    session_token,
                    ..S3Keys::new(id, secret)
                }));
            }
            (None, None) => {}
            (Some(_), None) => {
                return Err(invalid(
                    "AWS_ACCESS_KEY_ID",
                    "has no AWS_SECRET_ACCESS_KEY beside it",
                ));
            }
            (None, Some(_)) => {
                return Err(invalid(
                    "AWS_SECRET_ACCESS_KEY",
                    "has no AWS_ACCESS_KEY_ID beside it",
                ));
            }
        }
        let profile = Self::Profile {
            files: profile_files(variables, files),
            name: variables.get("AWS_PROFILE").unwrap_or("default").to_owned(),
        };
        if variables.get("AWS_PROFILE").is_some() {
            return Ok(profile);
        }
        let mut sources = Vec::new();
        match (
            variables.get("AWS_WEB_IDENTITY_TOKEN_FILE"),
            variables.get("AWS_ROLE_ARN"),
        ) {
            (Some(token_file), Some(role)) => sources.push(Self::WebIdentity {
                role_arn: role.to_owned(),
                session_name: first(&["AWS_ROLE_SESSION_NAME"])
                    .unwrap_or("neon-storage")
                    .to_owned(),
                token_file: token_file.into(),
                endpoint: first(&["AWS_ENDPOINT_URL_STS"]).map(str::to_owned),
                region: first(&["AWS_REGION", "AWS_DEFAULT_REGION"]).map(str::to_owned),
            }),
            (Some(_), None) => {
                return Err(invalid(
                    "AWS_WEB_IDENTITY_TOKEN_FILE",
                    "has no AWS_ROLE_ARN beside it",
                ));
            }
            // A role alone says which one to take by other means.
            (None, _) => {}
        }
        sources.push(profile);
        if !matches!(variables.flag("AWS_EC2_METADATA_DISABLED"), Ok(Some(true))) {
            let endpoint = first(&["AWS_EC2_METADATA_SERVICE_ENDPOINT"]).map(str::to_owned);
            sources.push(Self::Instance { endpoint });
        }
        Ok(Self::FirstOf(sources))
    }
}

fn profile_files(variables: &Variables, given: Option<&[PathBuf]>) -> Vec<PathBuf> {
    if let Some(given) = given {
        return given.to_vec();
    }
    let home = variables.get("HOME").map(PathBuf::from);
    [
        ("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials"),
        ("AWS_CONFIG_FILE", ".aws/config"),
    ]
    .into_iter()
    .filter_map(|(name, below_home)| match variables.get(name) {
        Some(path) => Some(PathBuf::from(path)),
        None => home.as_ref().map(|home| home.join(below_home)),
    })
    .collect()
}
