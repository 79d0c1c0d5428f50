//! What is in the cluster that everybody works on.

use crate::server::Server;

/// A data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Data {
    /// pgbench's tables, with room in each page for updates in place.
    Pgbench { scale: u64 },
    /// Documents of words and jsonb, long ones out of line, and many small tables.
    Mixed { scale: u64, tables: u64 },
}

/// The table that changes, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Changing {
    pub(crate) table: &'static str,
    pub(crate) key: &'static str,
    pub(crate) set: &'static str,
}

impl Data {
    pub(crate) fn name(self) -> String {
        match self {
            Self::Pgbench { scale } => format!("pgbench, scale {scale}"),
            Self::Mixed { scale, tables } => {
                format!(
                    "mixed, {} MB of documents, {tables} small tables",
                    scale * 100
                )
            }
        }
    }

    pub(crate) fn load(self, server: &Server) {
        match self {
            Self::Pgbench { scale } => {
                let mut command = server.client("pgbench");
                command.args(["-i", "-q", "-F", "90", "-s", &scale.to_string()]);
                let output = command.output().unwrap();
                let said = String::from_utf8_lossy(&output.stderr);
                assert!(output.status.success(), "pgbench -i: {said}");
            }
            Self::Mixed { scale, tables } => mixed(server, scale, tables),
        }
        // Nothing is left to be done in the background, and no hint to be set.
        server.sql("vacuum (analyze, freeze)");
        server.checkpoint();
    }

    pub(crate) fn changing(self) -> Changing {
        match self {
            Self::Pgbench { .. } => Changing {
                table: "pgbench_accounts",
                key: "aid",
                set: "abalance = abalance + 1",
            },
            Self::Mixed { .. } => Changing {
                table: "documents",
                key: "id",
                set: "seen = seen + 1",
            },
        }
    }
}

/// Words of a vocabulary with the frequencies of a language, so that pages compress to a third or so, as real ones do. One of
/// fifty documents is long enough for TOAST.
fn mixed(server: &Server, scale: u64, tables: u64) {
    let documents = scale * 60_000;
    server.sql(&format!(
        "create table documents (id bigint primary key, seen int not null default 0, title text, body text, facts jsonb)
          with (fillfactor = 90);
        create function words(seed bigint, count int) returns text language sql stable as $$
          select string_agg(substr(md5(n::text), 1, 3 + n * 7919 % 8), ' ') from (
            select (power(((hashint8(seed * 1000 + g)::bigint & 1048575) / 1048576.0)::float8, 3) * 5000)::int as n
            from generate_series(1, count) g
          ) w $$;
        insert into documents select id, 0, words(id, 6), words(id + 1000000000, case when id % 50 = 0 then 3000 else 90 end),
          jsonb_build_object('id', id, 'kind', (array['order', 'invoice', 'note', 'message'])[1 + id % 4],
            'when', timestamptz '2020-01-01' + id * interval '97 seconds', 'amount', (hashint8(id) & 65535) / 100.0,
            'tags', to_jsonb(string_to_array(words(id + 2000000000, 5), ' ')), 'customer', jsonb_build_object('id', hashint8(id) & 4095,
            'name', words(id + 3000000000, 2)))
          from generate_series(1, {documents}) id;"
    ));
    // In pieces, as each transaction holds a lock for each table.
    let mut from = 1;
    while from <= tables {
        let to = (from + 999).min(tables);
        server.sql(&format!(
            "do $$ begin for i in {from}..{to} loop
              execute format('create table small_%s (id int primary key, name text, at timestamptz)', i);
              execute format('insert into small_%s select g, words(g + %s, 3), now() from generate_series(1, 5 + %s %% 40) g', i, i, i);
            end loop; end $$"
        ));
        from = to + 1;
    }
}
