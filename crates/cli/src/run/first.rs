//! `init`, `start`, `stop`, `export`.

use std::collections::BTreeSet;

use neon_pg::{ErrorKind, InitOptions};
use serde_json::{Value, json};

use super::snapshot::{form, taken_in_words};
use super::{Scene, absolute_place, data, psql};
use crate::args::first::{Export, Init, Start};
use crate::failure::{Failure, Outcome};
use crate::render::{Answer, age};

/// When the cluster of `init` is stored. Who expects more loses data.
const WHEN: &str = "Nothing is stored in the background: neon stop and neon snapshot create store what was written since.";

pub(crate) async fn init(wanted: Init, scene: &Scene<'_>) -> Outcome<Answer> {
    let mut options = InitOptions::default();
    options.storage_dest = wanted
        .storage_dest
        .as_deref()
        .map(absolute_place)
        .transpose()?;
    options.storage_options = wanted.options.into_iter().collect();
    options.snapshot_path = wanted
        .snapshot_path
        .as_deref()
        .map(absolute_place)
        .transpose()?;
    options.snapshot_format = wanted.snapshot_format.map(form);
    options.pg.name = wanted.name;
    options.pg.major = wanted.pg_version;
    options.pg.port = wanted.port;
    let made = scene.neon.snapshot_first().init(&options).await?;
    let text = format!(
        "Initialized {}. Its snapshots go to {}; the first is {}.\n{WHEN}",
        made.pg, made.storage_dest, made.snapshot
    );
    Ok(Answer::of(text, data(&made)?))
}

/// Starts the cluster of `init`, and whatever else ran before a reboot.
pub(crate) async fn start(wanted: Start, scene: &Scene<'_>) -> Outcome<Answer> {
    let options = wanted.options.into_iter().collect();
    let dest = wanted
        .storage_dest
        .as_deref()
        .map(absolute_place)
        .transpose()?;
    // What runs already is not what this command started.
    let mut up = BTreeSet::new();
    for record in scene.neon.pg().records()? {
        let pg = scene.neon.pg().get(&record.name).await;
        if pg.is_ok_and(|pg| pg.endpoint().is_some()) {
            up.insert(record.name);
        }
    }
    let mut busy = None;
    let first = scene
        .neon
        .snapshot_first()
        .start(dest.as_deref(), &options)
        .await;
    let (mut text, mut whole) = match first {
        Ok(started) => {
            let mut text = String::new();
            if let Some(restored) = &started.restored {
                let old = u64::try_from(restored.age).unwrap_or(0);
                text = format!(
                    "Restored {} from {}, which is {} old\n",
                    started.pg,
                    restored.snapshot,
                    age(0, old)
                );
            }
            scene.note(WHEN);
            let uri = psql::uri(&started.pg, "postgres", scene).await?;
            text.push_str(&format!(
                "Started postgres on {}\n{uri}\n",
                started.endpoint
            ));
            let mut whole = data(&started)?;
            if let Value::Object(whole) = &mut whole {
                whole.insert("url".to_owned(), Value::from(uri));
            }
            (text, whole)
        }
        Err(error)
            if error.kind() == ErrorKind::NotFound
                && dest.is_none()
                && !scene.neon.snapshot_first().is_initialized()? =>
        {
            let wanted = scene.neon.pg().records()?;
            if !wanted.iter().any(|record| record.wanted) {
                return Err(error.into());
            }
            (String::new(), json!({ "pg": null }))
        }
        // It may be the only one that came back after a reboot.
        Err(error) if error.kind() == ErrorKind::Busy => {
            busy = Some(error);
            (String::new(), json!({ "pg": null }))
        }
        Err(error) => return Err(error.into()),
    };
    let mut others = Vec::new();
    let mut exit = 0;
    let wanted = scene.neon.pg().start_wanted().await?;
    if let Some(error) = busy {
        if wanted.iter().all(|(name, _)| up.contains(name)) {
            return Err(error.into());
        }
        scene.note(&Failure::from(error).to_string());
    }
    for (name, outcome) in wanted {
        match outcome {
            Ok(()) => {
                let endpoint = scene.neon.pg().get(&name).await?.endpoint();
                if whole.get("pg").and_then(Value::as_str) != Some(name.as_str()) {
                    text.push_str(&format!("{name}: {}\n", endpoint.as_deref().unwrap_or("-")));
                }
                others.push(json!({ "name": name, "endpoint": endpoint }));
            }
            Err(error) => {
                let failure = Failure::from(error);
                scene.warn(&failure.to_string());
                exit = 7;
                others.push(json!({ "name": name, "error": failure.json() }));
            }
        }
    }
    if let Value::Object(whole) = &mut whole {
        whole.insert("started".to_owned(), Value::Array(others));
    }
    let mut answer = Answer::of(text, whole);
    answer.exit = exit;
    Ok(answer)
}

pub(crate) async fn stop(scene: &Scene<'_>) -> Outcome<Answer> {
    let taken = scene.neon.snapshot_first().stop().await?;
    Ok(Answer::of(
        format!(
            "Stopped postgres on {}.\n{}",
            taken.pg,
            taken_in_words(&taken)
        ),
        data(&taken)?,
    ))
}

pub(crate) async fn export(wanted: Export, scene: &Scene<'_>) -> Outcome<Answer> {
    let to = absolute_place(&wanted.snapshot_path)?;
    let format = form(wanted.snapshot_format);
    let done = scene.neon.snapshot_first().export(&to, format).await?;
    Ok(Answer::of(
        format!("Exported {} to {to}", done.snapshot),
        data(&done)?,
    ))
}
