//! `pg …`

use std::path::Path;
use std::time::UNIX_EPOCH;

use neon_pg::{CheckoutChoice, CheckoutPlan, CreatePg, Located, Name, RestoreChoice, ServerState};
use serde_json::{Map, Value, json};

use super::snapshot::{Passing, data as as_data};
use super::{Scene, Then, mark, now, psql};
use crate::args::pg::{Checkout, Create, Destroy, Pg};
use crate::confirm::confirm;
use crate::failure::{Failure, Outcome, say};
use crate::render::{Align, Answer, Table, age, bytes};

pub(crate) async fn run(verb: Pg, scene: &Scene<'_>) -> Outcome<Then> {
    let instances = scene.neon.pg();
    match verb {
        Pg::Create(wanted) => create(wanted, scene).await.map(Then::from),
        Pg::List => list(scene).await.map(Then::from),
        Pg::Show(one) => show(&one.name, scene).await.map(Then::from),
        Pg::Start(one) => {
            instances.start(&one.name).await?;
            started(&one.name, scene).await.map(Then::from)
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
        Pg::Checkout(wanted) => checkout(wanted, scene).await.map(Then::from),
        Pg::Destroy(wanted) => destroy(wanted, scene).await.map(Then::from),
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
    create.no_start = wanted.no_start;
    let pg = match &wanted.snapshot {
        None => scene.neon.pg().create(&create).await?,
        Some(text) => {
            let mut how = RestoreChoice::default();
            how.as_is = wanted.as_is;
            how.force = wanted.force;
            create_from(&create, text, &how, scene).await?
        }
    };
    let name = pg.record.name.clone();
    if wanted.no_start {
        return Ok(Answer::of(format!("Created {name}."), data(&pg, None)));
    }
    if scene.says() {
        say(&format!("Created {name}, PostgreSQL {}.", pg.record.major));
    }
    started(&name, scene).await
}

/// From a snapshot, which is imported for the moment if it is outside.
async fn create_from(
    create: &CreatePg,
    text: &str,
    how: &RestoreChoice,
    scene: &Scene<'_>,
) -> Outcome<neon_pg::Pg> {
    let tell = |text: &str| {
        if scene.says() {
            say(text);
        }
    };
    match scene.neon.snapshots().locate(text, None).await? {
        Located::Stored(found) => Ok(scene.neon.pg().create_from(create, &found, how).await?),
        Located::Outside(source) => {
            let passing = Passing::import(source, scene).await?;
            tell("Downloading snapshot... Done.");
            let made = scene
                .neon
                .pg()
                .create_from(create, passing.found(), how)
                .await;
            let destroyed = passing.destroy(scene).await;
            let pg = made?;
            destroyed?;
            tell("Destroying snapshot... Done.");
            Ok(pg)
        }
        _ => Err(Failure::usage(format!(
            "snapshot {text} is where this program does not know"
        ))),
    }
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
    for pg in scene.neon.pg().list().await? {
        let used = used(&folder(scene, &pg.record.name));
        table.row([
            pg.role().unwrap_or_default().to_owned(),
            pg.record.name.to_string(),
            bytes(used),
            pg.record.storage.to_string(),
            pg.endpoint().unwrap_or_default(),
        ]);
        rows.push(Value::Object(data(&pg, Some(used))));
    }
    Ok(Answer::list(&table, "instances", rows))
}

async fn show(name: &Name, scene: &Scene<'_>) -> Outcome<Answer> {
    let pg = scene.neon.pg().get(name).await?;
    let used = used(&folder(scene, name));
    let text = format!(
        "{name}:\n  role: {}\n  state: {}\n  postgresql: {}\n  endpoint: {}\n  data: {}\n  storage: {}\n  space used: {}\n",
        pg.role().unwrap_or("-"),
        state(&pg),
        pg.record.major,
        pg.endpoint().unwrap_or_else(|| "-".to_owned()),
        folder(scene, name).display(),
        pg.record.storage,
        bytes(used),
    );
    Ok(Answer::of(text, Value::Object(data(&pg, Some(used)))))
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
    let plan = instances.plan_checkout(&name, &found, choice).await?;
    let text = plan_in_words(&plan);
    if wanted.consent.dry_run {
        let mut whole = as_data(&plan)?;
        mark(&mut whole, "checked_out", false);
        return Ok(Answer::of(text, whole));
    }
    confirm("pg checkout", &text, wanted.consent.yes).await?;
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
    if let Some(log) = plan.log_since {
        text.push_str(&format!("\n  log written since: {}", bytes(log)));
    }
    text
}

async fn destroy(wanted: Destroy, scene: &Scene<'_>) -> Outcome<Answer> {
    let instances = scene.neon.pg();
    let name = &wanted.name;
    let pg = instances.get(name).await?;
    let used = used(&folder(scene, name));
    let mut plan = format!("pg {name} will be destroyed: {} of data", bytes(used));
    if let Some(endpoint) = pg.endpoint() {
        plan.push_str(&format!(", and its server on {endpoint} stopped"));
    }
    plan.push_str(". Its snapshots stay.");
    let mut whole = data(&pg, Some(used));
    if wanted.consent.dry_run {
        whole.insert("destroyed".to_owned(), Value::Bool(false));
        return Ok(Answer::of(plan, Value::Object(whole)));
    }
    confirm("pg destroy", &plan, wanted.consent.yes).await?;
    instances.destroy(name).await?;
    whole.insert("destroyed".to_owned(), Value::Bool(true));
    Ok(Answer::of("Ok", Value::Object(whole)))
}

fn folder(scene: &Scene<'_>, name: &Name) -> std::path::PathBuf {
    scene.neon.home().path().join("pg").join(name.as_str())
}

/// Bytes on disk below a folder. What goes while we look, or may not be looked at, counts nothing.
fn used(folder: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let mut sum = 0_u64;
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            sum = sum.saturating_add(meta.blocks().saturating_mul(512));
            if meta.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    sum
}

fn state(pg: &neon_pg::Pg) -> &'static str {
    match pg.status.as_ref().map(|status| status.state) {
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
        "base": pg.record.base,
        "checkouts": pg.record.checkouts,
        "method": pg.record.method,
        "bin_dir": pg.record.bin_dir,
    });
    match whole {
        Value::Object(whole) => whole,
        _ => Map::new(),
    }
}
