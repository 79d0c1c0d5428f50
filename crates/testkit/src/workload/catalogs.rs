//! Rewrites of system catalogs: mapped ones change `pg_filenode.map`, shared ones `global/`.

use crate::client::{Client, SqlError};
use crate::workload::Random;

pub(super) fn round(client: &Client, random: &mut Random) -> Result<(), SqlError> {
    let sql = random.pick(&[
        "vacuum full pg_class",
        "vacuum full pg_attribute",
        "vacuum full pg_authid",
        "vacuum full pg_database",
        "reindex table pg_class",
        "reindex table pg_database",
        "vacuum (freeze) pg_proc",
        "vacuum full pg_statistic; analyze",
        "cluster pg_attribute using pg_attribute_relid_attnum_index",
        "begin; reindex index pg_class_oid_index; rollback",
    ]);
    // A prepared transaction that created something would hold this up for ever.
    let waiting =
        client.try_psql("select format('commit prepared %L', gid) from pg_prepared_xacts")?;
    client
        .try_psql(&format!("{}; {sql}", waiting.replace('\n', ";")))
        .map(drop)
}

pub(super) fn wrong(client: &Client) -> Result<String, SqlError> {
    // The same rows by index and by sequential scan, in the catalogs that everything stands on.
    let mut wrong = String::new();
    for (table, column) in [
        ("pg_class", "oid"),
        ("pg_attribute", "attrelid"),
        ("pg_authid", "oid"),
        ("pg_database", "oid"),
    ] {
        // In one snapshot: sessions that end remove their temporary tables in their own time.
        let counts = client.try_psql(&format!(
            "begin isolation level repeatable read;
             set enable_indexscan = off; set enable_bitmapscan = off; set enable_indexonlyscan = off;
             select count(*) from {table} where {column} > 0::oid;
             set enable_seqscan = off; set enable_indexscan = on; set enable_indexonlyscan = on;
             select count(*) from {table} where {column} > 0::oid"
        ))?;
        let (sequential, indexed) = counts.split_once('\n').unwrap_or_default();
        if sequential != indexed {
            wrong.push_str(&format!(
                "{table} has {sequential} rows and {indexed} in its index; "
            ));
        }
    }
    Ok(wrong)
}
