//! From a locator to a storage: a table of schemes that anybody can add to.
//!
//! A registry is a value; there is no global one.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;

use crate::backend::memory::Memory;
use crate::backend::native::{Native, NativeOptions};
use crate::error::{Error, ErrorKind, Operation, Result};
use crate::locator::Locator;
use crate::storage::Storage;
use crate::variables::Variables;

/// What opening a storage may need besides its locator. Nothing of it is looked up elsewhere.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Context {
    /// Settings by name: `AWS_*` and those of WAL-G.
    pub variables: Variables,
    /// Files with AWS profiles in order of precedence. By default those that the variables name,
    /// or those below the `HOME` in the variables.
    pub aws_files: Option<Vec<PathBuf>>,
    /// Who asks S3; by default what the variables and files say.
    #[cfg(feature = "s3")]
    pub s3_credentials: Option<crate::backend::s3::S3Credentials>,
    /// Where the program keeps what was found out about buckets; found out by each opening without.
    #[cfg(feature = "s3")]
    pub probe_memory: Option<Arc<dyn crate::backend::s3::ProbeMemory>>,
    /// The program that connects `ssh`; `ssh` on the search path if absent.
    pub ssh_program: Option<PathBuf>,
    /// How a native storage makes files.
    pub native: NativeOptions,
}

/// Opens the storages of one scheme.
#[async_trait]
pub trait Factory: fmt::Debug + Send + Sync + 'static {
    /// Opens a storage. The locator has the scheme that the factory is registered for.
    async fn open(&self, locator: &Locator, context: &Context) -> Result<Arc<dyn Storage>>;
}

/// Schemes and who opens them.
#[derive(Debug, Clone)]
pub struct Registry {
    factories: BTreeMap<String, Arc<dyn Factory>>,
}

impl Default for Registry {
    /// The schemes of this crate that its features include.
    fn default() -> Self {
        let mut registry = Self::empty();
        registry.register("file", Arc::new(NativeFactory));
        registry.register("memory", Arc::new(MemoryFactory));
        #[cfg(feature = "s3")]
        registry.register("s3", Arc::new(crate::backend::s3::S3Factory));
        #[cfg(feature = "http")]
        for scheme in ["http", "https"] {
            registry.register(scheme, Arc::new(crate::backend::http::HttpFactory));
        }
        #[cfg(feature = "ssh")]
        registry.register("ssh", Arc::new(crate::backend::ssh::SshFactory));
        registry
    }
}

impl Registry {
    /// No schemes at all.
    pub fn empty() -> Self {
        Self {
            factories: BTreeMap::new(),
        }
    }

    /// Adds a scheme, or replaces who opens it.
    pub fn register(&mut self, scheme: &str, factory: Arc<dyn Factory>) {
        self.factories.insert(scheme.to_ascii_lowercase(), factory);
    }

    /// The schemes in order.
    pub fn schemes(&self) -> impl Iterator<Item = &str> {
        self.factories.keys().map(String::as_str)
    }

    /// Opens the storage at a locator.
    pub async fn open(&self, locator: &Locator, context: &Context) -> Result<Arc<dyn Storage>> {
        match self.factories.get(locator.scheme()) {
            Some(factory) => factory.open(locator, context).await,
            None => {
                let known: Vec<&str> = self.schemes().collect();
                Err(Error::new(ErrorKind::Unsupported, Operation::Open)
                    .subject(locator.to_string())
                    .detail(format!(
                        "there is no backend for `{}`, only for: {}",
                        locator.scheme(),
                        known.join(", ")
                    )))
            }
        }
    }
}

#[derive(Debug)]
struct NativeFactory;

#[async_trait]
impl Factory for NativeFactory {
    async fn open(&self, locator: &Locator, context: &Context) -> Result<Arc<dyn Storage>> {
        let path = locator
            .file_path()
            .ok_or_else(|| locator.invalid("not a path"))?
            .to_owned();
        let options = context.native.clone();
        let opened = tokio::task::spawn_blocking(move || Native::open(path, options)).await;
        let opened = opened.map_err(|error| {
            Error::new(ErrorKind::Unavailable, Operation::Open)
                .subject(locator.to_string())
                .because(error)
        })?;
        Ok(Arc::new(opened?))
    }
}

#[derive(Debug)]
struct MemoryFactory;

#[async_trait]
impl Factory for MemoryFactory {
    async fn open(&self, _: &Locator, _: &Context) -> Result<Arc<dyn Storage>> {
        Ok(Arc::new(Memory::new()))
    }
}
