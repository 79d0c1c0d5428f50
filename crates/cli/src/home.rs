//! Opening the home: where it is was decided, whether it can be one is found out here.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use neon_pg::{AskPassword, Context, EventSink, Neon, Options, OsUser, Secret, first_closed};

use crate::args::PREFIX;
use crate::asking;
use crate::failure::{Failure, Outcome};
use crate::progress::Progress;
use crate::settings::Settings;
use crate::surroundings::Surroundings;

/// What the library takes from its surroundings.
fn options(
    settings: &Settings,
    surroundings: &Surroundings,
    progress: &Arc<Progress>,
    cancel: &Arc<AtomicBool>,
) -> Outcome<Options> {
    let mut options = Options::new();
    options.path = surroundings.get("PATH").unwrap_or_default().to_owned();
    options.pg_bin.clone_from(&settings.pg_bin);
    options.os_user.clone_from(&settings.os_user);
    options.ports = settings.ports.clone();
    options.patience = settings.patience;
    options.threads = settings.threads;
    options.cancel = Arc::clone(cancel);
    let mut context = Context::default();
    context.variables = surroundings.for_storages();
    options.context = context;
    options.connections = surroundings.for_connections();
    options.ask_password = std::io::stdin()
        .is_terminal()
        .then(|| AskPassword::new(asking::password));
    options.passphrase = passphrase(surroundings)?;
    let progress = Arc::clone(progress);
    options.events = EventSink::new(move |event| progress.show(event));
    Ok(options)
}

/// From the environment, or the file that it names.
fn passphrase(surroundings: &Surroundings) -> Outcome<Option<Secret>> {
    let name = format!("{PREFIX}PASSPHRASE");
    if let Some(value) = surroundings.get(&name) {
        let text = value
            .to_str()
            .ok_or_else(|| Failure::usage(format!("{name} is no text")))?;
        return Ok(Some(Secret::new(text)));
    }
    let Some(path) = surroundings.path(&format!("{name}_FILE")) else {
        return Ok(None);
    };
    let text = std::fs::read_to_string(&path).map_err(|error| {
        Failure::io(
            format!("{name}_FILE {} cannot be read", path.display()),
            &error,
        )
    })?;
    let text = text.trim_end_matches(['\n', '\r']);
    if text.is_empty() {
        return Err(Failure::usage(format!(
            "{name}_FILE {} is empty",
            path.display()
        )));
    }
    Ok(Some(Secret::new(text)))
}

/// Opens the home, made if it is not there; not if it is only to be read.
pub(crate) fn open(
    settings: &Settings,
    surroundings: &Surroundings,
    progress: &Arc<Progress>,
    cancel: &Arc<AtomicBool>,
    to_read: bool,
) -> Outcome<Neon> {
    let options = options(settings, surroundings, progress, cancel)?;
    let home = std::path::absolute(&settings.home)
        .map_err(|error| Failure::io(format!("home {}", settings.home.display()), &error))?;
    if surroundings.root
        && let Ok(user) = OsUser::named(&settings.os_user)
        && let Some(closed) = first_closed(&home, &user)
        // A home that was there is given its mode when it is opened.
        && closed != home
    {
        return Err(Failure::environment(format!(
            "home {}: user {} cannot reach it, because {} is closed to others",
            home.display(),
            settings.os_user,
            closed.display()
        ))
        .hinted(format!(
            "servers do not run as root; choose another folder with --home or NEON_HOME (such as /var/lib/neon), \
             or: chmod o+x {}",
            closed.display()
        )));
    }
    if to_read {
        return Ok(Neon::open_to_read(&home, options)?);
    }
    if let Some(parent) = home.parent() {
        std::fs::create_dir_all(parent).map_err(|error| {
            Failure::io(
                format!("home {}: its parent cannot be made", home.display()),
                &error,
            )
            .hinted("choose another folder with --home or NEON_HOME")
        })?;
    }
    Ok(Neon::open(&home, options)?)
}
