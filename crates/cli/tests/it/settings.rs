//! Where settings come from, and where the home is.

use std::os::unix::fs::PermissionsExt;

use serde_json::Value;

use crate::support::{Home, neon, ran};

#[test]
fn each_setting_tells_where_it_comes_from_and_no_secret_is_shown() {
    let home = Home::new();
    std::fs::create_dir(home.path()).unwrap();
    let file = home.path().join("config.json");
    std::fs::write(
        &file,
        r#"{"patience": 3, "os_user": "somebody", "threads": 1}"#,
    )
    .unwrap();
    let mut command = home.command(&[
        "config", "show", "--origin", "-o", "json", "--pg-bin", "/opt/x",
    ]);
    command
        .env_remove("NEON_OS_USER")
        .env("NEON_THREADS", "3")
        .env("NEON_PASSPHRASE", "hunter2")
        .env("AWS_SECRET_ACCESS_KEY", "hunter3");
    let shown = ran(&mut command);
    assert_eq!(shown.code, 0, "{shown:?}");
    assert!(!shown.out.contains("hunter"), "{shown:?}");
    let shown: Value = serde_json::from_str(&shown.out).unwrap();
    let find = |name: &str| {
        let all = shown["settings"].as_array().unwrap();
        let one = all.iter().find(|one| one["name"] == name).unwrap();
        (
            one["value"].as_str().unwrap(),
            one["origin"].as_str().unwrap(),
        )
    };
    let in_file = format!("file {}", file.display());
    assert_eq!(find("patience"), ("3", in_file.as_str()));
    assert_eq!(find("os_user"), ("somebody", in_file.as_str()));
    assert_eq!(find("threads"), ("3", "environment NEON_THREADS"));
    assert_eq!(find("pg_bin"), ("/opt/x", "option --pg-bin"));
    assert_eq!(find("output"), ("json", "option --output"));
    assert_eq!(find("home").1, "environment NEON_HOME");
    assert_eq!(find("passphrase"), ("(set)", "environment NEON_PASSPHRASE"));
    assert_eq!(find("AWS_SECRET_ACCESS_KEY"), ("(set)", "environment"));
}

#[test]
fn what_is_wrong_in_the_settings_is_named() {
    let home = Home::new();
    std::fs::create_dir(home.path()).unwrap();
    std::fs::write(home.path().join("config.json"), r#"{"patients": 3}"#).unwrap();
    let said = home.fails(2, &["pg", "list"]);
    assert!(
        said.contains("patients") && said.contains("hint: settings are"),
        "{said}"
    );
    std::fs::write(home.path().join("config.json"), r#"{"ports": "9-1"}"#).unwrap();
    let bad = ran(home.command(&["pg", "list"]).env_remove("NEON_PORTS"));
    assert_eq!(bad.code, 2);
    assert!(bad.err.contains("setting ports of file"), "{bad:?}");
    let bad = ran(home.command(&["pg", "list"]).env("NEON_OUTPUT", "xml"));
    assert_eq!(bad.code, 2);
    assert!(bad.err.contains("environment NEON_OUTPUT"), "{bad:?}");
}

#[test]
fn the_home_of_a_plain_user_is_where_such_data_belongs() {
    let root = rustix::process::geteuid().is_root();
    let place = |home: Option<&str>, data: Option<&str>| {
        let mut command = neon();
        command.args(["config", "show", "-o", "json"]);
        if let Some(home) = home {
            command.env("HOME", home);
        }
        if let Some(data) = data {
            command.env("XDG_DATA_HOME", data);
        }
        ran(&mut command)
    };
    let value = |text: &str| {
        let shown: Value = serde_json::from_str(text).unwrap();
        shown["settings"][0]["value"].as_str().unwrap().to_owned()
    };
    if root {
        assert_eq!(value(&place(Some("/root"), None).out), "/var/lib/neon");
    } else {
        assert_eq!(
            value(&place(Some("/home/me"), None).out),
            "/home/me/.local/share/neon"
        );
        assert_eq!(
            value(&place(Some("/home/me"), Some("/data")).out),
            "/data/neon"
        );
        let none = place(None, None);
        assert_eq!(none.code, 2);
        assert!(none.err.contains("hint: give --home"), "{none:?}");
    }
}

#[test]
fn a_folder_with_other_things_in_it_becomes_no_home() {
    let home = Home::new();
    std::fs::create_dir(home.path()).unwrap();
    std::fs::write(home.path().join("thesis.tex"), "").unwrap();
    let said = home.fails(2, &["pg", "list"]);
    assert!(said.contains("thesis.tex"), "{said}");
}

#[test]
fn as_root_a_home_that_servers_cannot_reach_is_refused() {
    if !rustix::process::geteuid().is_root() {
        // Servers are our own then, and reach what we reach.
        return;
    }
    let home = Home::new();
    let closed = home.scratch().join("closed");
    std::fs::create_dir(&closed).unwrap();
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o700)).unwrap();
    let inside = closed.join("deep/home");
    let said = home.fails(6, &["--home", inside.to_str().unwrap(), "pg", "list"]);
    assert!(said.contains("cannot reach it, because"), "{said}");
    assert!(
        said.contains(&format!("chmod o+x {}", closed.display())),
        "{said}"
    );
    assert!(!closed.join("deep").exists());
}

#[test]
fn a_passphrase_comes_from_a_file_too() {
    let home = Home::new();
    let file = home.scratch().join("passphrase");
    let missing = ran(home
        .command(&["pg", "list"])
        .env("NEON_PASSPHRASE_FILE", &file));
    assert_eq!(missing.code, 1, "{missing:?}");
    std::fs::write(&file, "\n").unwrap();
    let empty = ran(home
        .command(&["pg", "list"])
        .env("NEON_PASSPHRASE_FILE", &file));
    assert_eq!(empty.code, 2, "{empty:?}");
    std::fs::write(&file, "correct horse\n").unwrap();
    let given = ran(home
        .command(&["pg", "list"])
        .env("NEON_PASSPHRASE_FILE", &file));
    assert_eq!(given.code, 0, "{given:?}");
}
