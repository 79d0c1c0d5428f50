//! A fresh data directory, from `initdb` or from a cached result of it.
//!
//! `initdb` costs a second and more; copying what it made, a tenth. Results are kept below
//! `target/testkit`, one per exact version and arguments, made once under a file lock and moved into
//! place by one rename, so that test processes that run at once agree.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

use crate::copy::{DATA, copy_tree};
use crate::installation::{Installation, workspace_root};
use crate::os_user::OsUser;
use crate::scratch::Scratch;

/// Runs `initdb` into `data_dir`, in the working directory above it.
pub(crate) fn initdb(installation: &Installation, args: &[String], data_dir: &Path) {
    let output = installation
        .command("initdb")
        .current_dir(
            data_dir
                .parent()
                .expect("a data directory lies in a scratch folder"),
        )
        .arg("-D")
        .arg(data_dir)
        .args([
            "-U",
            "postgres",
            "-A",
            "trust",
            "--no-sync",
            "--locale=C",
            "--encoding=UTF8",
        ])
        .args(args)
        .output()
        .expect("initdb is installed");
    assert!(
        output.status.success(),
        "initdb of {} failed: {}{}",
        installation.version(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Makes `data_dir` from the cached result of `initdb` with these arguments.
pub(crate) fn copy_template(installation: &Installation, args: &[String], data_dir: &Path) {
    let user = OsUser::current();
    let mut hasher = DefaultHasher::new();
    (installation.bin_dir(), installation.version(), args).hash(&mut hasher);
    let cache = workspace_root().join("target/testkit");
    let template = cache.join(format!(
        "{}-{:016x}",
        installation.version(),
        hasher.finish()
    ));
    if !template.exists() {
        fs::create_dir_all(&cache).expect("target is writable");
        let lock = File::create(template.with_extension("lock")).expect("target is writable");
        lock.lock().expect("target is on a file system with locks");
        if !template.exists() {
            let scratch = Scratch::new();
            let fresh = scratch.path().join(DATA);
            initdb(installation, args, &fresh);
            let building = tempfile::tempdir_in(&cache).expect("target is writable");
            copy_tree(&fresh, &building.path().join(DATA), user);
            fs::rename(building.path().join(DATA), &template).expect("nobody else holds the lock");
        }
    }
    copy_tree(&template, data_dir, user);
}
