//! From an `ssh://` locator to a storage.

use std::sync::Arc;

use async_trait::async_trait;

use super::config::SshConfig;
use super::storage::Ssh;
use crate::error::Result;
use crate::locator::Locator;
use crate::registry::{Context, Factory};
use crate::storage::Storage;

/// Opens `ssh://` locators.
#[derive(Debug)]
pub(crate) struct SshFactory;

#[async_trait]
impl Factory for SshFactory {
    async fn open(&self, locator: &Locator, context: &Context) -> Result<Arc<dyn Storage>> {
        if locator.password().is_some() {
            return Err(locator.invalid("`ssh` takes no password: use keys or an agent"));
        }
        if let Some((name, _)) = locator.options().first() {
            return Err(locator.invalid(format!(
                "`ssh` has no option `{name}`: use its configuration"
            )));
        }
        let host = locator.host().ok_or_else(|| locator.invalid("no host"))?;
        // What `ssh` would take for an option is no name.
        let user = locator.user();
        if host.starts_with('-') || user.as_ref().is_some_and(|user| user.starts_with('-')) {
            return Err(locator.invalid("a host or user that begins with a dash"));
        }
        let path = locator.path();
        let root = match path.strip_prefix('~') {
            Some("") => ".".to_owned(),
            Some(below) if below.starts_with('/') => format!(".{below}"),
            _ => format!("/{path}"),
        };
        let program = context.ssh_program.clone();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let mut config = SshConfig::new(program, host, user.as_deref(), locator.port(), root);
        config.shown = locator.to_string();
        Ok(Arc::new(Ssh::open(config).await?))
    }
}
