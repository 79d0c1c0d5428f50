//! Sessions with servers whose roles and databases were given settings.

use crate::support::*;

async fn a_bare_session_takes_nothing_from_its_role_or_its_database(major: PgMajor) {
    let fixture = Fixture::new(major).await;
    let instance = &fixture.instance;
    let scoped = instance.start_scoped(&start_options()).await.unwrap();
    let set = [
        "create role other",
        "create schema theirs",
        "create function theirs.like(text, text) returns boolean language plpgsql as $$ begin raise 'called'; end $$",
        "create operator theirs.~~ (function = theirs.like, leftarg = text, rightarg = text)",
        "alter role postgres set session_preload_libraries = 'nothere'",
        "alter role postgres set search_path = theirs, pg_catalog",
        "alter role postgres set default_transaction_read_only = on",
        "alter role postgres set statement_timeout = 1",
        "alter database postgres set lock_timeout = 1",
        "alter database postgres set role = 'other'",
        "alter role postgres in database postgres set local_preload_libraries = 'nothere'",
    ];
    let mut client = instance.connect("postgres").await.unwrap();
    for statement in set {
        client.simple_query(statement).await.unwrap();
    }
    if major >= PgMajor::V14 {
        let idle = "alter role postgres set idle_session_timeout = 1";
        client.simple_query(idle).await.unwrap();
    }
    if major >= PgMajor::V17 {
        let login = "create function theirs.login() returns event_trigger language plpgsql as $$ begin raise 'called'; end $$; \
                     create event trigger login on login execute function theirs.login(); \
                     alter event trigger login enable always; \
                     alter role postgres set transaction_timeout = 1";
        client.simple_query(login).await.unwrap();
    }
    client.close().await;
    let refused = instance.connect("postgres").await.map(drop).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Connection, "{refused:?}");

    let mut client = instance.connect_bare("postgres").await.unwrap();
    let mut ask = async |sql: &str| {
        let results = client.simple_query(sql).await.unwrap();
        let value = results.last().and_then(|rows| rows.value(0, 0));
        value.unwrap_or_default().to_owned()
    };
    assert_eq!(ask("select current_user").await, "postgres");
    assert_eq!(ask("select 'a'::text like 'a'::text").await, "t");
    assert_eq!(
        ask("create table public.t as select 1 as i; select i from public.t").await,
        "1"
    );
    assert_eq!(
        ask("select pg_sleep(0.1); show statement_timeout").await,
        "0"
    );
    assert_eq!(ask("show lock_timeout").await, "0");
    if major >= PgMajor::V14 {
        assert_eq!(ask("show idle_session_timeout").await, "0");
    }
    client.close().await;
    scoped.stop(StopMode::Fast);
}

#[test]
fn a_bare_session_takes_nothing_from_its_role_or_its_database_on_13_and_16() {
    run(a_bare_session_takes_nothing_from_its_role_or_its_database(
        PgMajor::V13,
    ));
    run(a_bare_session_takes_nothing_from_its_role_or_its_database(
        PgMajor::V16,
    ));
}

#[test]
fn a_bare_session_takes_nothing_from_its_role_or_its_database_on_17_and_18() {
    run(a_bare_session_takes_nothing_from_its_role_or_its_database(
        PgMajor::V17,
    ));
    run(a_bare_session_takes_nothing_from_its_role_or_its_database(
        PgMajor::V18,
    ));
}
