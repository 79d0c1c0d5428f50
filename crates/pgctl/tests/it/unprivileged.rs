//! The same as another user than root: tests of other modules, run again by the user of servers.

use super::support::*;

fn again(tests: &[&str]) {
    let scratch = Scratch::new();
    for test in tests {
        let text = succeed(&mut this_program_as_server_user(test, &scratch));
        assert!(text.contains("1 passed"), "{test}: {text}");
    }
}

macro_rules! again {
    ($($name:ident: $test:literal),+ $(,)?) => {
        $(#[test]
        fn $name() {
            again(&[$test]);
        })+
    };
}

again! {
    somebody_who_is_not_root_runs_13: "lifecycle::an_instance_of_13_lives",
    somebody_who_is_not_root_runs_14: "lifecycle::an_instance_of_14_lives",
    somebody_who_is_not_root_runs_15: "lifecycle::an_instance_of_15_lives",
    somebody_who_is_not_root_runs_16: "lifecycle::an_instance_of_16_lives",
    somebody_who_is_not_root_runs_17: "lifecycle::an_instance_of_17_lives",
    somebody_who_is_not_root_runs_18: "lifecycle::an_instance_of_18_lives",
    somebody_who_is_not_root_recovers_13: "recovery::v13::a_copy_of_an_instance_recovers",
    somebody_who_is_not_root_recovers_18: "recovery::v18::a_copy_of_an_instance_recovers",
    somebody_who_is_not_root_starts_in_quarantine: "quarantine::quarantine_holds_everything_back_on_17",
    somebody_who_is_not_root_is_told_of_modes: "failures::a_wrong_mode_and_a_wrong_owner_are_told_before_anything_runs",
    somebody_who_is_not_root_is_not_hindered_by_another_servers_number: "failures::a_pid_file_whose_number_another_server_has_now_does_not_hinder",
    somebody_who_is_not_root_creates_a_standby: "replica::a_standby_is_created::v17",
    somebody_who_is_not_root_holds_a_scoped_server: "scope::a_scoped_server_that_keeps_its_data_is_shut_down_cleanly_and_restarts_after_a_crash",
}

/// Whom a data directory does not belong to is told so, by its name.
#[test]
fn a_data_directory_of_somebody_else_is_not_started() {
    if std::env::var_os(THEIRS).is_some() || !we_are_root() {
        run(theirs());
        return;
    }
    let scratch = Scratch::new();
    run(async {
        let fixture = Fixture::new(PgMajor::V15).await;
        // Readable for everybody up to the files of a cluster, as a careless restore leaves it; and nobody's
        // who is not root.
        let open = std::process::Command::new("chmod")
            .args(["-R", "a+rX"])
            .arg(fixture.scratch.path())
            .status();
        assert!(open.unwrap().success());
        let chown = std::process::Command::new("chown")
            .args(["-R", "65534:65534"])
            .arg(fixture.dir())
            .status();
        assert!(chown.unwrap().success());
        let test = "unprivileged::a_data_directory_of_somebody_else_is_not_started";
        let mut command = this_program_as_server_user(test, &scratch);
        succeed(command.env(THEIRS, fixture.dir()));
    });
}

const THEIRS: &str = "NEON_PGCTL_THEIRS";

async fn theirs() {
    let Some(dir) = std::env::var_os(THEIRS) else {
        // Not root from the beginning: a folder of root's.
        let error = Instance::create(
            &installation(PgMajor::V15),
            "/neon-pgctl",
            &create_options(),
        )
        .await;
        assert_eq!(error.unwrap_err().kind(), ErrorKind::Permissions);
        return;
    };
    let instance = Instance::open(&installation(PgMajor::V15), dir).unwrap();
    let error = instance.start(&start_options()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WrongOwner, "{error:?}");
    let root = CreateOptions::new().with_os_user(OsUser::from_ids(0, 0));
    let scratch = Scratch::new();
    let error =
        Instance::create(&installation(PgMajor::V15), scratch.path().join("x"), &root).await;
    assert_eq!(error.unwrap_err().kind(), ErrorKind::NoOsUser);
}
