//! Transactions whose traces lie outside their rows: visibility map, prepared state, multixacts.

use crate::client::{Client, SqlError};
use crate::workload::Random;

pub(super) fn prepare_visibility(client: &Client, size: u32) -> Result<(), SqlError> {
    let rows = size * 100;
    client
        .try_psql(&format!(
            "create schema vis;
             create table vis.t (i int primary key, v int not null, pad text) with (fillfactor = 70);
             insert into vis.t select n, 0, repeat('p', 100) from generate_series(1, {rows}) n;
             create index on vis.t (v);
             vacuum (freeze) vis.t"
        ))
        .map(drop)
}

pub(super) fn round_visibility(
    client: &Client,
    random: &mut Random,
    size: u32,
) -> Result<(), SqlError> {
    let rows = size * 100;
    let (one, two) = (random.below(rows) + 1, random.below(rows) + 1);
    // Rows are only ever added or removed in pairs that sum to zero, above the first ones.
    let pair = rows + 2 * random.below(rows) + 1;
    let vacuum = random.pick(&[
        "vacuum vis.t",
        "vacuum (freeze) vis.t",
        "select count(*) from vis.t",
        "",
    ]);
    let sql = match random.below(6) {
        0 => format!("begin; select i from vis.t where i in ({one}, {two}) for update; commit"),
        1 => format!("begin; select i from vis.t where i between {one} and {one} + 20 for share; rollback"),
        2 => format!("insert into vis.t values ({pair}, 1, 'x'), ({pair} + 1, -1, 'y') on conflict do nothing"),
        3 => format!("begin; delete from vis.t where i in ({pair}, {pair} + 1); rollback; delete from vis.t where i > {rows}"),
        4 => format!("begin; update vis.t set v = v + 1 where i between {one} and {two}; rollback"),
        _ => format!(
            "begin; update vis.t set v = v + 1 where i = {one}; update vis.t set v = v - 1 where i = {two};
             savepoint a; delete from vis.t where i = {one}; rollback to a; commit"
        ),
    };
    client
        .try_psql(&format!(
            "{vacuum}; {sql}; set enable_seqscan = off; select count(*) from vis.t where v = 1"
        ))
        .map(drop)
}

pub(super) fn wrong_visibility(client: &Client) -> Result<String, SqlError> {
    // A visibility map that says too much makes an index-only scan return rows that are not there.
    client.try_psql(
        "set enable_indexonlyscan = off; set enable_indexscan = off; set enable_bitmapscan = off;
         create temp table truth as select count(*) as n, sum(v) as total, count(distinct v) as kinds from vis.t;
         select 'the sum is ' || total from truth where total <> 0;
         reset all; set enable_seqscan = off; set enable_bitmapscan = off; set random_page_cost = 0;
         select 'an index-only scan counts ' || count(*) || ' of ' || (select n from truth) from vis.t
           where i > -1000 having count(*) <> (select n from truth);
         select 'an index-only scan sums ' || sum(v) from vis.t where v > -1000000 having sum(v) <> 0",
    )
}

pub(super) fn prepare_prepared(client: &Client, size: u32) -> Result<(), SqlError> {
    let rows = size * 100;
    client
        .try_psql(&format!(
            "create schema prep;
             create table prep.account (slot int, side int, balance bigint, primary key (slot, side));
             insert into prep.account select n, s, 0 from generate_series(0, {rows} - 1) n, generate_series(0, 1) s"
        ))
        .map(drop)
}

pub(super) fn round_prepared(
    client: &Client,
    random: &mut Random,
    size: u32,
) -> Result<(), SqlError> {
    // At most five wait at any time; each has rows of its own.
    let slot = random.below((size * 100).min(5));
    let gid = format!("neon-testkit-{slot}");
    let waiting = client.try_psql(&format!(
        "select count(*) from pg_prepared_xacts where gid = '{gid}'"
    ))?;
    let verb = random.pick(&["commit", "commit", "rollback"]);
    let checkpoint = if random.one_in(4) { "checkpoint" } else { "" };
    if waiting != "0" {
        return client
            .try_psql(&format!("{verb} prepared '{gid}'; {checkpoint}"))
            .map(drop);
    }
    let amount = random.below(1000);
    let table = format!("prep.made_{slot}");
    let made = client.try_psql(&format!("select to_regclass('{table}') is not null"))? == "t";
    let ddl = if made {
        format!("drop table {table}")
    } else {
        format!(
            "create table {table} (i int primary key); insert into {table} select generate_series(1, 500)"
        )
    };
    client
        .try_psql(&format!(
            "begin; update prep.account set balance = balance + {amount} where slot = {slot} and side = 0;
             savepoint a; {ddl}; savepoint b; create table prep.dropped as select 1 as i; rollback to b;
             update prep.account set balance = balance - {amount} where slot = {slot} and side = 1;
             prepare transaction '{gid}'; {checkpoint}"
        ))
        .map(drop)
}

pub(super) fn wrong_prepared(client: &Client) -> Result<String, SqlError> {
    client.try_psql(
        "select 'slot ' || slot || ' sums to ' || sum(balance) from prep.account group by slot having sum(balance) <> 0",
    )
}

pub(super) fn prepare_multixacts(client: &Client, size: u32) -> Result<(), SqlError> {
    let rows = size * 100;
    client
        .try_psql(&format!(
            "create schema multi;
             create table multi.t (i int primary key, v int, pad text) with (fillfactor = 50);
             insert into multi.t select n, 0, repeat('m', 50) from generate_series(1, {rows}) n"
        ))
        .map(drop)
}

pub(super) fn round_multixacts(
    client: &Client,
    random: &mut Random,
    size: u32,
) -> Result<(), SqlError> {
    let low = random.below(size * 100 - 10) + 1;
    let rows = format!("i between {low} and {low} + 9");
    let (one, two) = (low + random.below(5), low + 5 + random.below(5));
    // None waits for another: key-share locks allow updates of other columns.
    let mut sessions = [
        client.session("postgres"),
        client.session("postgres"),
        client.session("postgres"),
    ];
    let [first, second, writer] = &mut sessions;
    first.try_run(&format!(
        "begin; savepoint a; select i from multi.t where {rows} for key share"
    ))?;
    second.try_run(&format!(
        "begin; select i from multi.t where {rows} for key share; savepoint b"
    ))?;
    writer.try_run(&format!(
        "begin; savepoint c; update multi.t set v = v + 1 where i = {one}; release c;
         savepoint d; update multi.t set v = v - 1 where i = {two}; release d;
         savepoint e; update multi.t set v = 99 where {rows}; rollback to e"
    ))?;
    first.try_run(random.pick(&["rollback to a", "release a", ""]))?;
    for session in &mut sessions {
        // The writer's changes sum to zero whichever it does.
        session.try_run(random.pick(&["commit", "commit", "rollback"]))?;
    }
    if random.one_in(3) {
        client.try_psql(random.pick(&[
            "vacuum multi.t",
            "vacuum (freeze) multi.t",
            "checkpoint",
        ]))?;
    }
    Ok(())
}

pub(super) fn wrong_multixacts(client: &Client) -> Result<String, SqlError> {
    client.try_psql("select 'the sum is ' || sum(v) from multi.t having sum(v) <> 0")
}
