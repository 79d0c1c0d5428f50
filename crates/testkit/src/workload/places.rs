//! Databases and tablespaces: whole folders that come, move and go.

use crate::client::{Client, SqlError};
use crate::workload::Random;

/// The ways to copy a template that a major knows, as options of CREATE DATABASE.
fn strategies(client: &Client) -> &'static [&'static str] {
    if client.major().layout().has_wal_log_createdb {
        &["strategy file_copy", "strategy wal_log"]
    } else {
        &[""]
    }
}

pub(super) fn prepare_databases(client: &Client, size: u32) -> Result<(), SqlError> {
    let rows = size * 100;
    client.try_psql(
        "create schema databases; create table databases.registry (name text primary key, rows int);
         create database workload_seed template template0",
    )?;
    client.try_psql_in(
        "workload_seed",
        &format!(
            "create table marker as select n as i, md5(n::text) from generate_series(1, {rows}) n;
             create index on marker (i); create unlogged table lost as select 1 as i; analyze"
        ),
    )?;
    Ok(())
}

pub(super) fn round_databases(
    client: &Client,
    random: &mut Random,
    size: u32,
) -> Result<(), SqlError> {
    let rows = size * 100;
    let name = format!("workload_{}", random.below(4));
    let strategy = random.pick(strategies(client));
    client.try_psql(&format!(
        "delete from databases.registry where name = '{name}'; drop database if exists {name};
         create database {name} template workload_seed {strategy};
         insert into databases.registry values ('{name}', {rows})"
    ))?;
    // Registered before it changes, and what was copied stays.
    client.try_psql_in(
        &name,
        "create table more as select * from marker; insert into marker select -i, md5 from marker; drop table more;
         vacuum marker",
    )?;
    Ok(())
}

pub(super) fn wrong_databases(client: &Client) -> Result<String, SqlError> {
    let mut wrong = String::new();
    let registry = client.try_psql("select name, rows from databases.registry order by name")?;
    for (name, rows) in registry.lines().filter_map(|line| line.split_once('|')) {
        let found = client.try_psql_in(
            name,
            "select count(*) from marker where i > 0 and md5 = md5(i::text)",
        )?;
        if found != rows {
            wrong.push_str(&format!("{name} has {found} rows instead of {rows}; "));
        }
    }
    Ok(wrong)
}

pub(super) fn prepare_tablespaces(client: &Client, size: u32) -> Result<(), SqlError> {
    let rows = size * 100;
    let place = client.tablespace_dir("home");
    client.try_psql(&format!(
        "create schema spaces; create tablespace home location '{}';
         create table spaces.moving as select n as i, md5(n::text) as body from generate_series(1, {rows}) n;
         create index moving_i on spaces.moving (i);
         create table spaces.facts as select count(*) as rows from spaces.moving;
         create database moving template template0;",
        place.display()
    ))?;
    client.try_psql_in(
        "moving",
        &format!("create table marker as select generate_series(1, {rows}) as i"),
    )?;
    Ok(())
}

pub(super) fn round_tablespaces(client: &Client, random: &mut Random) -> Result<(), SqlError> {
    let name = format!("space_{:016x}", random.next_u64());
    let place = client.tablespace_dir(&name);
    let database_there = random.one_in(2);
    let strategy = random.pick(strategies(client));
    client.try_psql(&format!(
        "create tablespace {name} location '{}';
         begin; alter table spaces.moving set tablespace {name}; rollback;
         alter table spaces.moving set tablespace {name};
         alter index spaces.moving_i set tablespace {name};
         update spaces.moving set body = md5(body);
         create table spaces.native tablespace {name} as select * from spaces.moving;
         create database placed template moving tablespace {name} {strategy};",
        place.display()
    ))?;
    if database_there {
        client.try_psql(&format!("alter database moving set tablespace {name}"))?;
        client.try_psql_in(
            "moving",
            "insert into marker select -i from marker where i > 0; delete from marker where i < 0",
        )?;
        client.try_psql("alter database moving set tablespace pg_default")?;
    }
    let home = random.pick(&["home", "pg_default"]);
    client.try_psql(&format!(
        "drop table spaces.native; drop database placed;
         alter table spaces.moving set tablespace {home}; alter index spaces.moving_i set tablespace {home};
         drop tablespace {name}"
    ))?;
    Ok(())
}

pub(super) fn wrong_tablespaces(client: &Client) -> Result<String, SqlError> {
    let mut wrong = client.try_psql(
        "set enable_indexscan = off; set enable_bitmapscan = off; set enable_indexonlyscan = off;
         select 'a moved table has lost rows' from spaces.facts where rows <> (select count(*) from spaces.moving where i > 0);
         reset all; set enable_seqscan = off;
         select 'a moved index has lost rows' from spaces.facts where rows <> (select count(*) from spaces.moving where i > 0)",
    )?;
    let rows = client.try_psql("select rows from spaces.facts")?;
    let moved = client.try_psql_in("moving", "select count(*) from marker where i > 0")?;
    if moved != rows {
        wrong.push_str("a moved database has lost rows");
    }
    Ok(wrong)
}
