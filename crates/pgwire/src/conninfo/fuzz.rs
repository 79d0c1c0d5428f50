//! What the fuzz targets and the property tests run over connection parameters.

use std::collections::BTreeMap;

use crate::conninfo::pass_file::{self, Wanted};
use crate::conninfo::{Config, Params, Surroundings, service};

/// Parses a connection string and resolves it; what was parsed survives being set one by one.
pub(crate) fn conninfo(text: &str) {
    let Ok(params) = text.parse::<Params>() else {
        return;
    };
    let mut again = Params::new();
    for (name, value) in params.iter() {
        assert!(again.set(name, value).is_ok(), "{name} was accepted once");
    }
    assert_eq!(params, again);
    let surroundings = Surroundings {
        os_user: Some("somebody".to_owned()),
        ..Surroundings::default()
    };
    // A service or password file that a string names is not opened here.
    if params.get("service").is_none() && params.get("passfile").is_none() {
        drop(Config::resolve(&params, &surroundings));
    }
}

/// Reads a service file and a password file from the same text.
pub(crate) fn files(text: &str) {
    let mut params = Params::new();
    drop(service::apply_text(&mut params, "a", text));
    let wanted = Wanted {
        host: "a",
        port: 1,
        database: "a",
        user: "a",
    };
    drop(pass_file::find(text, &wanted));
    let environment: BTreeMap<String, String> = text
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(a, b)| (a.into(), b.into()))
        .collect();
    drop(Config::resolve(
        &Params::new(),
        &Surroundings {
            environment: environment
                .into_iter()
                .filter(|(name, _)| name != "PGSERVICE" && name != "PGPASSFILE")
                .collect(),
            ..Surroundings::default()
        },
    ));
}
