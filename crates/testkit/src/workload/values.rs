//! Values too wide for a page: TOAST and large objects, each beside its digest.

use crate::client::{Client, SqlError};
use crate::workload::Random;

/// Text of `$1` hashes, which no compression makes smaller.
const BODY: &str = "
    create function SCHEMA.body(hashes int, seed text) returns text language sql immutable as
      $$ select coalesce(string_agg(md5(seed || n), '' order by n), '') from generate_series(1, hashes) n $$;
";

pub(super) fn prepare_toast(client: &Client, size: u32) -> Result<(), SqlError> {
    let rows = size * 20;
    let sql = format!(
        "create schema toast; {}
         create table toast.t (id int primary key, digest text, plain text, squeezed text, external text);
         alter table toast.t alter column external set storage external;
         insert into toast.t (id, plain, squeezed, external)
           select n, toast.body(n % 400, n::text), repeat('abc', n % 5000), toast.body(n % 300, 'e' || n)
           from generate_series(1, {rows}) n;
         update toast.t set digest = md5(plain || squeezed || external);",
        BODY.replace("SCHEMA", "toast")
    );
    client.try_psql(&sql).map(drop)
}

pub(super) fn round_toast(client: &Client, random: &mut Random, size: u32) -> Result<(), SqlError> {
    let rows = size * 20;
    let (low, hashes, tag) = (random.below(rows), random.below(600), random.next_u64());
    let high = low + 5;
    let whole = format!(
        "update toast.t set plain = p, digest = md5(p || squeezed || external)
         from (select toast.body({hashes}, '{tag}') as p) as new where id between {low} and {high}"
    );
    let sql = match random.below(6) {
        0 => format!("delete from toast.t where id between {low} and {high}"),
        // The TOAST pointers of the other columns are copied, not their values.
        1 => format!("update toast.t set id = id where id between {low} and {high}"),
        2 => format!(
            "update toast.t set external = e, digest = md5(plain || squeezed || e)
             from (select toast.body({hashes}, '{tag}') as e) as new where id between {low} and {high}"
        ),
        3 => format!("begin; {whole}; rollback; vacuum toast.t"),
        4 => format!(
            "insert into toast.t select n, md5(p), p, '', '' from generate_series({low}, {high}) n,
               lateral (select toast.body({hashes}, '{tag}' || n) as p) as new on conflict do nothing"
        ),
        _ => whole,
    };
    client.try_psql(&sql).map(drop)
}

pub(super) fn wrong_toast(client: &Client) -> Result<String, SqlError> {
    client.try_psql(
        "select 'row ' || id || ' differs from its digest' from toast.t
         where digest is distinct from md5(plain || squeezed || external)",
    )
}

pub(super) fn prepare_large_objects(client: &Client) -> Result<(), SqlError> {
    let sql = format!(
        "create schema large; {} create table large.registry (slot int primary key, id oid, digest text)",
        BODY.replace("SCHEMA", "large")
    );
    client.try_psql(&sql).map(drop)
}

pub(super) fn round_large_objects(
    client: &Client,
    random: &mut Random,
    size: u32,
) -> Result<(), SqlError> {
    let (slot, hashes, tag) = (
        random.below(size * 10),
        random.below(600),
        random.next_u64(),
    );
    let body = format!("convert_to(large.body({hashes}, '{tag}'), 'UTF8')");
    let digest = "update large.registry set digest = md5(lo_get(id))";
    let known = client.try_psql(&format!(
        "select id from large.registry where slot = {slot}"
    ))?;
    let sql = if known.is_empty() {
        // Two statements: a large object is not seen by the one that creates it.
        format!(
            "begin; insert into large.registry values ({slot}, lo_from_bytea(0, {body}));
             {digest} where slot = {slot}; commit"
        )
    } else {
        match random.below(4) {
            0 => format!(
                "begin; select lo_unlink({known}); delete from large.registry where slot = {slot}; commit"
            ),
            1 => format!("begin; select lo_unlink({known}); rollback; vacuum pg_largeobject"),
            _ => {
                let offset = random.below(30_000);
                format!(
                    "begin; select lo_put({known}, {offset}, {body}); {digest} where slot = {slot}; commit"
                )
            }
        }
    };
    client.try_psql(&sql).map(drop)
}

pub(super) fn wrong_large_objects(client: &Client) -> Result<String, SqlError> {
    client.try_psql(
        "select 'large object ' || id || ' differs from its digest' from large.registry where digest is distinct from md5(lo_get(id))",
    )
}
