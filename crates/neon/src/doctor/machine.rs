//! What is around a home: programs, users, modes, the file system.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use neon_cowfs::Method;
use neon_pgctl::OsUser;

use super::{DoctorOptions, Findings};
use crate::home::ABOUT;
use crate::neon::Neon;
use crate::quantity::bytes_in_words;

/// Less room than this, or than a twentieth of the disk below ten times as much, is worth a word.
const LITTLE: u64 = 1 << 30;
/// With less room than this a server may stop at any time.
const TOO_LITTLE: u64 = 128 << 20;

impl Neon {
    pub(super) async fn examine_machine(&self, options: &DoctorOptions, findings: &mut Findings) {
        other_programs(options, findings);
        match self.home().is_made() || self.home().has_records() {
            true => self.examine_home(findings).await,
            false => {
                let subject = self.home().path().display().to_string();
                findings.info(
                    "home-none",
                    subject,
                    "is no home yet: the first command that makes something makes it",
                );
            }
        }
        self.examine_programs(findings).await;
    }

    async fn examine_home(&self, findings: &mut Findings) {
        if !self.home().is_made() {
            let about = self.home().path().join(ABOUT);
            findings
                .error(
                    "home-incomplete",
                    about.display().to_string(),
                    "is not there, and instances or storages are recorded beside it",
                )
                .hinted("bring it back from a copy; the next command that makes something makes a new one");
        }
        self.reach(findings);
        self.modes(findings);
        self.disk(findings);
        mounts(self.home().path(), findings);
        let place = self.home().path().join("pg");
        let probed = tokio::task::spawn_blocking(move || neon_cowfs::probe(None, &place)).await;
        if let Ok(Ok(probe)) = probed
            && let Err(reason) = probe.works(Method::Reflink)
        {
            let subject = self.home().path().display().to_string();
            findings
                .info(
                    "no-reflink",
                    subject,
                    format!("files cannot share blocks ({reason}): every clone is a whole copy"),
                )
                .hinted("a home on btrfs, or on XFS with reflink=1, makes clones at once");
        }
    }

    async fn examine_programs(&self, findings: &mut Findings) {
        // A process may run for long, and what is wrong now is asked.
        self.forget_installed();
        match self.installations().await {
            Ok(found) => {
                for error in found.unusable() {
                    let text = match std::error::Error::source(error) {
                        Some(cause) => format!("{error}: {cause}"),
                        None => error.to_string(),
                    };
                    let finding = findings.warning("postgresql-broken", "PostgreSQL", text);
                    finding.hint = error.hint().map(str::to_owned);
                }
                if let Err(error) = found.newest() {
                    let finding =
                        findings.warning("postgresql-missing", "PostgreSQL", error.to_string());
                    finding.hint = error.hint().map(str::to_owned);
                }
            }
            Err(error) => findings.failed("postgresql-missing", "PostgreSQL", &error),
        }
    }

    /// Whether who servers run as is there, and can walk to the home.
    fn reach(&self, findings: &mut Findings) {
        match self.os_user() {
            Ok(None) => {}
            Ok(Some(user)) => {
                if let Some(closed) = first_closed(self.home().path(), &user) {
                    findings
                        .error(
                            "home-unreachable",
                            self.home().path().display().to_string(),
                            format!(
                                "user {} cannot reach it: {} is closed to others",
                                self.options().os_user,
                                closed.display()
                            ),
                        )
                        .hinted(format!("chmod o+x {}", closed.display()));
                }
            }
            Err(error) => findings.failed(
                "os-user-missing",
                format!("user {}", self.options().os_user),
                &error,
            ),
        }
    }

    /// What must be closed to others, and who must own it.
    fn modes(&self, findings: &mut Findings) {
        let home = self.home().path();
        let own = rustix::process::geteuid().as_raw();
        for (name, forbidden) in [
            ("", 0o022),
            ("pg", 0o022),
            ("trash", 0o022),
            ("state", 0o077),
            ("store", 0o077),
            ("cache", 0o077),
            ("config.json", 0o022),
        ] {
            let path = home.join(name);
            let Ok(meta) = fs::symlink_metadata(&path) else {
                if !["cache", "config.json"].contains(&name) {
                    findings.error(
                        "home-incomplete",
                        path.display().to_string(),
                        "is not there, or may not be looked at",
                    );
                }
                continue;
            };
            let mode = meta.permissions().mode() & 0o7777;
            if mode & forbidden != 0 {
                findings
                    .error(
                        "home-mode",
                        path.display().to_string(),
                        format!("has mode {mode:04o}: others may do what only its owner should"),
                    )
                    .hinted(format!(
                        "chmod {:04o} {}",
                        mode & !forbidden,
                        path.display()
                    ));
            }
            if meta.uid() != own {
                findings
                    .error(
                        "home-owner",
                        path.display().to_string(),
                        format!("belongs to the user with id {}, not to us", meta.uid()),
                    )
                    .hinted(format!("chown {own} {}", path.display()));
            }
        }
    }

    fn disk(&self, findings: &mut Findings) {
        let home = self.home().path();
        let Ok(stat) = rustix::fs::statvfs(home) else {
            return;
        };
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        let total = stat.f_blocks.saturating_mul(stat.f_frsize);
        let subject = home.display().to_string();
        let text = format!(
            "{} of {} are free",
            bytes_in_words(free),
            bytes_in_words(total)
        );
        let hint = "neon storage gc, neon snapshot destroy, or a larger disk";
        if free < TOO_LITTLE {
            findings.error("disk-full", subject, text).hinted(hint);
        } else if free < LITTLE || (free < 10 * LITTLE && free < total / 20) {
            findings
                .warning("disk-nearly-full", subject, text)
                .hinted(hint);
        }
        if stat.f_files > 0 && stat.f_favail < 10_000 && stat.f_favail < stat.f_files / 20 {
            findings
                .warning(
                    "inodes-nearly-used",
                    home.display().to_string(),
                    format!("{} files more can be made", stat.f_favail),
                )
                .hinted(hint);
        }
    }
}

/// Other programs of the same name that a shell would find.
fn other_programs(options: &DoctorOptions, findings: &mut Findings) {
    let Some(program) = &options.program else {
        return;
    };
    let (Some(name), Ok(own)) = (program.file_name(), fs::canonicalize(program)) else {
        return;
    };
    let mut seen = vec![own.clone()];
    for folder in std::env::split_paths(&options.path) {
        if !folder.is_absolute() {
            continue;
        }
        let Ok(other) = fs::canonicalize(folder.join(name)) else {
            continue;
        };
        let runs = fs::metadata(&other)
            .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0);
        if runs && !seen.contains(&other) {
            findings
                .warning(
                    "other-program",
                    other.display().to_string(),
                    format!(
                        "is another {}, found by shells; this one is {}",
                        name.display(),
                        own.display()
                    ),
                )
                .hinted("call the one you mean by its path, or change the order in PATH");
            seen.push(other);
        }
    }
}

/// File systems that are mounted inside of a home: no verb of this version leaves one there.
fn mounts(home: &Path, findings: &mut Findings) {
    let Ok(real) = fs::canonicalize(home) else {
        return;
    };
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for line in table.lines() {
        let Some(point) = line.split(' ').nth(4).map(unescaped) else {
            continue;
        };
        let point = PathBuf::from(point);
        let inside = point.strip_prefix(&real).ok();
        let Some(inside) = inside.filter(|inside| !inside.as_os_str().is_empty()) else {
            continue;
        };
        // A disk of its own for all instances, or all snapshots, is somebody's choice.
        let chosen = ["pg", "store", "store/local", "trash", "cache"];
        if !chosen.iter().any(|name| inside == Path::new(name)) {
            findings
                .warning(
                    "mount-left",
                    point.display().to_string(),
                    "a file system is mounted there that nothing of this home uses",
                )
                .hinted(format!("umount {}", point.display()));
        }
    }
}

/// Spaces and the like are octal in the kernel's table.
fn unescaped(text: &str) -> String {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        let code = after
            .get(..3)
            .filter(|_| *byte == b'\\')
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match code {
            Some(code) => {
                plain.push(code);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                plain.push(*byte);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

/// The first folder on the way to `home` that this user may not walk through. What is not there yet will be made to be
/// walked through.
#[must_use]
pub fn first_closed(home: &Path, user: &OsUser) -> Option<PathBuf> {
    let groups = groups_of(user);
    let ancestors: Vec<&Path> = home.ancestors().collect();
    for folder in ancestors.into_iter().rev() {
        let meta = fs::metadata(folder).ok()?;
        if !meta.is_dir() {
            return None;
        }
        let bit = if meta.uid() == user.uid() {
            0o100
        } else if groups.contains(&meta.gid()) {
            0o010
        } else {
            0o001
        };
        if meta.mode() & bit == 0 {
            return Some(folder.to_owned());
        }
    }
    None
}

fn groups_of(user: &OsUser) -> Vec<u32> {
    let mut groups = vec![user.gid()];
    let text = fs::read_to_string("/etc/group").unwrap_or_default();
    groups.extend(text.lines().filter_map(|line| {
        let mut fields = line.split(':').skip(2);
        let gid = fields.next()?.parse::<u32>().ok()?;
        let member = fields
            .next()?
            .split(',')
            .any(|name| Some(name) == user.name());
        member.then_some(gid)
    }));
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_mounts_is_read_as_the_kernel_writes_it() {
        assert_eq!(unescaped(r"/a\040b\134c\"), r"/a b\c\");
    }
}
