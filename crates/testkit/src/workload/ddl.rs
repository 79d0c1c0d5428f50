//! A storm of DDL over a handful of tables of every persistence, described by a registry.

use crate::client::{Client, SqlError};
use crate::workload::Random;

/// `note` writes a table's count and sum into the registry; every change calls it before it commits.
/// `wrong` compares. An unlogged table may be empty: a crash resets it.
const PREPARE: &str = "
    create schema ddl;
    create table ddl.registry (name text primary key, rows bigint, total bigint, unlogged bool);
    create sequence ddl.counter;
    create function ddl.note(which text) returns void language plpgsql as $$
      declare r bigint; t bigint;
      begin
        execute format('select count(*), coalesce(sum(i), 0) from ddl.%I', which) into r, t;
        insert into ddl.registry
          select which, r, t, relpersistence = 'u' from pg_class where oid = ('ddl.' || which)::regclass
          on conflict (name) do update set rows = excluded.rows, total = excluded.total, unlogged = excluded.unlogged;
      end $$;
    create function ddl.wrong() returns setof text language plpgsql as $$
      declare e ddl.registry; r bigint; t bigint;
      begin
        for e in select * from ddl.registry loop
          execute format('select count(*), coalesce(sum(i), 0) from ddl.%I', e.name) into r, t;
          if (r, t) <> (e.rows, e.total) and not (e.unlogged and r = 0) then
            return next format('%s has %s rows (sum %s) instead of %s (%s)', e.name, r, t, e.rows, e.total);
          end if;
        end loop;
        return query select 'unregistered table ' || tablename::text from pg_tables
          where schemaname = 'ddl' and tablename ~ '^t[0-9]+$' and tablename not in (select name from ddl.registry);
      end $$;
";

pub(super) fn prepare(client: &Client) -> Result<(), SqlError> {
    client.try_psql(PREPARE).map(drop)
}

/// The four kinds of tables, chosen by number so that a table keeps its kind.
fn create(number: u32) -> String {
    let table = format!("ddl.t{number}");
    let columns = "i int primary key, body text default repeat('x', 100), extra int";
    let create = match number % 4 {
        1 => format!("create unlogged table {table} ({columns}, s serial)"),
        2 => format!(
            "create table {table} ({columns}) partition by hash (i);
             create table {table}_p0 partition of {table} for values with (modulus 2, remainder 0);
             create table {table}_p1 partition of {table} for values with (modulus 2, remainder 1)"
        ),
        3 => format!(
            "create table {table} ({columns}, id bigint generated always as identity, big text)"
        ),
        _ => format!("create table {table} ({columns}) with (fillfactor = 80)"),
    };
    let fill = if number % 4 == 3 {
        format!(
            "insert into {table} (i, big) select n, (select string_agg(md5(n::text || m), '') from generate_series(1, 200) m)
             from generate_series(1, 60) n"
        )
    } else {
        format!("insert into {table} (i) select generate_series(1, 600)")
    };
    format!("begin; {create}; {fill}; select ddl.note('t{number}'); commit;")
}

pub(super) fn round(client: &Client, random: &mut Random, size: u32) -> Result<(), SqlError> {
    let number = random.below(size.max(4));
    let name = format!("t{number}");
    let table = format!("ddl.{name}");
    // What single-table commands act on: a partition of the partitioned.
    let heap = if number % 4 == 2 {
        format!("{table}_p0")
    } else {
        table.clone()
    };
    let index = if number % 4 == 2 {
        format!("{name}_p0_pkey")
    } else {
        format!("{name}_pkey")
    };
    let note = format!("select ddl.note('{name}')");
    let exists = client.try_psql(&format!("select to_regclass('{table}') is not null"))? == "t";
    if !exists {
        return client.try_psql(&create(number)).map(drop);
    }
    let (low, n) = (random.below(1000), random.below(300) + 1);
    let tag = random.below(1_000_000);
    let sql = match random.below(20) {
        0 => format!("begin; drop table {table}; delete from ddl.registry where name = '{name}'; commit"),
        1 => format!("begin; truncate {table} restart identity; {note}; commit"),
        2 => format!(
            "begin; truncate {table}; insert into {table} (i) select generate_series({low}, {low} + {n}); {note}; commit"
        ),
        3 => format!(
            "begin; truncate {table}; insert into {table} (i) select generate_series(1, {n}); rollback;
             begin; drop table {table}; rollback"
        ),
        4 => format!("alter table {table} add column c{tag} int default {n}; alter table {table} drop column c{tag}"),
        5 => format!("begin; alter table {table} alter column extra type bigint using {n}; {note}; commit"),
        6 => format!("create index on {heap} (extra, i); create index on {heap} using hash (body)"),
        7 => format!(
            "create index concurrently i{tag} on {heap} (i, body); drop index concurrently ddl.i{tag};
             begin; create index on {heap} (body); rollback"
        ),
        8 => format!("vacuum (analyze) {table}"),
        9 => format!("vacuum full {heap}"),
        10 => format!("cluster {heap} using {index}"),
        11 => format!("reindex table {heap}; reindex table concurrently {heap}"),
        12 => format!(
            "create temp table scratch{tag} as select i, repeat('y', 500) from generate_series(1, {n}) i;
             create index on scratch{tag} (i); truncate scratch{tag};
             select nextval('ddl.counter') from generate_series(1, {n})"
        ),
        13 => format!(
            "begin; create table ddl.gone{tag} as select generate_series(1, {n}) i; create index on ddl.gone{tag} (i);
             savepoint a; create table ddl.gonetoo{tag} as select generate_series(1, {n}) i; rollback to a; rollback;
             begin; savepoint b; create table ddl.never{tag} as select 1 as i; rollback to b;
             create table ddl.short{tag} as select 1 as i; commit; drop table ddl.short{tag}"
        ),
        14 => format!(
            "create materialized view ddl.m{tag} as select * from {table}; create unique index on ddl.m{tag} (i);
             refresh materialized view ddl.m{tag}; refresh materialized view concurrently ddl.m{tag};
             drop materialized view ddl.m{tag}"
        ),
        15 if number % 4 < 2 => {
            // Changes the kind, and back: both write every page of the table to WAL or throw it away.
            let (there, back) = if number % 4 == 1 { ("logged", "unlogged") } else { ("unlogged", "logged") };
            format!(
                "begin; alter table {table} set {there}; {note}; commit;
                 begin; alter table {table} set {back}; {note}; commit"
            )
        }
        16 => format!("begin; delete from {table} where i > {n}; {note}; commit; vacuum {table}"),
        17 => format!("begin; update {table} set body = repeat('z', {n}), extra = {low} where i % 3 = {low} % 3; {note}; commit"),
        18 => format!(
            "begin; insert into {table} (i) select generate_series({low}, {low} + {n}) on conflict do nothing; rollback; vacuum {table}"
        ),
        _ => format!(
            "begin; insert into {table} (i) select generate_series({low}, {low} + {n}) on conflict do nothing; {note}; commit"
        ),
    };
    client.try_psql(&sql).map(drop)
}

pub(super) fn wrong(client: &Client) -> Result<String, SqlError> {
    client.try_psql("select * from ddl.wrong()")
}
