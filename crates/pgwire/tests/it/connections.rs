//! Logging in: methods, encryption, and what is refused, against real servers.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use neon_pgwire::{Client, Config, ErrorKind, Params, Surroundings};
use neon_testkit::{Cluster, OsUser, PgMajor, Scratch};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
};

use crate::support::config;

/// Certificates of an authority that signs a server's and a client's.
struct Certificates {
    scratch: Scratch,
}

impl Certificates {
    fn new() -> Self {
        let scratch = Scratch::new();
        let mut ca = CertificateParams::new(Vec::new()).unwrap();
        ca.distinguished_name
            .push(DnType::CommonName, "an authority");
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let root = ca.self_signed(&key).unwrap();
        fs::write(scratch.path().join("root.crt"), root.pem()).unwrap();
        let issuer = Issuer::new(ca, key);
        // The server is named by its common name alone, as the documentation's recipe does it.
        for (file, common_name, names) in [
            ("server", "localhost", Vec::new()),
            ("client", "certified", Vec::new()),
            ("other", "db.example.org", vec!["db.example.org".to_owned()]),
        ] {
            let mut params = CertificateParams::new(names).unwrap();
            params
                .distinguished_name
                .push(DnType::CommonName, common_name);
            params.serial_number = Some(SerialNumber::from(file.as_bytes().to_vec()));
            let key = KeyPair::generate().unwrap();
            let certificate = params.signed_by(&key, &issuer).unwrap();
            fs::write(
                scratch.path().join(format!("{file}.crt")),
                certificate.pem(),
            )
            .unwrap();
            let key_file = scratch.path().join(format!("{file}.key"));
            fs::write(&key_file, key.serialize_pem()).unwrap();
            fs::set_permissions(&key_file, fs::Permissions::from_mode(0o600)).unwrap();
            OsUser::current().own(&key_file);
        }
        for (file, revoked, until) in [
            ("none", "nothing", 2100),
            ("server", "server", 2100),
            ("expired", "nothing", 2021),
        ] {
            let revoked = RevokedCertParams {
                serial_number: SerialNumber::from(revoked.as_bytes().to_vec()),
                revocation_time: rcgen::date_time_ymd(2020, 1, 1),
                reason_code: None,
                invalidity_date: None,
            };
            let list = CertificateRevocationListParams {
                this_update: rcgen::date_time_ymd(2020, 1, 1),
                next_update: rcgen::date_time_ymd(until, 1, 1),
                crl_number: SerialNumber::from(1),
                issuing_distribution_point: None,
                revoked_certs: vec![revoked],
                key_identifier_method: KeyIdMethod::Sha256,
            };
            let list = list.signed_by(&issuer).unwrap();
            fs::write(
                scratch.path().join(format!("{file}.crl")),
                list.pem().unwrap(),
            )
            .unwrap();
        }
        Self { scratch }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn server(&self, major: PgMajor, certificate: &str) -> Cluster {
        // Servers read a key that is theirs and nobody else's.
        Cluster::builder(major)
            .tcp()
            .password("pass word'\\")
            .setting("ssl", "on")
            .setting(
                "ssl_cert_file",
                self.path(&format!("{certificate}.crt")).display(),
            )
            .setting(
                "ssl_key_file",
                self.path(&format!("{certificate}.key")).display(),
            )
            .setting("ssl_ca_file", self.path("root.crt").display())
            .hba("hostssl all certified 127.0.0.1/32 cert")
            .hba("hostssl all needs_tls 127.0.0.1/32 trust")
            .hba("hostnossl all needs_plain 127.0.0.1/32 trust")
            .hba("hostssl all needs_plain 127.0.0.1/32 reject")
            .hba("local all peered peer")
            .hba("host all in_clear 127.0.0.1/32 password")
            .start()
    }
}

async fn connects(conninfo: &str) -> Client {
    match Client::connect(&config(conninfo)).await {
        Ok(mut client) => {
            assert_eq!(
                client.simple_query("select 1").await.unwrap()[0].value(0, 0),
                Some("1")
            );
            client
        }
        Err(error) => panic!("{error:?}"),
    }
}

async fn fails(conninfo: &str) -> neon_pgwire::Error {
    Client::connect(&config(conninfo)).await.unwrap_err()
}

#[tokio::test]
async fn every_method_that_servers_ask_for_is_answered() {
    for major in [PgMajor::V13, PgMajor::V18] {
        for (encryption, method) in [("scram-sha-256", "scram-sha-256"), ("md5", "md5")] {
            let cluster = Cluster::builder(major)
                .tcp()
                .password("päss word'\\")
                .setting("password_encryption", encryption)
                .hba("host all in_clear 127.0.0.1/32 password")
                .start();
            cluster.psql("create user in_clear password 'clear'");
            let tcp = cluster.tcp_conninfo();
            connects(&tcp).await;
            connects(&format!("{tcp} require_auth={method}")).await;
            for refused in ["none", "password", &format!("!{method}")] {
                let error = fails(&format!("{tcp} require_auth={refused}")).await;
                assert_eq!(error.kind(), ErrorKind::Authentication, "{error:?}");
            }
            let error = fails(&format!("{tcp} password=wrong")).await;
            assert_eq!(
                (error.kind(), error.sqlstate()),
                (ErrorKind::Authentication, Some("28P01"))
            );
            let error = fails(&format!("{tcp} channel_binding=require")).await;
            assert_eq!(error.kind(), ErrorKind::Authentication);
            connects(&format!(
                "{tcp} user=in_clear password=clear require_auth=password"
            ))
            .await;
            connects(&format!("{} require_auth=none", cluster.conninfo())).await;
            let error = fails(&format!(
                "{} require_auth=scram-sha-256",
                cluster.conninfo()
            ))
            .await;
            assert_eq!(
                error.kind(),
                ErrorKind::Authentication,
                "trust is not what was asked for"
            );
            let shown = format!(
                "{:?} {:?}",
                config(&tcp),
                fails(&format!("{tcp} password=s3cret")).await
            );
            assert!(
                !shown.contains("päss") && !shown.contains("s3cret"),
                "{shown}"
            );
        }
    }
}

#[tokio::test]
async fn encryption_is_as_much_as_was_asked_for() {
    let certificates = Certificates::new();
    let root = certificates.path("root.crt");
    // The packaged servers of 16 and 18 have no TLS.
    for major in [PgMajor::V13, PgMajor::V15, PgMajor::V17] {
        let cluster = certificates.server(major, "server");
        for user in ["certified", "needs_tls", "needs_plain"] {
            cluster.psql(&format!("create user {user}"));
        }
        let tcp = cluster.tcp_conninfo();
        let verified = format!(
            "{tcp} host=localhost hostaddr=127.0.0.1 sslrootcert={}",
            root.display()
        );
        for (mode, encrypted) in [
            ("disable", false),
            ("allow", false),
            ("prefer", true),
            ("require", true),
            ("verify-ca", true),
            ("verify-full", true),
        ] {
            let client = connects(&format!("{verified} sslmode={mode}")).await;
            assert_eq!(client.is_encrypted(), encrypted, "{mode}");
        }
        // Binding the login to the connection works, and is refused where it cannot be.
        connects(&format!(
            "{verified} sslmode=require channel_binding=require"
        ))
        .await;
        connects(&format!(
            "{verified} sslmode=require channel_binding=disable"
        ))
        .await;
        let error = fails(&format!(
            "{verified} sslmode=disable channel_binding=require"
        ))
        .await;
        assert_eq!(error.kind(), ErrorKind::Authentication);
        // Falling back in both directions.
        let trusted = tcp.replace("user=postgres", "user=needs_tls");
        assert!(
            connects(&format!("{trusted} sslmode=allow"))
                .await
                .is_encrypted()
        );
        let plain = tcp.replace("user=postgres", "user=needs_plain");
        assert!(
            !connects(&format!("{plain} sslmode=prefer"))
                .await
                .is_encrypted()
        );
        fails(&format!("{plain} sslmode=require")).await;
        fails(&format!("{trusted} sslmode=disable")).await;
        // The name is compared when it is asked for only.
        let by_address = format!("{tcp} sslrootcert={}", root.display());
        connects(&format!("{by_address} sslmode=verify-ca")).await;
        assert_eq!(
            fails(&format!("{by_address} sslmode=verify-full"))
                .await
                .kind(),
            ErrorKind::Tls
        );
        // An authority that is another's.
        let other = format!(
            "{tcp} sslrootcert={}",
            certificates.path("other.crt").display()
        );
        for mode in ["require", "verify-ca"] {
            assert_eq!(
                fails(&format!("{other} sslmode={mode}")).await.kind(),
                ErrorKind::Tls,
                "{mode}"
            );
        }
        // The certificate of the server may itself be what is trusted.
        let itself = format!(
            "{verified} sslrootcert={}",
            certificates.path("server.crt").display()
        );
        connects(&format!("{itself} sslmode=verify-full")).await;
        // The versions of TLS.
        connects(&format!(
            "{verified} sslmode=require ssl_max_protocol_version=TLSv1.2 channel_binding=require"
        ))
        .await;
        connects(&format!(
            "{verified} sslmode=require ssl_min_protocol_version=TLSv1.3"
        ))
        .await;
        // Client certificates: one that names the user, one that names another, none.
        let with_certificate = |name: &str| {
            format!(
                "{} sslmode=require sslcert={} sslkey={}",
                tcp.replace("user=postgres", "user=certified"),
                certificates.path(&format!("{name}.crt")).display(),
                certificates.path(&format!("{name}.key")).display()
            )
        };
        let cert = with_certificate("client");
        connects(&cert).await;
        let wrong_name = fails(&with_certificate("other")).await;
        assert_eq!(
            wrong_name.kind(),
            ErrorKind::Authentication,
            "{wrong_name:?}"
        );
        fails(&format!("{cert} sslcertmode=disable")).await;
        // A certificate that its authority has revoked, and one that it has not.
        let unrevoked = format!(
            "{verified} sslmode=verify-ca sslcrl={}",
            certificates.path("none.crl").display()
        );
        connects(&unrevoked).await;
        let revoked = format!(
            "{verified} sslmode=verify-ca sslcrl={}",
            certificates.path("server.crl").display()
        );
        assert_eq!(fails(&revoked).await.kind(), ErrorKind::Tls);
        // A list that is out of date says nothing about today.
        let expired = format!(
            "{verified} sslmode=verify-ca sslcrl={}",
            certificates.path("expired.crl").display()
        );
        assert_eq!(fails(&expired).await.kind(), ErrorKind::Tls);
        // The system's authorities.
        let mut surroundings = Surroundings::none();
        surroundings.system_roots = Some(root.clone());
        let system: Params = format!("{verified} sslrootcert=system").parse().unwrap();
        let system = Config::resolve(&system, &surroundings).unwrap();
        assert!(Client::connect(&system).await.unwrap().is_encrypted());
        let asked = format!("{cert} sslcertmode=require user=needs_tls");
        connects(&asked).await;
        // Cancelling goes over TLS as well.
        let client = connects(&format!("{verified} sslmode=require")).await;
        client.cancel_token().unwrap().cancel().await.unwrap();
        let direct = format!("{verified} sslmode=require sslnegotiation=direct");
        if major >= PgMajor::V17 {
            connects(&direct).await;
        } else {
            fails(&direct).await;
        }
        // A key that others may read is not used.
        let loose = certificates.path("loose.key");
        fs::copy(certificates.path("client.key"), &loose).unwrap();
        fs::set_permissions(&loose, fs::Permissions::from_mode(0o644)).unwrap();
        let error = fails(&format!("{asked} sslkey={}", loose.display())).await;
        assert_eq!(error.kind(), ErrorKind::File);
    }
}

#[tokio::test]
async fn newer_protocol_versions_are_negotiated() {
    for installation in neon_testkit::Installation::all() {
        let major = installation.major();
        let cluster = Cluster::builder(major).start();
        let newest = format!("{} max_protocol_version=latest", cluster.conninfo());
        let client = connects(&newest).await;
        client.cancel_token().unwrap().cancel().await.unwrap();
        let needed = format!("{} min_protocol_version=3.2", cluster.conninfo());
        match major {
            PgMajor::V18 => drop(connects(&needed).await),
            _ => assert_eq!(fails(&needed).await.kind(), ErrorKind::Unsupported),
        }
    }
}

#[tokio::test]
async fn the_peer_behind_a_socket_is_who_it_must_be() {
    let cluster = Cluster::builder(PgMajor::V15)
        .hba("local all root peer")
        .start();
    let passwd = cluster.scratch_dir().join("passwd");
    let server = OsUser::current().ids().map_or_else(
        || {
            fs::metadata(cluster.data_dir())
                .map(|data| std::os::unix::fs::MetadataExt::uid(&data))
                .unwrap()
        },
        |(uid, _)| uid,
    );
    fs::write(
        &passwd,
        format!(
            "nobody_here:x:{}:1::/:/bin/sh\nserver:x:{server}:1::/:/bin/sh\n",
            server + 1
        ),
    )
    .unwrap();
    let mut surroundings = Surroundings::none();
    surroundings.user_database = Some(passwd);
    let resolve = |peer: &str| {
        let params: Params = format!("{} requirepeer={peer}", cluster.conninfo())
            .parse()
            .unwrap();
        Config::resolve(&params, &surroundings)
    };
    Client::connect(&resolve("server").unwrap()).await.unwrap();
    let error = Client::connect(&resolve("nobody_here").unwrap())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Authentication);
    assert_eq!(resolve("unknown").unwrap_err().kind(), ErrorKind::Config);
}

#[tokio::test]
async fn on_a_socket_we_are_let_in_as_who_we_are_and_as_nobody_else() {
    let me = std::process::Command::new("id")
        .arg("-un")
        .output()
        .unwrap();
    let me = String::from_utf8(me.stdout).unwrap().trim().to_owned();
    for major in [PgMajor::V13, PgMajor::V18] {
        let mut cluster = Cluster::builder(major)
            .hba(format!("local all,replication \"{me}\" peer"))
            .hba("local all,replication mapped peer map=ours")
            .hba("local all,replication somebody_else peer")
            .init();
        let map = cluster.data_dir().join("pg_ident.conf");
        fs::write(&map, format!("ours \"{me}\" mapped\n")).unwrap();
        OsUser::current().own(&map);
        cluster.start();
        for role in [me.as_str(), "mapped", "somebody_else"] {
            if role != "postgres" {
                cluster.psql(&format!("create role \"{role}\" login replication"));
            }
        }
        for role in [me.as_str(), "mapped"] {
            let conninfo = format!("{} user={role}", cluster.conninfo());
            let mut client = connects(&conninfo).await;
            let results = client.simple_query("select session_user").await.unwrap();
            assert_eq!(results[0].value(0, 0), Some(role));
            // Nothing was asked of us, which is what `none` means.
            connects(&format!("{conninfo} require_auth=none")).await;
            let mut client = crate::support::replication(&conninfo).await;
            client.identify_system().await.unwrap();
        }
        let error = fails(&format!("{} user=somebody_else", cluster.conninfo())).await;
        assert_eq!(
            (error.kind(), error.sqlstate()),
            (ErrorKind::Authentication, Some("28000")),
            "{error:?}"
        );
    }
}

/// A server that believes every client that has shown a certificate of the authority, or says so.
async fn believes_certificates(certificates: &Certificates) -> (u16, tokio::task::JoinHandle<()>) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_rustls::rustls::pki_types::pem::PemObject;
    use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use tokio_rustls::rustls::server::WebPkiClientVerifier;
    use tokio_rustls::rustls::{RootCertStore, ServerConfig, crypto::ring};
    let mut roots = RootCertStore::empty();
    let root = CertificateDer::from_pem_file(certificates.path("root.crt")).unwrap();
    roots.add(root).unwrap();
    let provider = std::sync::Arc::new(ring::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(roots.into(), std::sync::Arc::clone(&provider))
            .build()
            .unwrap();
    let chain = vec![CertificateDer::from_pem_file(certificates.path("server.crt")).unwrap()];
    let key = PrivateKeyDer::from_pem_file(certificates.path("server.key")).unwrap();
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 8];
            if stream.read_exact(&mut request).await.is_err() {
                continue;
            }
            stream.write_all(b"S").await.unwrap();
            let mut stream = acceptor.accept(stream).await.unwrap();
            assert!(stream.get_ref().1.peer_certificates().is_some());
            let greeting = crate::hostile_servers::greeting("18.0");
            stream.write_all(&greeting).await.unwrap();
            stream.flush().await.unwrap();
            // Until the client has had enough.
            let mut rest = Vec::new();
            drop(stream.read_to_end(&mut rest).await);
        }
    });
    (port, task)
}

#[tokio::test]
async fn a_certificate_that_was_sent_does_not_stand_for_a_password_that_was_not_asked_for() {
    let certificates = Certificates::new();
    let (port, server) = believes_certificates(&certificates).await;
    let conninfo = format!(
        "host=localhost hostaddr=127.0.0.1 port={port} user=certified password=secret \
         sslmode=verify-full sslrootcert={} sslcert={} sslkey={}",
        certificates.path("root.crt").display(),
        certificates.path("client.crt").display(),
        certificates.path("client.key").display()
    );
    for wanted in [
        "scram-sha-256",
        "md5",
        "password",
        "!none",
        "scram-sha-256,md5",
    ] {
        let error = fails(&format!("{conninfo} require_auth={wanted}")).await;
        assert_eq!(
            error.kind(),
            ErrorKind::Authentication,
            "{wanted}: {error:?}"
        );
    }
    let error = fails(&format!("{conninfo} channel_binding=require")).await;
    assert_eq!(error.kind(), ErrorKind::Authentication, "{error:?}");
    for allowed in ["", "require_auth=none", "require_auth=none,scram-sha-256"] {
        let conninfo = format!("{conninfo} {allowed} sslcertmode=require");
        let client = Client::connect(&config(&conninfo)).await.unwrap();
        assert!(client.is_encrypted());
    }
    server.abort();
}

#[tokio::test]
async fn hosts_are_tried_in_order_and_all_failures_are_told() {
    let cluster = Cluster::builder(PgMajor::V16).tcp().password("x").start();
    let dead = Scratch::new();
    let hosts = format!(
        "host={},127.0.0.1 port=5432,{} user=postgres dbname=postgres password=x connect_timeout=60",
        dead.path().display(),
        cluster.port()
    );
    connects(&hosts).await;
    let error = fails(&format!(
        "host={0},{0} user=postgres",
        dead.path().display()
    ))
    .await;
    assert!(error.to_string().contains("before that"), "{error}");
    assert_eq!(error.kind(), ErrorKind::Io);
    // Each with its cause, of the servers that were reached as well.
    let error = fails(&format!(
        "host=127.0.0.1,{0},{0} port={1},5432,5432 user=postgres dbname=nowhere password=x",
        dead.path().display(),
        cluster.port()
    ))
    .await
    .to_string();
    assert!(
        error.contains("database \"nowhere\" does not exist"),
        "{error}"
    );
    assert_eq!(
        error.matches("No such file or directory").count(),
        1,
        "{error}"
    );
    // A wrong password ends the search.
    let wrong = format!(
        "host=127.0.0.1,{} port={},5432 user=postgres dbname=postgres password=y",
        cluster.socket_dir().display(),
        cluster.port()
    );
    assert_eq!(fails(&wrong).await.kind(), ErrorKind::Authentication);
}

#[tokio::test]
async fn the_password_file_is_asked_when_the_server_asks() {
    let cluster = Cluster::builder(PgMajor::V14)
        .tcp()
        .password("from the file")
        .start();
    let file = cluster.scratch_dir().join("pgpass");
    let write = |text: &str, mode: u32| {
        drop(fs::remove_file(&file));
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
    };
    let conninfo = format!(
        "host=127.0.0.1 port={} user=postgres passfile={}",
        cluster.port(),
        file.display()
    );
    write(
        "127.0.0.1:*:postgres:postgres:wrong\n127.0.0.1:*:replication:postgres:from the file\n",
        0o600,
    );
    Client::connect(&config(&format!("{conninfo} replication=true")))
        .await
        .unwrap()
        .identify_system()
        .await
        .unwrap();
    assert_eq!(fails(&conninfo).await.kind(), ErrorKind::Authentication);
    write("*:*:*:*:from the file\n", 0o644);
    assert_eq!(fails(&conninfo).await.kind(), ErrorKind::File);
    // Nobody asks on the socket, so nobody minds.
    connects(&format!(
        "{} passfile={}",
        cluster.conninfo(),
        file.display()
    ))
    .await;
    assert!(Path::new(&file).exists());
}

#[tokio::test]
async fn abstract_sockets_are_sockets_as_well() {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener};
    let name = format!("neon-pgwire-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(format!("{name}/.s.PGSQL.5432")).unwrap();
    let listener = UnixListener::bind_addr(&address).unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        std::io::Write::write_all(&mut stream, &crate::hostile_servers::greeting("18.0")).unwrap();
        stream
    });
    let client = Client::connect(&config(&format!("host=@{name} user=me")))
        .await
        .unwrap();
    assert_eq!(client.major().unwrap(), PgMajor::V18);
    drop(server.join().unwrap());
}

#[tokio::test]
async fn a_full_queue_is_waited_for_as_long_as_connect_timeout_says() {
    use socket2::{Domain, SockAddr, Socket, Type};
    let scratch = Scratch::new();
    let abstract_name = format!("neon-pgwire-full-{}", std::process::id());
    for (host, address) in [
        (
            format!("@{abstract_name}"),
            SockAddr::unix(format!("\0{abstract_name}/.s.PGSQL.5432")),
        ),
        (
            scratch.path().display().to_string(),
            SockAddr::unix(scratch.path().join(".s.PGSQL.5432")),
        ),
    ] {
        let address = address.unwrap();
        let listener = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        listener.bind(&address).unwrap();
        listener.listen(0).unwrap();
        // Nobody is let in, so that one connection fills the queue.
        let mut waiting = Vec::new();
        loop {
            let one = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
            one.set_nonblocking(true).unwrap();
            if one.connect(&address).is_err() {
                break;
            }
            waiting.push(one);
        }
        let conninfo = format!("host={host} user=me connect_timeout=2");
        let begun = std::time::Instant::now();
        let connecting = tokio::spawn(async move { fails(&conninfo).await });
        let error = tokio::time::timeout(std::time::Duration::from_secs(60), connecting);
        let error = error.await.expect("it waits for ever").unwrap();
        assert_eq!(error.kind(), ErrorKind::Timeout, "{error:?}");
        assert!(begun.elapsed() >= std::time::Duration::from_secs(2));
        // As soon as there is room, the connection is made.
        let conninfo = format!("host={host} user=me connect_timeout=60");
        let connecting =
            tokio::spawn(async move { Client::connect(&config(&conninfo)).await.unwrap() });
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        for _ in 0..waiting.len() {
            drop(listener.accept().unwrap());
        }
        let server = tokio::task::spawn_blocking(move || {
            let (mut stream, _) = listener.accept().unwrap();
            std::io::Write::write_all(&mut stream, &crate::hostile_servers::greeting("18.0"))
                .unwrap();
            stream
        });
        assert_eq!(connecting.await.unwrap().major().unwrap(), PgMajor::V18);
        drop(server.await.unwrap());
    }
}
