//! A driver that has nothing to do with psql or libpq, over TCP, by the URI that is printed.

use std::process::Command;

use crate::support::{Home, ran};

/// Says to this program, run again, whom to ask.
const URI: &str = "NEON_TEST_URI";
const THIS: &str =
    "drivers::a_driver_connects_by_the_uri_as_root_and_as_a_plain_user_without_an_environment";

async fn ask(uri: &str) {
    let (mut client, connection) = tokio_postgres::connect(uri, tokio_postgres::NoTls)
        .await
        .unwrap();
    let connected = tokio::spawn(connection);
    let row = client
        .query_one(
            "select $1::int4 + 2, inet_server_addr() is not null",
            &[&40],
        )
        .await
        .unwrap();
    assert_eq!((row.get::<_, i32>(0), row.get::<_, bool>(1)), (42, true));
    let wrong = client
        .query("select no_such_column", &[])
        .await
        .unwrap_err();
    assert_eq!(wrong.code().unwrap().code(), "42703");
    let work = client.transaction().await.unwrap();
    work.batch_execute("create temp table t (i int4)")
        .await
        .unwrap();
    for number in 0..10_i32 {
        work.execute("insert into t values ($1)", &[&number])
            .await
            .unwrap();
    }
    work.commit().await.unwrap();
    let rows = client
        .query("select i from t order by i desc", &[])
        .await
        .unwrap();
    let numbers: Vec<i32> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(numbers, (0..10).rev().collect::<Vec<_>>());
    drop(client);
    connected.await.unwrap().unwrap();
}

#[test]
fn a_driver_connects_by_the_uri_as_root_and_as_a_plain_user_without_an_environment() {
    if let Ok(uri) = std::env::var(URI) {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(ask(&uri));
        return;
    }
    let home = Home::new();
    home.ok(&["pg", "create", "p1"]);
    let uri = home.ok(&["pg", "url", "p1"]).trim_end().to_owned();
    let again = |mut command: Command| {
        let ran = ran(command
            .env_clear()
            .current_dir("/")
            .args(["-i", &format!("{URI}={uri}")])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", THIS]));
        assert_eq!(ran.code, 0, "{ran:#?}");
        assert!(ran.out.contains("1 passed"), "{ran:#?}");
    };
    again(Command::new("env"));
    if rustix::process::geteuid().is_root() {
        let mut plain = Command::new("setpriv");
        plain.args([
            "--reuid",
            "65534",
            "--regid",
            "65534",
            "--clear-groups",
            "env",
        ]);
        again(plain);
    }
}
