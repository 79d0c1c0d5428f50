//! Promises about names.

use super::check::refused;
use super::{Case, Failure, Subject, always};
use crate::error::{ErrorKind, Result};
use crate::ext::StorageExt;

pub(super) const CASES: &[Case] = &[
    case!(every_valid_key_names_its_own_object, always),
    case!(a_key_below_another_key_is_stored_or_refused, |c| c.write
        && c.list),
];

async fn every_valid_key_names_its_own_object(s: Subject) -> Result<(), Failure> {
    let long = "l".repeat(255);
    let longest = format!("m/{long}/{long}/{long}");
    let names = [
        "plain",
        "with space",
        " leading",
        "trailing ",
        "plus+",
        "percent%41",
        "%2F",
        "question?",
        "hash#",
        "and&",
        "equals=",
        "colon:",
        "semi;",
        "quote\"",
        "apostrophe'",
        "tilde~",
        "star*",
        "lt<gt>",
        "pipe|",
        "brace{}",
        "caret^",
        "back`tick",
        "comma,",
        "at@",
        "dollar$",
        "bang!",
        "(parens)",
        "[brackets]",
        "...",
        ".hidden",
        "ünïcödé",
        "日本語/鍵",
        "e\u{301}",
        "é",
        "🐘",
        "-dash",
        "a/b/c/d/e/f/g/h",
        &long,
        &longest,
    ];
    for name in names {
        s.prepare(&s.key(name)?, name.to_owned().into_bytes())
            .await?;
    }
    for name in names {
        ensure_eq!(
            s.reader.read(&s.key(name)?).await?,
            name,
            "content of {name:?}"
        );
        ensure_eq!(
            s.reader.head(&s.key(name)?).await?.meta.size,
            name.len() as u64,
            "{name:?}"
        );
    }
    if s.capabilities().list {
        let listed: Vec<String> = s
            .reader
            .list_all(&s.prefix)
            .await?
            .into_iter()
            .map(|object| object.key.to_string())
            .collect();
        let mut expected: Vec<String> = names
            .iter()
            .map(|name| format!("{}{name}", s.prefix))
            .collect();
        expected.sort();
        ensure_eq!(listed, expected, "listing");
    }
    Ok(())
}

async fn a_key_below_another_key_is_stored_or_refused(s: Subject) -> Result<(), Failure> {
    let (above, below) = (s.key("node")?, s.key("node/leaf")?);
    let (dir, leaf) = (s.key("dir")?, s.key("dir/leaf")?);
    s.put(&above, "above").await?;
    s.put(&leaf, "leaf").await?;
    if s.capabilities().keys_below_keys {
        s.put(&below, "below").await?;
        s.put(&dir, "dir").await?;
        ensure_eq!(s.reader.list_all(&s.prefix).await?.len(), 4, "objects");
        ensure_eq!(s.reader.read(&below).await?, "below", "content");
    } else {
        let (put, kind) = (s.put(&below, "below").await, ErrorKind::Unsupported);
        refused("below a key", put, kind)?;
        refused("above a key", s.put(&dir, "dir").await, kind)?;
        refused(
            "over a directory",
            s.reader.overwrite(&dir, "dir").await,
            kind,
        )?;
        ensure_eq!(s.reader.list_all(&s.prefix).await?.len(), 2, "objects");
    }
    ensure_eq!(s.reader.read(&above).await?, "above", "content");
    ensure_eq!(s.reader.read(&leaf).await?, "leaf", "content");
    Ok(())
}
