//! The SDK's client, set up so that S3-compatibles take what it sends.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use aws_sdk_s3::config::interceptors::{
    BeforeDeserializationInterceptorContextRef, BeforeTransmitInterceptorContextRef,
    FinalizerInterceptorContextRef,
};
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
use super::remembered::ServerName;
use crate::error::{Error, ErrorKind, Operation, Result};
use crate::net::{HttpClient, Timeouts};

pub(super) fn build(config: &S3Config, server: ServerName) -> Result<aws_sdk_s3::Client> {
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
        .interceptor(server)
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

/// Watches the attempts that the SDK makes of one request: takes the `Date` of an answer, which the
/// SDK's outputs leave out (the storage's own clock), and notes attempts whose end tells nothing.
#[derive(Debug, Clone, Default)]
pub(super) struct Watch(Arc<Mutex<Watched>>);

#[derive(Debug, Clone, Copy, Default)]
struct Watched {
    clock: Option<SystemTime>,
    sent: bool,
    unclear: bool,
}

impl Watch {
    fn lock(&self) -> MutexGuard<'_, Watched> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn clock(&self) -> Option<SystemTime> {
        self.lock().clock
    }

    /// Whether an attempt so far may have taken effect although it failed.
    pub(super) fn unclear(&self) -> bool {
        self.lock().unclear
    }
}

impl Intercept for Watch {
    fn name(&self) -> &'static str {
        "watch"
    }

    fn read_before_attempt(
        &self,
        _: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> std::result::Result<(), BoxError> {
        self.lock().sent = false;
        Ok(())
    }

    fn read_before_transmit(
        &self,
        _: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> std::result::Result<(), BoxError> {
        self.lock().sent = true;
        Ok(())
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> std::result::Result<(), BoxError> {
        let date = context.response().headers().get("date");
        if let Some(date) = date.and_then(|date| httpdate::parse_http_date(date).ok()) {
            self.lock().clock = Some(date);
        }
        Ok(())
    }

    fn read_after_attempt(
        &self,
        context: &FinalizerInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> std::result::Result<(), BoxError> {
        let failed = !matches!(context.output_or_error(), Some(Ok(_)));
        // A refusal by status is one; 503 is the request to come back later. What breaks off, and
        // what fails inside of the storage, may have been done before.
        let refused = context
            .response()
            .is_some_and(|answer| matches!(answer.status().as_u16(), 300..=499 | 501 | 503));
        let mut watched = self.lock();
        watched.unclear |= watched.sent && failed && !refused;
        Ok(())
    }
}
