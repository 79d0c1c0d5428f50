//! The SDK's client, set up so that S3-compatibles take what it sends.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use aws_sdk_s3::config::interceptors::BeforeDeserializationInterceptorContextRef;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, ConfigBag, Intercept, Region, RequestChecksumCalculation,
    ResponseChecksumValidation, RuntimeComponents, SharedCredentialsProvider,
    StalledStreamProtectionConfig,
};
use aws_sdk_s3::error::BoxError;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider as Tls, TlsContext, TrustStore};

use super::config::S3Config;
use super::credentials::Provider;
use crate::error::{Error, ErrorKind, Operation, Result};
use crate::net::{HttpClient, Timeouts};

pub(super) fn build(config: &S3Config) -> Result<aws_sdk_s3::Client> {
    let invalid = |detail: String| {
        Error::new(ErrorKind::Invalid, Operation::Open)
            .subject(format!("s3://{}", config.bucket))
            .detail(detail)
    };
    if let Some(endpoint) = &config.endpoint {
        let url =
            url::Url::parse(endpoint).map_err(|_| invalid("an unreadable endpoint".into()))?;
        if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
            return Err(invalid(
                "an endpoint has neither user nor password nor query".into(),
            ));
        }
    }
    let mut trust = TrustStore::empty().with_native_roots(true);
    if let Some(pem) = &config.ca_certificate {
        trust = trust.with_pem_certificate(pem.clone());
    }
    let tls = TlsContext::builder()
        .with_trust_store(trust)
        .build()
        .map_err(|error| invalid(error.to_string()))?;
    let transport = aws_smithy_http_client::Builder::new()
        .tls_provider(Tls::Rustls(CryptoMode::Ring))
        .tls_context(tls)
        .build_https();
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(config.connect_timeout)
        .read_timeout(config.read_timeout)
        .build();
    let mut builder = aws_sdk_s3::config::Builder::new()
        .behavior_version(BehaviorVersion::latest())
        .http_client(transport)
        .timeout_config(timeouts)
        .retry_config(RetryConfig::standard().with_max_attempts(config.attempts.max(1)))
        .stalled_stream_protection(
            StalledStreamProtectionConfig::enabled()
                .grace_period(config.read_timeout)
                .build(),
        )
        // The default of the SDK wraps bodies in chunks with a trailer, which R2, older MinIO,
        // Spaces and others refuse or store as part of the object.
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .region(Region::new(
            config
                .region
                .clone()
                .unwrap_or_else(|| "us-east-1".to_owned()),
        ))
        .force_path_style(config.path_style.unwrap_or(config.endpoint.is_some()));
    if let Some(endpoint) = &config.endpoint {
        builder = builder.endpoint_url(endpoint);
    }
    builder = if config.credentials.is_anonymous() {
        builder.allow_no_auth()
    } else {
        let timeouts = Timeouts {
            connect: config.connect_timeout,
            read: config.read_timeout,
        };
        let http = HttpClient::new(timeouts, config.ca_certificate.as_deref())
            .map_err(|error| invalid(error.to_string()))?;
        let provider = Provider {
            credentials: config.credentials.clone(),
            http,
        };
        builder.credentials_provider(SharedCredentialsProvider::new(provider))
    };
    Ok(aws_sdk_s3::Client::from_conf(builder.build()))
}

/// Takes the `Date` of an answer, which the SDK's outputs leave out: the storage's own clock.
#[derive(Debug, Clone, Default)]
pub(super) struct Clock(Arc<Mutex<Option<SystemTime>>>);

impl Clock {
    pub(super) fn read(&self) -> Option<SystemTime> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Intercept for Clock {
    fn name(&self) -> &'static str {
        "clock"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> std::result::Result<(), BoxError> {
        let date = context.response().headers().get("date");
        if let Some(date) = date.and_then(|date| httpdate::parse_http_date(date).ok()) {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(date);
        }
        Ok(())
    }
}
