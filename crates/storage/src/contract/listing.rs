//! Promises about listing.

use futures_util::{StreamExt, TryStreamExt};

use super::check::Failure;
use super::{Case, Subject};
use crate::capabilities::Capabilities;
use crate::error::Result;
use crate::ext::StorageExt;
use crate::options::ListOptions;

pub(super) const CASES: &[Case] = &[
    case!(a_listing_has_every_key_in_byte_order, lists),
    case!(a_listing_begins_at_prefix_and_offset, lists),
    case!(a_listing_says_what_head_says, lists),
    case!(an_interrupted_listing_is_continued_from_its_last_key, lists),
    case!(everything_listed_can_be_deleted_meanwhile, |c| c.list
        && c.delete),
];

fn lists(capabilities: &Capabilities) -> bool {
    capabilities.list
}

/// Names whose order differs between a walk of directories and the order of bytes.
const NAMES: &[&str] = &[
    "a-b/x", "a.b", "a/b", "a/b-c", "a/c/d", "a/c0", "a0", "ab", "b/1", "b/10", "b/2", "B", "é",
    "z", "a/c/d2/e", "a/c/d2/f", "a!", "a/!",
];

async fn prepare(s: &Subject) -> Result<Vec<String>, Failure> {
    let mut names: Vec<String> = NAMES.iter().map(|name| (*name).to_owned()).collect();
    names.extend((0..25).map(|number| format!("many/{number}")));
    for name in &names {
        s.prepare(&s.key(name)?, "x").await?;
    }
    names.sort();
    Ok(names)
}

async fn listed(s: &Subject, prefix: &str, after: Option<&str>) -> Result<Vec<String>, Failure> {
    let mut options = ListOptions::prefix(format!("{}{prefix}", s.prefix));
    options.after = after.map(|after| format!("{}{after}", s.prefix));
    let objects: Vec<_> = s.reader.list(options).try_collect().await?;
    objects
        .into_iter()
        .map(|object| {
            let key = object.key.as_str();
            key.strip_prefix(&s.prefix)
                .map(str::to_owned)
                .ok_or_else(|| Failure::new(format!("{key} is outside of the prefix")))
        })
        .collect()
}

async fn a_listing_has_every_key_in_byte_order(s: Subject) -> Result<(), Failure> {
    let names = prepare(&s).await?;
    ensure_eq!(listed(&s, "", None).await?, names, "listing");
    ensure!(
        listed(&s, "nothing", None).await?.is_empty(),
        "an empty listing"
    );
    Ok(())
}

async fn a_listing_begins_at_prefix_and_offset(s: Subject) -> Result<(), Failure> {
    let names = prepare(&s).await?;
    let prefixes = [
        "", "a", "a/", "a/c", "a/c/", "a/c/d2/e", "b/1", "many/1", "x", "é",
    ];
    let offsets = [
        "a", "a/", "a/c", "a/c/d", "a/c/d2", "a/c/zzz", "a0", "b/1", "many/24", "z", "zz",
    ];
    for prefix in prefixes {
        for after in std::iter::once(None).chain(offsets.into_iter().map(Some)) {
            let expected: Vec<&String> = names
                .iter()
                .filter(|name| name.starts_with(prefix))
                .filter(|name| after.is_none_or(|after| name.as_str() > after))
                .collect();
            let got = listed(&s, prefix, after).await?;
            ensure_eq!(
                got.iter().collect::<Vec<_>>(),
                expected,
                "{prefix:?} after {after:?}"
            );
        }
    }
    Ok(())
}

async fn a_listing_says_what_head_says(s: Subject) -> Result<(), Failure> {
    for length in [0usize, 7, 100_000] {
        s.prepare(&s.key(&format!("of-{length}"))?, vec![1u8; length])
            .await?;
    }
    for object in s.reader.list_all(&s.prefix).await? {
        let head = s.reader.head(&object.key).await?.meta;
        ensure_eq!(object.size, head.size, "size of {}", object.key);
        ensure_eq!(object.version, head.version, "version of {}", object.key);
        let apart = object
            .modified
            .duration_since(head.modified)
            .unwrap_or_else(|earlier| earlier.duration());
        ensure!(
            apart.as_secs() < 2,
            "times of {} are {apart:?} apart",
            object.key
        );
    }
    Ok(())
}

async fn an_interrupted_listing_is_continued_from_its_last_key(s: Subject) -> Result<(), Failure> {
    let names = prepare(&s).await?;
    let mut seen: Vec<String> = Vec::new();
    loop {
        let mut options = ListOptions::prefix(s.prefix.clone());
        options.after = seen.last().cloned();
        let page: Vec<_> = s.reader.list(options).take(4).try_collect().await?;
        if page.is_empty() {
            break;
        }
        seen.extend(page.into_iter().map(|object| object.key.to_string()));
    }
    let expected: Vec<String> = names
        .iter()
        .map(|name| format!("{}{name}", s.prefix))
        .collect();
    ensure_eq!(seen, expected, "pieces together");
    Ok(())
}

async fn everything_listed_can_be_deleted_meanwhile(s: Subject) -> Result<(), Failure> {
    let names = prepare(&s).await?;
    let deleted = s.reader.delete_prefix(&s.prefix).await?;
    ensure_eq!(deleted, names.len() as u64, "deleted");
    ensure!(listed(&s, "", None).await?.is_empty(), "something is left");
    Ok(())
}
