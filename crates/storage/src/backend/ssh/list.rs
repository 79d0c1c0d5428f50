//! Listing a tree on the far side in the byte order of keys, in bounded memory.
//!
//! The same walk as that of the native backend: each pass over a directory keeps its smallest
//! names, here together with what the server says of them.

use std::collections::VecDeque;
use std::sync::Arc;

use super::client::Connection;
use super::files::Failed;
use super::storage::modified;
use super::wire::{Attrs, Status};
use crate::backend::native::{Smallest, wanted};
use crate::key::{Key, RESERVED};
use crate::object::ObjectMeta;
use crate::options::ListOptions;

/// Names held per directory on the path.
const BATCH: usize = 64 * 1024;

pub(super) struct Walk {
    connection: Arc<Connection>,
    root: String,
    options: ListOptions,
    stack: Vec<Directory>,
}

struct Directory {
    prefix: String,
    names: VecDeque<(String, Attrs)>,
    resume: Option<String>,
}

impl Walk {
    pub(super) fn new(connection: Arc<Connection>, root: String, options: ListOptions) -> Self {
        let top = Directory {
            prefix: String::new(),
            names: VecDeque::new(),
            resume: Some(String::new()),
        };
        Self {
            connection,
            root,
            options,
            stack: vec![top],
        }
    }

    /// Objects of one step; `None` at the end.
    pub(super) async fn next_chunk(&mut self) -> Result<Option<Vec<ObjectMeta>>, Failed> {
        loop {
            let Some(top) = self.stack.last_mut() else {
                return Ok(None);
            };
            let mut found = Vec::new();
            while let Some((name, attrs)) = top.names.pop_front() {
                let path = format!("{}{name}", top.prefix);
                if path.ends_with('/') {
                    self.stack.push(Directory {
                        prefix: path,
                        names: VecDeque::new(),
                        resume: Some(String::new()),
                    });
                    break;
                }
                let Ok(key) = Key::new(path) else { continue };
                let size = attrs.size.unwrap_or(0);
                found.push(ObjectMeta::new(key, size, None, modified(attrs)));
                if found.len() >= 1000 {
                    break;
                }
            }
            if !found.is_empty() {
                return Ok(Some(found));
            }
            let Some(top) = self.stack.last_mut() else {
                return Ok(None);
            };
            if !top.names.is_empty() {
                continue;
            }
            match top.resume.take() {
                None => drop(self.stack.pop()),
                Some(after) => {
                    let path = format!("{}/{}", self.root, top.prefix);
                    scan(&self.connection, &path, top, &after, &self.options).await?;
                }
            }
        }
    }
}

async fn scan(
    connection: &Arc<Connection>,
    path: &str,
    directory: &mut Directory,
    after: &str,
    options: &ListOptions,
) -> Result<(), Failed> {
    let path = match path.trim_end_matches('/') {
        "" => "/",
        path => path,
    };
    let open = match connection.open_dir(path).await {
        Ok(open) => open,
        Err(failed) if failed.status() == Some(Status::NoSuchFile) => return Ok(()),
        Err(failed) => return Err(failed),
    };
    let mut smallest = Smallest::new(BATCH);
    loop {
        let names = open.names().await?;
        if names.is_empty() {
            break;
        }
        for (name, attrs) in names {
            let Ok(mut name) = String::from_utf8(name.to_vec()) else {
                continue;
            };
            if matches!(name.as_str(), "." | ".." | RESERVED) {
                continue;
            }
            if attrs.is_dir() {
                name.push('/');
            } else if !attrs.is_file() {
                continue;
            }
            if name.as_str() > after && wanted(&directory.prefix, &name, options) {
                smallest.offer((name, attrs));
            }
        }
    }
    let (names, more) = smallest.into_sorted();
    directory.resume = names.back().filter(|_| more).map(|(name, _)| name.clone());
    directory.names = names;
    Ok(())
}
