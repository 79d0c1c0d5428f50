//! The command that installs PostgreSQL on this system.
//!
//! It must not leave a cluster behind that nobody asked for: Debian's packages create and start one when
//! they are installed, unless `createcluster.conf` says otherwise; Homebrew's formula runs `initdb`.

use std::path::Path;

use neon_pg_layout::PgMajor;

use crate::os_user::OsUser;

/// A command for the system whose `/etc/os-release` lies below `root`. Root needs no `sudo`, which is often not there.
pub(super) fn install_command(root: &Path, major: Option<PgMajor>) -> String {
    let command = command(root, major);
    if OsUser::current().is_root() {
        command.replace("sudo ", "")
    } else {
        command
    }
}

fn command(root: &Path, major: Option<PgMajor>) -> String {
    let newest = PgMajor::V18;
    if cfg!(target_os = "macos") {
        let major = major.unwrap_or(newest);
        return format!("brew install --skip-post-install postgresql@{major}");
    }
    let release = std::fs::read_to_string(root.join("etc/os-release"))
        .or_else(|_| std::fs::read_to_string(root.join("usr/lib/os-release")))
        .unwrap_or_default();
    let number = major.unwrap_or(newest);
    match family(&release) {
        Some("debian") => {
            let package = match major {
                Some(major) => format!("postgresql-{major}"),
                None => "postgresql".to_owned(),
            };
            // The file must be there before the package is, or a cluster is created at once.
            let quiet = "sudo mkdir -p /etc/postgresql-common && \
                         echo 'create_main_cluster = false' | \
                         sudo tee -a /etc/postgresql-common/createcluster.conf";
            match major {
                None => format!("{quiet} && sudo apt-get install -y {package}"),
                // A release has one major; the others come from the project's own archive.
                Some(_) => format!(
                    "{quiet} && sudo apt-get install -y postgresql-common && \
                     sudo /usr/share/postgresql-common/pgdg/apt.postgresql.org.sh -y && \
                     sudo apt-get install -y {package}"
                ),
            }
        }
        Some("fedora" | "rhel") => match major {
            None => "sudo dnf install -y postgresql-server postgresql-contrib".to_owned(),
            Some(major) => {
                format!("sudo dnf install -y postgresql{major}-server postgresql{major}-contrib")
            }
        },
        Some("suse") => {
            format!("sudo zypper install -y postgresql{number}-server postgresql{number}-contrib")
        }
        Some("arch") => "sudo pacman -S --needed postgresql".to_owned(),
        Some("alpine") => format!("apk add postgresql{number} postgresql{number}-contrib"),
        Some("gentoo") => format!("emerge dev-db/postgresql:{number}"),
        _ => format!(
            "install PostgreSQL {number} from https://www.postgresql.org/download/ or name its bin folder"
        ),
    }
}

fn family(release: &str) -> Option<&'static str> {
    let mut words = Vec::new();
    for key in ["ID=", "ID_LIKE="] {
        let value = release.lines().find_map(|line| line.strip_prefix(key));
        words.extend(
            value
                .unwrap_or_default()
                .trim_matches(['"', '\''])
                .split(' '),
        );
    }
    words.into_iter().find_map(|word| match word {
        "debian" | "ubuntu" => Some("debian"),
        "fedora" => Some("fedora"),
        "rhel" | "centos" => Some("rhel"),
        "suse" | "opensuse" | "sles" => Some("suse"),
        "arch" => Some("arch"),
        "alpine" => Some("alpine"),
        "gentoo" => Some("gentoo"),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hint(release: &str, major: Option<PgMajor>) -> String {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        std::fs::write(root.path().join("etc/os-release"), release).unwrap();
        command(root.path(), major)
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn debian_is_told_not_to_create_a_cluster_before_the_package_comes() {
        for release in [
            "ID=debian\n",
            "NAME=x\nID=linuxmint\nID_LIKE=\"ubuntu debian\"\n",
        ] {
            for major in [None, Some(PgMajor::V16)] {
                let line = hint(release, major);
                let quiet = line.find("create_main_cluster = false").unwrap();
                let package = line.find("apt-get install -y postgresql").unwrap();
                assert!(quiet < package, "{line}");
                if major.is_some() {
                    assert!(line.ends_with("postgresql-16"), "{line}");
                }
            }
        }
    }

    #[test]
    fn root_is_not_told_to_use_sudo() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        std::fs::write(root.path().join("etc/os-release"), "ID=debian\n").unwrap();
        let line = install_command(root.path(), None);
        assert_eq!(
            line.contains("sudo "),
            !OsUser::current().is_root(),
            "{line}"
        );
        assert!(line.contains("apt-get install -y postgresql"), "{line}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn every_known_family_has_its_own_command() {
        assert!(hint("ID=fedora\n", None).contains("dnf install"));
        assert!(
            hint(
                "ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n",
                Some(PgMajor::V15)
            )
            .contains("postgresql15-server")
        );
        assert!(hint("ID=\"opensuse-leap\"\nID_LIKE=\"suse opensuse\"\n", None).contains("zypper"));
        assert!(hint("ID=arch\n", None).contains("pacman"));
        assert!(hint("ID=alpine\n", Some(PgMajor::V17)).contains("apk add postgresql17"));
        assert!(hint("", None).contains("postgresql.org/download"));
    }
}
