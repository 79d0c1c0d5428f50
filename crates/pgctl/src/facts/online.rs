//! Facts that only a running server can tell: its databases, and what they are sorted by.

use neon_pg_layout::PgMajor;
use neon_pgwire::{Client, ResultSet, Row};

use crate::error::Result;
use crate::facts::offline::{cluster, libraries};
use crate::facts::{Collation, Database, Extension, Facts, Memory, Provider};
use crate::instance::Instance;
use crate::session;

impl Instance {
    /// The facts of the running server, with every database that can be connected to.
    ///
    /// Takes one session after the other and changes nothing. Dropping the future closes the connection.
    ///
    /// # Errors
    /// [`NotRunning`](crate::ErrorKind::NotRunning), [`Connection`](crate::ErrorKind::Connection).
    pub async fn online_facts(&self) -> Result<Facts> {
        let platform = self.installation().platform_facts().await;
        let mut client = self.asker("postgres").await?;
        let sql = "SELECT name, setting FROM pg_catalog.pg_settings WHERE name IN ('shared_preload_libraries', \
             'shared_buffers', 'shared_memory_size', 'huge_pages', 'max_connections'); \
             SELECT datname FROM pg_catalog.pg_database WHERE datallowconn ORDER BY datname";
        let results = client.simple_query(sql).await.map_err(session::failed)?;
        let [settings, names] = results.as_slice() else {
            return Ok(Facts {
                platform,
                cluster: None,
            });
        };
        let setting = |name| {
            let rows = settings.rows().iter();
            rows.filter(|row| row.get(0) == Some(name))
                .find_map(|row| row.get(1))
                .unwrap_or_default()
        };
        let number = |name| setting(name).parse::<u64>().ok();
        let memory = Memory {
            // In pages and in mebibytes.
            shared_buffers: number("shared_buffers").unwrap_or(0).saturating_mul(8192),
            shared: number("shared_memory_size").map(|mib| mib.saturating_mul(1 << 20)),
            huge_pages_required: setting("huge_pages") == "on",
            max_connections: number("max_connections")
                .and_then(|count| count.try_into().ok())
                .unwrap_or(0),
        };
        let mut found = cluster(
            &self.control_file()?,
            libraries(setting("shared_preload_libraries")),
            memory,
        );
        let mut databases = Vec::new();
        let mut there = Some(client);
        for row in names.rows() {
            let name = row.get(0).unwrap_or_default();
            let mut client = match there.take_if(|_| name == "postgres") {
                Some(client) => client,
                None => self.asker(name).await?,
            };
            databases.push(database(&mut client, name, self.major()).await?);
            client.close().await;
        }
        if let Some(client) = there {
            client.close().await;
        }
        found.databases = Some(databases);
        Ok(Facts {
            platform,
            cluster: Some(found),
        })
    }

    /// A session that does not wait for what others have locked.
    async fn asker(&self, database: &str) -> Result<Client> {
        let mut client = self.connect(database).await?;
        let patience = "SET lock_timeout = '2s'";
        client
            .simple_query(patience)
            .await
            .map_err(session::failed)?;
        Ok(client)
    }
}

async fn database(client: &mut Client, name: &str, major: PgMajor) -> Result<Database> {
    let sql = format!(
        "SELECT extname, extversion FROM pg_catalog.pg_extension ORDER BY extname COLLATE \"C\"; {}; {}",
        default_collation(major),
        other_collations(major)
    );
    let results = client.simple_query(&sql).await.map_err(session::failed)?;
    let rows = |index: usize| results.get(index).map(ResultSet::rows).unwrap_or_default();
    let text = |row: &Row, column| row.get(column).unwrap_or_default().to_owned();
    let extensions = rows(0)
        .iter()
        .map(|row| Extension {
            name: text(row, 0),
            version: text(row, 1),
        })
        .collect();
    let encoding = rows(1).first().map(|row| text(row, 0)).unwrap_or_default();
    let collations = rows(1)
        .iter()
        .map(|row| collation(None, row))
        .chain(rows(2).iter().map(|row| collation(Some(text(row, 0)), row)))
        .collect();
    Ok(Database {
        name: name.to_owned(),
        encoding,
        extensions,
        collations,
    })
}

/// Columns after the first: provider, locale, recorded and actual version, indexes a line each.
fn collation(name: Option<String>, row: &Row) -> Collation {
    let owned = |column| row.get(column).map(str::to_owned);
    let mut indexes: Vec<String> = row
        .get(5)
        .unwrap_or_default()
        .split('\n')
        .filter(|line| !line.is_empty())
        .map(str::to_owned)
        .collect();
    let more_indexes = indexes.len() > Collation::MOST_INDEXES;
    indexes.truncate(Collation::MOST_INDEXES);
    Collation {
        name,
        provider: match row.get(1) {
            Some("i") => Provider::Icu,
            Some("b") => Provider::Builtin,
            _ => Provider::Libc,
        },
        locale: owned(2).unwrap_or_default(),
        recorded: owned(3),
        actual: owned(4),
        indexes,
        more_indexes,
    }
}

/// The indexes sorted by the collation `oid` is about, one more than are listed. Names are quoted and hold no line
/// break that is not, but a name with one is taken apart here: it is left out.
fn indexes(oid: &str) -> String {
    let most = Collation::MOST_INDEXES + 1;
    // Catalogs have indexes by "C" only, which never changes.
    format!(
        "(SELECT string_agg(name, E'\\n' ORDER BY name COLLATE \"C\") FROM (SELECT \
         format('%I.%I', n.nspname, i.relname) AS name FROM pg_catalog.pg_index x \
         JOIN pg_catalog.pg_class i ON i.oid = x.indexrelid JOIN pg_catalog.pg_namespace n ON n.oid = i.relnamespace \
         WHERE {oid} = ANY (x.indcollation::pg_catalog.oid[]) AND i.relkind = 'i' AND n.nspname !~ '^pg_(catalog|toast)' \
         AND i.relpersistence <> 't' AND format('%I.%I', n.nspname, i.relname) !~ E'\\n' LIMIT {most}) AS named)"
    )
}

/// Before 15 the version of a database's own collation was not recorded; what the C library has now is told by any
/// collation of it that has a version.
fn default_collation(major: PgMajor) -> String {
    let indexes = indexes("100");
    let (provider, locale, recorded, actual) = match major {
        PgMajor::V13 | PgMajor::V14 => (
            "'c'",
            "d.datcollate",
            "NULL",
            "CASE WHEN d.datcollate NOT IN ('C', 'POSIX') THEN (SELECT pg_catalog.pg_collation_actual_version(c.oid) \
             FROM pg_catalog.pg_collation c WHERE c.collprovider = 'c' AND c.collcollate = d.datcollate LIMIT 1) END",
        ),
        PgMajor::V15 | PgMajor::V16 => (
            "d.datlocprovider",
            "coalesce(d.daticulocale, d.datcollate)",
            "d.datcollversion",
            "pg_catalog.pg_database_collation_actual_version(d.oid)",
        ),
        _ => (
            "d.datlocprovider",
            "coalesce(d.datlocale, d.datcollate)",
            "d.datcollversion",
            "pg_catalog.pg_database_collation_actual_version(d.oid)",
        ),
    };
    format!(
        "SELECT pg_catalog.pg_encoding_to_char(d.encoding), {provider}, {locale}, {recorded}, {actual}, {indexes} \
         FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()"
    )
}

/// The other collations that some index is sorted by.
fn other_collations(major: PgMajor) -> String {
    let locale = match major {
        PgMajor::V13 | PgMajor::V14 => "c.collcollate",
        PgMajor::V15 | PgMajor::V16 => "coalesce(c.colliculocale, c.collcollate)",
        _ => "coalesce(c.colllocale, c.collcollate)",
    };
    let indexes = indexes("c.oid");
    format!(
        "SELECT * FROM (SELECT format('%I.%I', n.nspname, c.collname), c.collprovider, {locale}, c.collversion, \
         pg_catalog.pg_collation_actual_version(c.oid), {indexes} AS used \
         FROM pg_catalog.pg_collation c JOIN pg_catalog.pg_namespace n ON n.oid = c.collnamespace \
         WHERE c.collprovider <> 'd' AND c.oid IN (SELECT pg_catalog.unnest(indcollation::pg_catalog.oid[]) FROM pg_catalog.pg_index) \
         ORDER BY 1) AS found WHERE used IS NOT NULL"
    )
}
