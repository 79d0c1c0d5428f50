//! Copies of clusters whose roles and databases were given settings.

use std::io::Write;

use neon_pg::{Event, PgMajor, RestoreChoice};

use crate::restored::listening;
use crate::support::{Fixture, name, run, take};

async fn a_copy_gets_its_password_whatever_its_roles_were_given(major: PgMajor) {
    let home = Fixture::of(major);
    home.running("p1").await;
    let given = "alter role postgres set session_preload_libraries = 'nothere'; \
                 alter role postgres set default_transaction_read_only = on; \
                 alter role postgres set search_path = nowhere; \
                 create role other; \
                 alter database postgres set role = other";
    run(&home.neon, "p1", given).await;
    home.neon.pg().stop(&name("p1")).await.unwrap();
    let snapshot = take(&home.neon, "p1", "a").await;
    let (neon, told) = listening(&home);
    let how = RestoreChoice::default();
    let copy = home.stopped("copy");
    neon.pg().create_from(&copy, &snapshot, &how).await.unwrap();
    let told = told.lock().unwrap().clone();
    let warned = told.iter().any(|event| matches!(event, Event::Warning(_)));
    assert!(!warned, "{told:?}");
    neon.pg().start(&name("copy")).await.unwrap();
    let instance = neon.pg().instance(&name("copy")).await.unwrap();
    assert!(
        instance
            .uri("postgres")
            .unwrap()
            .starts_with("postgresql://postgres:")
    );
    // With the password of its own; what the role was given it still has.
    assert!(instance.connect("postgres").await.is_err());
    instance
        .connect_bare("postgres")
        .await
        .unwrap()
        .close()
        .await;
    neon.pg().stop(&name("copy")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_gets_its_password_whatever_its_roles_were_given_on_13_and_18() {
    a_copy_gets_its_password_whatever_its_roles_were_given(PgMajor::V13).await;
    a_copy_gets_its_password_whatever_its_roles_were_given(PgMajor::V18).await;
}

/// That it is there is all that is looked at before: only a server can tell whether it is of use.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_library_that_cannot_be_loaded_is_told_when_the_copy_starts_and_the_copy_is_there() {
    let home = Fixture::new();
    home.neon.pg().create(&home.stopped("p1")).await.unwrap();
    let library = home.scratch.path().join("broken.so");
    std::fs::write(&library, "no library").unwrap();
    let data = home.scratch.path().join("home/pg/p1/data");
    let auto = data.join("postgresql.auto.conf");
    let mut auto = std::fs::File::options().append(true).open(auto).unwrap();
    let line = format!("shared_preload_libraries = '{}'", library.display());
    writeln!(auto, "{line}").unwrap();
    let snapshot = take(&home.neon, "p1", "a").await;
    let (pg, mut how) = (home.neon.pg(), RestoreChoice::default());
    // It is none of the libraries of these programs.
    how.force = true;
    let mut create = home.create();
    create.name = Some(name("copy"));
    let error = pg.create_from(&create, &snapshot, &how).await.unwrap_err();
    assert!(
        error.to_string().contains("is made, but does not run"),
        "{error}"
    );
    let mut causes = String::new();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        causes.push_str(&format!("{error}: "));
        cause = error.source();
    }
    assert!(causes.contains("broken.so"), "{causes}");
    let copy = home
        .scratch
        .path()
        .join("home/pg/copy/data/postgresql.auto.conf");
    let text = std::fs::read_to_string(&copy).unwrap();
    std::fs::write(&copy, text.replace(&line, "")).unwrap();
    pg.start(&name("copy")).await.unwrap();
    pg.stop(&name("copy")).await.unwrap();
}
