//! File systems of every kind, on loop devices, in a mount namespace of the test's own.
//!
//! The namespace goes with the last thread or process in it, and its mounts and loop devices with it: after a panic and
//! after a SIGKILL too. The images lose their names as soon as they are mounted. So nothing is ever left to sweep.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Where everything of a test is mounted; nobody else sees it.
const ROOT: &str = "/mnt";

/// Runs the test in a mount namespace of its own, with an empty `/mnt` that everybody may enter.
pub(crate) fn with_mounts<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    assert!(
        rustix::process::geteuid().is_root(),
        "this test mounts file systems: run the tests as root"
    );
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: descriptors are not unshared, only mounts and the working directory of this thread.
            #[expect(unsafe_code, reason = "a mount namespace has no safe call")]
            unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }
                .expect("root may make mount namespaces (CAP_SYS_ADMIN)");
            run("mount", &["--make-rprivate", "/"]);
            run("mount", &["-t", "tmpfs", "-o", "mode=0755", "none", ROOT]);
            test()
        });
        match thread.join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Runs a program that must succeed.
pub(crate) fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program)
        .args(args)
        .output()
        .unwrap_or_else(|error| panic!("{program} ({error}): run scripts/setup"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {text}{said}");
    text
}

/// A new file system, mounted at a folder below `/mnt` that it returns. `kind` with arguments of its `mkfs`.
pub(crate) fn disk(name: &str, kind: &str, mkfs: &[&str], options: &str) -> PathBuf {
    let place = Path::new(ROOT).join(name);
    fs::create_dir(&place).unwrap();
    let image = image();
    // Sparse; as small as the pickiest of them takes, with room for two clusters.
    File::set_len(image.as_file(), 640 << 20).unwrap();
    let path = image.path().to_str().unwrap();
    let mut args = mkfs.to_vec();
    args.extend([if kind == "ext4" { "-Fq" } else { "-fq" }, path]);
    run(&format!("mkfs.{kind}"), &args);
    mount_image(kind, options, path, &place);
    place
}

fn image() -> tempfile::NamedTempFile {
    tempfile::Builder::new()
        .prefix("neon-cowfs-")
        .tempfile()
        .unwrap()
}

fn mount_image(kind: &str, options: &str, path: &str, place: &Path) {
    let options = format!("loop,{options}");
    let deadline = Instant::now() + Duration::from_secs(180);
    // Other tests may have all loop devices for the moment.
    while let Err(said) = mount(kind, &options, path, place) {
        assert!(Instant::now() < deadline, "mounting {kind}: {said}");
        std::thread::sleep(Duration::from_millis(200));
    }
    fs::set_permissions(place, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Cuts the power: mounts what the disk has at this moment, and forgets what only memory had.
pub(crate) fn power_cut(kind: &str, place: &Path) {
    let place_text = place.to_str().unwrap();
    let device = run("findmnt", &["-no", "SOURCE", place_text]);
    let image = image();
    let path = image.path().to_str().unwrap();
    // The device and not its file, which has no name any more; what the file system has not yet sent to it is not in it.
    // Direct, since the device's own cache may be older than what the file system wrote past it.
    let (from, to) = (format!("if={}", device.trim()), format!("of={path}"));
    run(
        "dd",
        &[
            &from,
            &to,
            "bs=1M",
            "iflag=direct",
            "conv=sparse",
            "status=none",
        ],
    );
    run("umount", &[place_text]);
    mount_image(kind, "defaults", path, place);
}

fn mount(kind: &str, options: &str, image: &str, place: &Path) -> Result<(), String> {
    let output = Command::new("mount")
        .args(["-t", kind, "-o", options, image])
        .arg(place)
        .output()
        .unwrap();
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).into_owned())
}

pub(crate) fn xfs() -> PathBuf {
    disk("xfs", "xfs", &[], "defaults")
}

pub(crate) fn btrfs() -> PathBuf {
    disk("btrfs", "btrfs", &[], "defaults")
}

pub(crate) fn ext4() -> PathBuf {
    disk("ext4", "ext4", &[], "defaults")
}

/// A file system in memory of this size.
pub(crate) fn tmpfs(name: &str, size: &str) -> PathBuf {
    let place = Path::new(ROOT).join(name);
    fs::create_dir(&place).unwrap();
    let options = format!("mode=0755,size={size}");
    run(
        "mount",
        &[
            "-t",
            "tmpfs",
            "-o",
            &options,
            "none",
            place.to_str().unwrap(),
        ],
    );
    place
}
