//! One table under every type of index.

use crate::client::{Client, SqlError};
use crate::workload::Random;

const TABLE: &str = "
    create schema idx;
    create table idx.t (i int primary key, arr int[], doc tsvector, p point, r int4range, word text, b int, pad text);
    create function idx.fill(low int, high int, salt int) returns void language sql as $$
      insert into idx.t select n, array[n % 97, n % 89, salt % 83], to_tsvector('simple', 'w' || n % 50 || ' w' || salt % 60 || ' all'),
        point(n % 211, (n * 7 + salt) % 193), int4range(n % 500, n % 500 + 10), md5(n::text || salt), n, repeat('i', n % 80)
      from generate_series(low, high) n on conflict do nothing $$;
";

const INDEXES: [&str; 10] = [
    "gin (arr)",
    "gin (doc) with (fastupdate = off)",
    "gist (p)",
    "gist (r)",
    "spgist (p)",
    "spgist (word)",
    "brin (b) with (pages_per_range = 4, autosummarize = off)",
    "hash (word)",
    "btree (word text_pattern_ops)",
    "btree ((i % 7), b) where i % 2 = 0",
];

/// A predicate for each of them.
const PREDICATES: [&str; 10] = [
    "arr @> array[5]",
    "doc @@ 'w7'::tsquery",
    "p <@ box '(0,0),(60,60)'",
    "r && int4range(100, 120)",
    "p << point(50, 0)",
    "word ~>=~ 'f' and word ~<~ 'f8'",
    "b between 100 and 900",
    "word = (select word from idx.t order by i limit 1)",
    "word like 'a1%'",
    "i % 7 = 3 and i % 2 = 0",
];

pub(super) fn prepare(client: &Client, size: u32) -> Result<(), SqlError> {
    let rows = size * 100;
    let mut sql = format!("{TABLE} select idx.fill(1, {rows}, 0);");
    for index in INDEXES {
        sql.push_str(&format!("create index on idx.t using {index};"));
    }
    client.try_psql(&sql).map(drop)
}

pub(super) fn round(client: &Client, random: &mut Random, size: u32) -> Result<(), SqlError> {
    let rows = size * 100;
    let (low, salt) = (random.below(2 * rows), random.below(10_000));
    let high = low + random.below(rows) + 1;
    let sql = match random.below(7) {
        0 => format!("delete from idx.t where i between {low} and {high}; vacuum idx.t"),
        1 => format!("begin; select idx.fill({low}, {high}, {salt}); rollback"),
        2 => format!("update idx.t set p = point({salt} % 100, i % 100), word = md5(word) where i between {low} and {high}"),
        3 => {
            let index = random.pick(&INDEXES);
            let (method, rest) = index.split_once(' ').unwrap_or((index, ""));
            format!("create index again on idx.t using {method} {rest}; drop index idx.again")
        }
        4 => "vacuum idx.t; select brin_summarize_new_values(oid) from pg_class where relam = (select oid from pg_am where amname = 'brin')".to_owned(),
        5 => random.pick(&["reindex table idx.t", "reindex table concurrently idx.t", "vacuum full idx.t"]).to_owned(),
        _ => format!("select idx.fill({low}, {high}, {salt})"),
    };
    client.try_psql(&sql).map(drop)
}

pub(super) fn wrong(client: &Client) -> Result<String, SqlError> {
    let mut sql = String::from("create temp table truth (k int, n bigint);");
    let off =
        "set enable_indexscan = off; set enable_bitmapscan = off; set enable_indexonlyscan = off;";
    sql.push_str(off);
    for (number, predicate) in PREDICATES.iter().enumerate() {
        sql.push_str(&format!(
            "insert into truth select {number}, count(*) from idx.t where {predicate};"
        ));
    }
    sql.push_str("reset all; set enable_seqscan = off;");
    for (number, predicate) in PREDICATES.iter().enumerate() {
        sql.push_str(&format!(
            "select 'an index finds ' || count(*) || ' rows of {}' from idx.t where {predicate}
             having count(*) <> (select n from truth where k = {number});",
            predicate.replace('\'', "''")
        ));
    }
    client.try_psql(&sql)
}
