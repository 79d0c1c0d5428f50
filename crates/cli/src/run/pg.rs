//! `pg …`

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

use neon_pg::{
    AdoptPg, CheckoutChoice, CheckoutPlan, CloneMethod, CloneWanted, Compare, CreatePg, ErrorKind,
    Name, PgRecord, RestoreChoice, ServerState, Stage,
};
use serde_json::{Map, Value, json};

use super::{Scene, Then, data as as_data, mark, now, psql};
use crate::args::NAME;
use crate::args::pg::{Adopt, Checkout, Compare as How, Create, Destroy, Method, Pg, Trash};
use crate::asking::confirm;
use crate::failure::{Failure, Outcome};
use crate::render::{Align, Answer, Table, age, bytes};

/// How long a listing of all instances counts what they use; it shows what was counted last of the others.
const COUNTING: Duration = Duration::from_millis(20);

pub(crate) async fn run(verb: Pg, scene: &Scene<'_>) -> Outcome<Then> {
    let instances = scene.neon.pg();
    match verb {
        Pg::Create(wanted) => create(wanted, scene).await.map(Then::from),
        Pg::List => list(scene).await.map(Then::from),
        Pg::Show(one) => show(&one.name, scene).await.map(Then::from),
        Pg::Start(wanted) if wanted.replica => {
            let pg = instances.start_replica(&wanted.name).await?;
            scene.step(&format!(
                "Created {}, a replica of {}.",
                pg.record.name, wanted.name
            ));
            started(&pg.record.name, scene).await.map(Then::from)
        }
        Pg::Start(wanted) => {
            match wanted.port {
                Some(port) => instances.start_on(&wanted.name, port).await?,
                None => instances.start(&wanted.name).await?,
            };
            started(&wanted.name, scene).await.map(Then::from)
        }
        Pg::Restart(one) => {
            instances.restart(&one.name).await?;
            started(&one.name, scene).await.map(Then::from)
        }
        Pg::Stop(one) => {
            instances.stop(&one.name).await?;
            let pg = instances.get(&one.name).await?;
            Ok(Answer::of(
                format!("Stopped postgres on {}.", one.name),
                data(&pg, None),
            )
            .into())
        }
        Pg::Adopt(wanted) => adopt(wanted, scene).await.map(Then::from),
        Pg::Checkout(wanted) => checkout(wanted, scene).await.map(Then::from),
        Pg::Destroy(wanted) => destroy(wanted, scene).await.map(Then::from),
        Pg::Trash(wanted) => trash(&wanted, scene).await.map(Then::from),
        Pg::Psql(wanted) => psql::psql(&wanted, scene).await,
        Pg::Url(wanted) => psql::url(&wanted, scene).await.map(Then::from),
        Pg::Logs(wanted) => psql::logs(&wanted, scene).await.map(Then::from),
    }
}

async fn create(wanted: Create, scene: &Scene<'_>) -> Outcome<Answer> {
    let mut create = CreatePg::default();
    create.name = wanted.name.or(wanted.named);
    create.major = wanted.pg_version;
    create.storage = wanted.storage;
    create.port = wanted.port;
    create.pgdata = wanted.pgdata.as_deref().map(super::absolute).transpose()?;
    create.no_start = wanted.no_start;
    let Some(text) = &wanted.snapshot else {
        let pg = scene.neon.pg().create(&create).await?;
        return created(&pg, scene).await;
    };
    let mut how = RestoreChoice::default();
    how.as_is = wanted.as_is;
    how.force = wanted.force;
    how.clone = match wanted.clone_method {
        Some(Method::Subvolume) => CloneWanted::Only(CloneMethod::Subvolume),
        Some(Method::Reflink) => CloneWanted::Only(CloneMethod::Reflink),
        Some(Method::Copy) => CloneWanted::Only(CloneMethod::Copy),
        None if wanted.cow => CloneWanted::CopyOnWrite,
        None => CloneWanted::Best,
    };
    let text = super::absolute_snapshot(text)?;
    let made = scene
        .neon
        .snapshots()
        .create_pg(&create, &text, None, &how)
        .await?;
    created(&made.pg, scene).await
}

/// What is said of an instance that was made.
async fn created(pg: &neon_pg::Pg, scene: &Scene<'_>) -> Outcome<Answer> {
    let name = &pg.record.name;
    if pg.endpoint().is_none() {
        return Ok(Answer::of(format!("Created {name}."), data(pg, None)));
    }
    scene.step(&format!("Created {name}, PostgreSQL {}.", pg.record.major));
    started(name, scene).await
}

/// What is said of a server that has come up: where, and the URI that connects.
async fn started(name: &Name, scene: &Scene<'_>) -> Outcome<Answer> {
    let pg = scene.neon.pg().get(name).await?;
    let uri = psql::uri(name, "postgres", scene).await?;
    let endpoint = pg.endpoint().unwrap_or_default();
    let mut whole = data(&pg, None);
    whole.insert("url".to_owned(), Value::from(uri.clone()));
    Ok(Answer::of(
        format!("Started postgres on {endpoint}\n{uri}"),
        Value::Object(whole),
    ))
}

async fn list(scene: &Scene<'_>) -> Outcome<Answer> {
    let mut table = Table::new(&[
        ("ROLE", Align::Left),
        ("PGDATA", Align::Left),
        ("USED", Align::Right),
        ("STORAGE", Align::Left),
        ("ENDPOINT", Align::Left),
    ]);
    let mut rows = Vec::new();
    let mut all = scene.neon.pg().list().await?;
    // Replicas below who they follow.
    all.sort_by_key(|pg| {
        let record = &pg.record;
        match &record.replica {
            Some(of) => (of.name.to_string(), of.number),
            None => (record.name.to_string(), 0),
        }
    });
    let records = all.iter().map(|pg| &pg.record);
    let sums = scene.neon.pg().used(records, COUNTING);
    for pg in all {
        let used = sums.get(&pg.record.id).copied().unwrap_or_default();
        table.row([
            pg.role_in_list().unwrap_or_default(),
            pg.record.name.to_string(),
            bytes(used),
            pg.record.storage.to_string(),
            pg.endpoint().unwrap_or_default(),
        ]);
        rows.push(Value::Object(data(&pg, Some(used))));
    }
    let mut answer = Answer::list(&table, "instances", rows);
    for error in scene.neon.pg().unreadable()? {
        answer.exit = 7;
        let hint = error.hint().unwrap_or_default().to_owned();
        scene.warn(&format!("{}; {hint}", Failure::from(error)));
    }
    Ok(answer)
}

/// What an instance is, and the space that it and its snapshots use, by storage.
async fn show(name: &Name, scene: &Scene<'_>) -> Outcome<Answer> {
    let pg = scene.neon.pg().get(name).await?;
    let folder = folder(scene, &pg.record);
    let used = neon_pg::bytes_on_disk(&folder);
    let (listed, failed) = scene.neon.snapshots().list(None).await?;
    let mut by_storage: BTreeMap<String, Vec<(String, u64)>> = BTreeMap::new();
    for one in listed {
        let Ok(summary) = &one.listed.summary else {
            continue;
        };
        // One that was restored or rolled back from elsewhere has another id, and still goes by its name.
        let own = summary.instance.as_deref() == Some(pg.record.id.as_str());
        let mut names = one.listed.names.iter();
        if !own && !names.any(|given| given.instance() == Some(name.as_str())) {
            continue;
        }
        let name = one
            .listed
            .names
            .first()
            .map_or_else(|| one.listed.id.to_string(), ToString::to_string);
        by_storage
            .entry(one.storage.to_string())
            .or_default()
            .push((name, summary.added));
    }
    let mut text = format!(
        "{name}:\n  role: {}\n  state: {}\n  postgresql: {}\n  endpoint: {}\n  data: {}\n  storage: {}\n  space used: {}\n",
        pg.role().unwrap_or("-"),
        state(&pg),
        pg.record.major,
        pg.endpoint().unwrap_or_else(|| "-".to_owned()),
        folder.display(),
        pg.record.storage,
        bytes(used),
    );
    if let Some(of) = &pg.record.replica {
        text.push_str(&format!("  replica of: {}\n", of.name));
    }
    let kept = scene.neon.pg().kept_log(&pg.record);
    for one in &kept {
        let head = one
            .head
            .as_ref()
            .map_or("no state that is kept".to_owned(), ToString::to_string);
        text.push_str(&format!(
            "  log not archived before a checkout: {}, kept with {head}\n",
            bytes(one.bytes)
        ));
    }
    let mut whole = data(&pg, Some(used));
    whole.insert("kept_log".to_owned(), as_data(&kept)?);
    let mut spaces = Vec::new();
    let mut all = 0_u64;
    let mut tree = String::new();
    for (storage, snapshots) in &by_storage {
        let sum = snapshots
            .iter()
            .fold(0_u64, |sum, (_, added)| sum.saturating_add(*added));
        all = all.saturating_add(sum);
        text.push_str(&format!("  space used on {storage}: {}\n", bytes(sum)));
        tree.push_str(&format!("    on {storage}:\n"));
        for (name, added) in snapshots {
            tree.push_str(&format!("      {name}: {}\n", bytes(*added)));
        }
        let rows: Vec<Value> = snapshots
            .iter()
            .map(|(name, added)| json!({ "name": name, "added": added }))
            .collect();
        spaces.push(json!({ "storage": storage, "used": sum, "snapshots": rows }));
    }
    if !by_storage.is_empty() {
        text.push_str(&format!(
            "  space used on all storages: {}\n  snapshots:\n{tree}",
            bytes(all)
        ));
    }
    whole.insert("spaces".to_owned(), Value::Array(spaces));
    let mut answer = Answer::of(text, Value::Object(whole));
    for (storage, error) in failed {
        answer.exit = 7;
        scene.warn(&format!(
            "storage {storage} cannot be listed: {}",
            Failure::from(error)
        ));
    }
    Ok(answer)
}

async fn adopt(wanted: Adopt, scene: &Scene<'_>) -> Outcome<Answer> {
    let mut adopt = AdoptPg::new(super::absolute(&wanted.path)?);
    adopt.name = wanted.name;
    adopt.storage = wanted.storage;
    adopt.config_file = wanted
        .config_file
        .as_deref()
        .map(super::absolute)
        .transpose()?;
    adopt.pass_file = wanted
        .pass_file
        .as_deref()
        .map(super::absolute)
        .transpose()?;
    adopt.superuser = wanted.superuser;
    let adopted = scene.neon.pg().adopt(&adopt).await?;
    let mut text = format!(
        "Adopted {}: PostgreSQL {}",
        adopted.name, adopted.record.major
    );
    if let Some(port) = adopted.port {
        text.push_str(&format!(", port {port}"));
    }
    text.push_str(if adopted.runs {
        ", running. Nothing of it was changed."
    } else {
        ", not running. Nothing of it was changed."
    });
    for advice in &adopted.advice {
        text.push_str(&format!("\n  {advice}"));
    }
    Ok(Answer::of(text, as_data(&adopted)?))
}

async fn checkout(wanted: Checkout, scene: &Scene<'_>) -> Outcome<Answer> {
    let instances = scene.neon.pg();
    let name: Name = match (&wanted.pg, wanted.snapshot.split_once('@')) {
        (Some(name), _) => name.clone(),
        (None, Some((name, _))) => name.parse()?,
        (None, None) => {
            return Err(Failure::usage(format!(
                "snapshot {} mentions no instance",
                wanted.snapshot
            ))
            .hinted("give --pg PGDATA"));
        }
    };
    // The instance first: what is not there has no snapshots worth looking for.
    instances.record_of(&name)?;
    let found = scene
        .neon
        .snapshots()
        .find(&wanted.snapshot, wanted.storage.as_ref())
        .await?;
    let mut choice = CheckoutChoice::default();
    choice.configuration = wanted.configuration;
    choice.compare = match wanted.compare {
        How::Auto => Compare::Auto,
        How::Content => Compare::Content,
        How::Map => Compare::Map,
    };
    choice.measure = wanted.consent.dry_run;
    let plan = instances.plan_checkout(&name, &found, choice).await?;
    let text = plan_in_words(&plan);
    if wanted.consent.dry_run {
        let mut whole = as_data(&plan)?;
        mark(&mut whole, "checked_out", false);
        return Ok(Answer::of(text, whole));
    }
    confirm(scene, "pg checkout", &text, wanted.consent.yes).await?;
    let done = instances.checkout(&plan).await?;
    let mut whole = as_data(&done)?;
    mark(&mut whole, "checked_out", true);
    Ok(Answer::of(
        format!(
            "{} is as {} was; what it was before is {}",
            done.pg, wanted.snapshot, done.head
        ),
        whole,
    ))
}

fn plan_in_words(plan: &CheckoutPlan) -> String {
    let taken = u64::try_from(plan.taken).unwrap_or(0);
    let mut text = format!(
        "pg {} goes back to {}, taken {} ago; its present state is kept as {}.",
        plan.pg,
        plan.asked,
        age(taken, now()),
        plan.head
    );
    if plan.of_another {
        text.push_str("\n  the snapshot shows another instance of the same cluster");
    }
    if plan.running {
        text.push_str(&format!(
            "\n  its server is stopped and started again; sessions that end: {}",
            plan.sessions
        ));
    }
    for (what, names) in [
        ("replication slots that go", &plan.slots),
        ("subscriptions that go back", &plan.subscriptions),
        ("prepared transactions that go", &plan.prepared),
        ("replicas that cannot follow", &plan.replicas),
    ] {
        if !names.is_empty() {
            text.push_str(&format!("\n  {what}: {}", names.join(", ")));
        }
    }
    if plan.unarchived > 0 {
        text.push_str(&format!(
            "\n  segments of log not archived yet, kept aside: {}",
            plan.unarchived
        ));
    }
    if let Some(log) = plan.log_since {
        text.push_str(&format!("\n  log written since: {}", bytes(log)));
    }
    text
}

async fn destroy(wanted: Destroy, scene: &Scene<'_>) -> Outcome<Answer> {
    let instances = scene.neon.pg();
    let name = &wanted.name;
    // A listing has it also when nothing can be said of its server.
    let mut all = instances.list().await?;
    all.retain(|pg| pg.record.name == *name);
    let pg = match all.pop() {
        Some(pg) => pg,
        None => instances.get(name).await?,
    };
    let used = neon_pg::bytes_on_disk(&folder(scene, &pg.record));
    let replicas = instances.replicas_of(&pg.record)?;
    let mut plan;
    if pg.record.adopted.is_some() {
        plan = format!(
            "pg {name} will be forgotten; it was adopted, so its server and its data stay as they are"
        );
    } else {
        plan = format!("pg {name} will be destroyed: {} of data", bytes(used));
        if let Some(endpoint) = pg.endpoint() {
            plan.push_str(&format!(", and its server on {endpoint} stopped"));
        }
        if !replicas.is_empty() {
            let names: Vec<&str> = replicas.iter().map(Name::as_str).collect();
            plan.push_str(&format!(
                ". Nothing will come to its replicas any more, which stay as they are then: {}",
                names.join(", ")
            ));
        }
    }
    plan.push_str(". Its snapshots stay.");
    let mut whole = data(&pg, Some(used));
    let done = !wanted.consent.dry_run;
    if done {
        confirm(scene, "pg destroy", &plan, wanted.consent.yes).await?;
        match wanted.lost {
            true => instances.destroy_lost(name, &pg.record.id).await?,
            false => instances.destroy_this(name, &pg.record.id).await?,
        };
        if pg.record.adopted.is_none() {
            scene.note(&format!(
                "{} stay in the trash: {NAME} undo brings {name} back, {NAME} pg trash --empty frees them",
                bytes(used)
            ));
        }
        plan = "Ok".to_owned();
    }
    let replicas = replicas.into_iter().map(|name| Value::from(name.as_str()));
    whole.insert("replicas".to_owned(), replicas.collect());
    whole.insert("destroyed".to_owned(), Value::Bool(done));
    Ok(Answer::of(plan, Value::Object(whole)))
}

/// What was destroyed and is not gone yet.
async fn trash(wanted: &Trash, scene: &Scene<'_>) -> Outcome<Answer> {
    let instances = scene.neon.pg();
    let mut trashed = instances.trash().await?;
    let mut left = instances.left_in_trash().await?;
    if let Some(name) = &wanted.name {
        trashed.retain(|one| one.name == *name);
        left.retain(|one| one.name.as_ref() == Some(name));
        if wanted.empty && trashed.is_empty() && left.is_empty() {
            return Err(
                Failure::own(3, "not-found", format!("pg {name} is not in the trash"))
                    .hinted(format!("see {NAME} pg trash")),
            );
        }
    }
    let mut table = Table::new(&[
        ("PGDATA", Align::Left),
        ("USED", Align::Right),
        ("AGE", Align::Right),
        ("ID", Align::Left),
    ]);
    let mut rows = Vec::new();
    for one in &trashed {
        table.row([
            one.name.to_string(),
            bytes(one.used),
            age(one.destroyed, now()),
            one.id.clone(),
        ]);
        rows.push(as_data(one)?);
    }
    for one in &left {
        let name = one.name.as_ref().map_or("-", Name::as_str);
        let age = "-".to_owned();
        table.row([name.to_owned(), bytes(one.used), age, one.id.clone()]);
        rows.push(json!({
            "id": one.id, "name": one.name, "major": null, "used": one.used, "destroyed": null,
            "left": one.path.display().to_string(),
        }));
        scene.note(&format!(
            "{} is left of an instance that the trash does not remember: no undo brings it back",
            one.path.display()
        ));
    }
    let mut answer = Answer::list(&table, "trash", rows);
    if !wanted.empty {
        return Ok(answer);
    }
    let used = trashed.iter().map(|one| one.used);
    let used = used.chain(left.iter().map(|one| one.used));
    let sum = used.fold(0_u64, u64::saturating_add);
    answer.data.insert("freed".to_owned(), Value::from(sum));
    let done = !wanted.dry_run;
    answer.data.insert("emptied".to_owned(), Value::from(done));
    if done {
        let places = left.iter().map(|one| format!("{}\n", one.path.display()));
        let plan = format!(
            "{table}{}{} will be removed for good; no undo brings them back.",
            places.collect::<String>(),
            bytes(sum)
        );
        if !trashed.is_empty() || !left.is_empty() {
            confirm(scene, "pg trash --empty", &plan, wanted.yes).await?;
        }
        // One that cannot go keeps no other.
        let mut purged = Vec::new();
        for one in &trashed {
            purged.push((one.used, instances.purge(one).await));
        }
        // But of what belongs together nothing goes when a part is in use.
        let mut stays = BTreeSet::new();
        for one in &left {
            if stays.contains(&one.id) {
                continue;
            }
            let outcome = instances.purge_left(one).await;
            if outcome.is_err() {
                stays.insert(&one.id);
            }
            purged.push((one.used, outcome));
        }
        // Also where there is nothing else: a command before may have been killed at it.
        instances.finish_purges().await;
        let mut freed = 0_u64;
        for (used, outcome) in purged {
            match outcome {
                Ok(()) => freed = freed.saturating_add(used),
                // Somebody else emptied it meanwhile.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error.into()),
            }
        }
        answer.data.insert("freed".to_owned(), Value::from(freed));
        answer.text = format!("{} freed", bytes(freed));
    }
    Ok(answer)
}

/// What the space is counted of that an instance uses.
fn folder(scene: &Scene<'_>, record: &PgRecord) -> PathBuf {
    match (&record.adopted, &record.pgdata) {
        (Some(place), _) => place.data_dir.clone(),
        (None, Some(place)) => place.clone(),
        (None, None) => scene
            .neon
            .home()
            .path()
            .join("pg")
            .join(record.name.as_str()),
    }
}

fn state(pg: &neon_pg::Pg) -> &'static str {
    match pg.status.as_ref().map(|status| status.state) {
        None if pg.record.stage == Stage::Ready && pg.record.checkout.is_none() => "unknown",
        None => "changing",
        Some(ServerState::Stopped) => "stopped",
        Some(ServerState::Crashed) => "crashed",
        Some(ServerState::Starting) => "starting",
        Some(ServerState::Running) => "running",
        Some(ServerState::Standby) => "standby",
        Some(ServerState::Stopping) => "stopping",
        Some(ServerState::SingleUser) => "single-user",
        Some(_) => "unknown",
    }
}

/// What a lineage began with, as data. Where that is while it is needed is nothing that stays.
fn base(record: &PgRecord) -> Option<Value> {
    let base = record.base.as_ref()?;
    Some(match &base.storage {
        Some(storage) => json!({ "snapshot": base.snapshot, "storage": storage }),
        None => json!({ "snapshot": base.snapshot }),
    })
}

/// An instance as data.
fn data(pg: &neon_pg::Pg, used: Option<u64>) -> Map<String, Value> {
    let status = pg.status.as_ref();
    let started = status
        .and_then(|status| status.started)
        .and_then(|time| time.duration_since(UNIX_EPOCH).ok())
        .map(|since| since.as_secs());
    let whole = json!({
        "name": pg.record.name,
        "id": pg.record.id,
        "role": pg.role(),
        "replica_of": pg.record.replica.as_ref().map(|of| of.name.to_string()),
        "replica": pg.record.replica.as_ref().map(|of| of.number),
        "state": state(pg),
        "major": pg.record.major,
        "storage": pg.record.storage,
        "endpoint": pg.endpoint(),
        "port": pg.record.port,
        "pid": status.and_then(|status| status.pid),
        "used": used,
        "created": pg.record.created,
        "started": started,
        "lineage": pg.record.lineage,
        "base": base(&pg.record),
        "checkouts": pg.record.checkouts,
        "method": pg.record.method,
        "bin_dir": pg.record.bin_dir,
    });
    match whole {
        Value::Object(whole) => whole,
        _ => Map::new(),
    }
}
