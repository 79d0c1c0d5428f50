//! Connection strings and what stands in for them.

use std::fs;

use neon_pgwire::{Config, ErrorKind, Params, Replication, Surroundings};
use neon_testkit::Scratch;

fn hosts(text: &str) -> Vec<String> {
    resolve(text, &Surroundings::none()).unwrap().hosts()
}

fn resolve(text: &str, surroundings: &Surroundings) -> neon_pgwire::Result<Config> {
    let mut params: Params = text.parse()?;
    if params.get("user").is_none() && surroundings.os_user.is_none() {
        params.set("user", "me")?;
    }
    Config::resolve(&params, surroundings)
}

#[test]
fn both_forms_of_connection_strings_mean_the_same() {
    for (uri, words) in [
        ("postgresql://", ""),
        ("postgres://me@", "user=me"),
        (
            "postgresql://localhost:1234/db",
            "host=localhost port=1234 dbname=db",
        ),
        (
            "basebackup://me:p%40ss@db/",
            "host=db user=me password=p@ss",
        ),
        (
            "postgresql://a:1,b:2,c/x?target_session_attrs=any",
            "host=a,b,c port=1,2, dbname=x target_session_attrs=any",
        ),
        ("postgresql://[::1]:5/x", "host=::1 port=5 dbname=x"),
        ("postgresql://%2Fvar%2Frun/x", "host=/var/run dbname=x"),
        (
            "postgresql:///x?host=/tmp&port=1",
            "host=/tmp dbname=x port=1",
        ),
        ("postgres://h?ssl=true", "host=h sslmode=require"),
        (
            "postgres://h/a%20b?application_name=it%27s",
            r"host = h dbname='a b' application_name=it\'s",
        ),
        ("postgres://h?options=-c%20x%3D1", "host=h options='-c x=1'"),
    ] {
        assert_eq!(
            uri.parse::<Params>().unwrap(),
            words.parse::<Params>().unwrap(),
            "{uri}"
        );
    }
}

#[test]
fn what_libpq_refuses_is_refused() {
    for text in [
        "host",
        "host=a b",
        "host='a",
        "nonsense=1",
        "postgresql://[::1",
        "postgresql://[]/",
        "postgresql://[::1]x/",
        "postgresql://h?a",
        "postgresql://h?host=a=b",
        "postgresql://h%zz",
        "postgresql://h%00",
        "postgresql://h?nonsense=1",
    ] {
        assert_eq!(
            text.parse::<Params>().unwrap_err().kind(),
            ErrorKind::Config,
            "{text}"
        );
    }
    for text in [
        "port=0",
        "port=65536",
        "port=x",
        "host=a,b port=1,2,3",
        "host=a,b hostaddr=1.1.1.1",
        "hostaddr=nowhere",
        "sslmode=maybe",
        "sslmode=verify-full",
        "sslrootcert=system sslmode=require",
        "sslnegotiation=direct",
        "channel_binding=maybe",
        "connect_timeout=soon",
        "require_auth=md5,!password",
        "require_auth=md5,md5",
        "require_auth=telepathy",
        "target_session_attrs=some",
        "load_balance_hosts=yes",
        "replication=maybe",
        "min_protocol_version=3.2 max_protocol_version=3.0",
        "ssl_min_protocol_version=TLSv1.3 ssl_max_protocol_version=TLSv1.2",
        "requirepeer=postgres",
        "gssencmode=maybe",
    ] {
        let error = resolve(text, &Surroundings::none()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{text}: {error}");
    }
    for text in [
        "gssencmode=require",
        "sslpassword=x",
        "oauth_issuer=x",
        "scram_client_key=x",
        "sslkeylogfile=x",
    ] {
        let error = resolve(text, &Surroundings::none()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{text}");
    }
}

#[test]
fn hosts_ports_and_sockets_stand_side_by_side() {
    assert_eq!(hosts(""), ["localhost:5432"]);
    assert_eq!(hosts("host=a,b port=1"), ["a:1", "b:1"]);
    assert_eq!(
        hosts("host=a,,/tmp port=1,,3"),
        ["a:1", "localhost:5432", "/tmp/.s.PGSQL.3"]
    );
    assert_eq!(hosts("host=@abstract"), ["@abstract/.s.PGSQL.5432"]);
    assert_eq!(
        hosts("hostaddr=::1,10.0.0.1"),
        ["[::1]:5432", "10.0.0.1:5432"]
    );
    let mut surroundings = Surroundings::none();
    surroundings.socket_directory = Some("/run/pg".into());
    assert_eq!(
        resolve("", &surroundings).unwrap().hosts(),
        ["/run/pg/.s.PGSQL.5432"]
    );
}

#[test]
fn the_environment_and_services_fill_what_is_not_given() {
    let scratch = Scratch::new();
    let home = scratch.path().to_owned();
    fs::write(
        home.join(".pg_service.conf"),
        "[mine]\nhost=from-service\nport=7\n",
    )
    .unwrap();
    let mut surroundings = Surroundings::none();
    for (name, value) in [
        ("PGHOST", "from-environment"),
        ("PGPORT", "8"),
        ("PGUSER", "env"),
        ("PGAPPNAME", ""),
    ] {
        surroundings
            .environment
            .insert(name.to_owned(), value.to_owned());
    }
    surroundings.os_user = Some("somebody".to_owned());
    surroundings.home = Some(home.clone());
    let config = resolve("", &surroundings).unwrap();
    assert_eq!(
        (config.hosts(), config.user(), config.dbname()),
        (vec!["from-environment:8".to_owned()], "env", "env")
    );
    let config = resolve("service=mine port=9", &surroundings).unwrap();
    assert_eq!(config.hosts(), ["from-service:9"]);
    surroundings
        .environment
        .insert("PGSERVICE".to_owned(), "mine".to_owned());
    assert_eq!(
        resolve("", &surroundings).unwrap().hosts(),
        ["from-service:7"]
    );
    assert_eq!(
        resolve("service=other", &surroundings).unwrap_err().kind(),
        ErrorKind::Config
    );
    surroundings.environment.clear();
    let config = resolve("replication=yes", &surroundings).unwrap();
    assert_eq!(
        (config.user(), config.replication()),
        ("somebody", Replication::Physical)
    );
    assert!(
        Config::resolve(&Params::new(), &Surroundings::none()).is_err(),
        "nobody to log in as"
    );
}

#[test]
fn secrets_are_never_shown() {
    let text = "password=s3cret sslpassword=s3cret user=me host=h";
    let params: Params = text.parse().unwrap();
    assert!(!format!("{params:?}").contains("s3cret"));
    assert!(format!("{params:?}").contains("me"));
    for broken in [
        "password=s3 cret",
        "password='s3cret",
        "postgres://me:s3cret%zz@h",
        "password=s3cret nonsense=1",
    ] {
        let shown = format!("{:?}", broken.parse::<Params>().unwrap_err());
        assert!(!shown.contains("s3") && !shown.contains("cret"), "{shown}");
    }
    let mut surroundings = Surroundings::none();
    surroundings
        .environment
        .insert("PGPASSWORD".to_owned(), "s3cret".to_owned());
    let config = resolve("", &surroundings).unwrap();
    assert!(!format!("{surroundings:?} {config:?}").contains("s3cret"));
}
