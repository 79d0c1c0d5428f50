//! The distribution's own cluster, adopted while it runs.

use neon_testkit::s3::{S3Server, S3ServerOptions};
use neon_testkit::{Installation, OsUser, PgMajor, Scratch};

use crate::support::{Home, ran};

/// In a mount namespace of its own, in which the distribution's configuration is a folder of the test.
#[test]
fn the_distributions_cluster_goes_to_a_bucket_and_who_knows_that_makes_another_of_it() {
    let server = S3Server::start(S3ServerOptions::default());
    let (home, second) = (Home::new(), Home::new());
    let place = Scratch::new();
    for folder in ["etc", "run", "below"] {
        OsUser::current().create_dir(&place.path().join(folder));
    }
    let psql = Installation::of(PgMajor::V15)
        .with_client("psql")
        .tool("psql")
        .unwrap();
    let script = format!(
        "set -e
         mount --bind {place}/etc /etc/postgresql
         pg_createcluster 15 shop --start-conf manual -p {port} -u {user} -d {place}/below/data -s {place}/run \
             -l {place}/run/log > /dev/null
         end() {{
             {program} --home {second} -q pg stop copy > /dev/null 2>&1 || true
             pg_ctlcluster --skip-systemctl-redirect 15 shop stop -- -m immediate > /dev/null 2>&1 || true
         }}
         trap end EXIT
         pg_ctlcluster --skip-systemctl-redirect 15 shop start
         neon() {{ {program} -q \"$@\"; }}
         sql() {{ neon pg psql $1 -- -XAtq -v ON_ERROR_STOP=1 -c \"$2\"; }}
         neon pg adopt {place}/below/data > /dev/null
         theirs() {{ runuser -u {user} -- psql -h {place}/run -p {port} -XAtq -v ON_ERROR_STOP=1 -d postgres -c \"$1\"; }}
         theirs 'create table t as select generate_series(1, 10000) i'
         sql shop 'select count(*), current_user from t'
         as_peer=$({program} pg url shop)
         runuser -u {user} -- psql -XAtq -c 'select count(*) from t' \"$as_peer\"
         tank='neon storage attach -t s3 -n tank -c endpoint={endpoint} -c path-style=on s3://bucket/neon'
         $tank > /dev/null
         neon -o json snapshot create shop@one -s tank | grep '\"kind\"'
         code=0; neon pg stop shop || code=$?; echo stop=$code

         export NEON_HOME={second} NEON_PORTS={ports}
         $tank > /dev/null
         neon pg create copy --snapshot shop@one > /dev/null
         sql copy 'select count(*) from t'
         sql copy 'insert into t values (0)'

         export NEON_HOME={first}
         theirs 'select count(*) from t'
         neon pg destroy shop --yes
         pg_ctlcluster --skip-systemctl-redirect 15 shop status | grep -c 'server is running'",
        place = place.path().display(),
        user = OsUser::current().name(),
        program = Home::program(),
        endpoint = server.endpoint(),
        first = home.path().display(),
        second = second.path().display(),
        ports = second.ports(),
        port = home.ports().split('-').next().unwrap(),
    );
    let path = format!(
        "{}:/usr/sbin:/usr/bin:/sbin:/bin",
        psql.parent().unwrap().display()
    );
    let said = ran(home
        .apart(&script)
        .env("PATH", path)
        .env("AWS_ACCESS_KEY_ID", &server.options().access_key)
        .env("AWS_SECRET_ACCESS_KEY", &server.options().secret_key)
        .env("AWS_REGION", "us-east-1")
        .env("AWS_EC2_METADATA_DISABLED", "true"));
    assert_eq!(said.code, 0, "{said:#?}");
    let lines: Vec<&str> = said.out.lines().map(str::trim).collect();
    // Root is let in as the user of the server.
    assert_eq!(lines[..2], ["10000|postgres", "10000"], "{said:#?}");
    assert!(
        said.err.contains("its socket asks who connects"),
        "{said:#?}"
    );
    assert!(lines[2].contains("\"online\""), "{said:#?}");
    // It is stopped as its owner stops it; what is written to the copy stays there; forgotten, it runs on.
    assert_eq!(
        lines[3..],
        ["stop=4", "10000", "10000", "Ok", "1"],
        "{said:#?}"
    );
    assert!(said.err.contains("pg_ctlcluster 15 shop stop"), "{said:#?}");
}
