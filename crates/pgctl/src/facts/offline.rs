//! Facts from files and programs, without a server.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use neon_pg_layout::ControlFile;

use crate::command::Running;
use crate::error::Result;
use crate::facts::{Cluster, Extension, Facts, Memory, Platform};
use crate::installation::Installation;
use crate::instance::Instance;
use crate::os_user::OsUser;
use crate::quarantine::machine;

/// How long a small program may take.
const LIMIT: Duration = Duration::from_secs(60);
/// So much of a program is looked through at once.
const PIECE: u64 = 1 << 20;
/// Longer than the name of a library with its version.
const LONGEST_NAME: usize = 64;
/// The server program is read at most to this size.
const MOST_BYTES: u64 = 256 << 20;

impl Installation {
    /// The facts of this machine and these programs. What cannot be learned is empty.
    ///
    /// Dropping the future ends the program it runs.
    pub async fn platform_facts(&self) -> Platform {
        let installation = self.clone();
        // Beside the program that tells of the C library.
        let read = tokio::task::spawn_blocking(move || installation.platform_of_files());
        let libc = libc_version().await;
        let platform = match read.await.map_err(tokio::task::JoinError::try_into_panic) {
            Ok(platform) => platform,
            // What nobody learned must not be recorded as learned.
            Err(Ok(panic)) => std::panic::resume_unwind(panic),
            // The runtime ends, and this with it.
            Err(Err(_)) => Platform::default(),
        };
        Platform { libc, ..platform }
    }

    /// What files tell. Blocks.
    fn platform_of_files(&self) -> Platform {
        let library_dir = self.extension_lib_dir();
        let mut libraries: Vec<String> = names_in(library_dir, &[".so", ".dylib"]);
        libraries.sort();
        libraries.dedup();
        let folder = self.share_dir().map(|share| share.join("extension"));
        let mut extensions: Vec<Extension> = names_in(folder.as_deref(), &[".control"])
            .into_iter()
            // `name--version.control` changes one version of an extension.
            .filter(|name| !name.contains("--"))
            .filter_map(|name| {
                let text =
                    fs::read_to_string(folder.as_ref()?.join(format!("{name}.control"))).ok()?;
                let version = default_version(&text)?;
                Some(Extension { name, version })
            })
            .collect();
        extensions.sort();
        Platform {
            architecture: std::env::consts::ARCH.to_owned(),
            little_endian: cfg!(target_endian = "little"),
            major: self.major().number(),
            minor: self.version().minor(),
            libc: None,
            icu: self
                .tool("postgres")
                .ok()
                .and_then(|path| icu_version(&path)),
            extensions,
            libraries,
            memory: machine::memory(),
        }
    }
}

impl Instance {
    /// The facts that can be had without a server: of the platform, the control file and the configuration files.
    ///
    /// Dropping the future ends the program it runs.
    ///
    /// # Errors
    /// When the control file cannot be read.
    pub async fn offline_facts(&self) -> Result<Facts> {
        let control = self.control_file()?;
        let settings = self.file_settings();
        let bytes = |name, unit, default| {
            settings
                .value(name)
                .and_then(|text| machine::parse_bytes(text, unit))
                .unwrap_or(default)
        };
        let preload = settings
            .value("shared_preload_libraries")
            .unwrap_or_default();
        let connections = settings
            .value("max_connections")
            .and_then(|text| text.trim().parse().ok());
        let memory = Memory {
            shared_buffers: bytes("shared_buffers", 8192, 128 << 20),
            shared: None,
            huge_pages_required: settings
                .value("huge_pages")
                .is_some_and(|value| value.eq_ignore_ascii_case("on")),
            max_connections: connections.unwrap_or(100),
        };
        Ok(Facts {
            platform: self.installation().platform_facts().await,
            cluster: Some(cluster(&control, libraries(preload), memory)),
        })
    }
}

pub(super) fn cluster(control: &ControlFile, preload: Vec<String>, memory: Memory) -> Cluster {
    let build = &control.build;
    Cluster {
        major: control.major.number(),
        block_size: u32::try_from(build.block_size.bytes()).unwrap_or(u32::MAX),
        segment_blocks: build.segment_blocks,
        wal_block_size: build.wal_block_size,
        wal_segment_size: build.wal_segment_size.bytes(),
        name_length: build.name_length,
        index_max_keys: build.index_max_keys,
        toast_max_chunk_size: build.toast_max_chunk_size,
        large_object_block_size: build.large_object_block_size,
        max_align: build.max_align,
        float8_by_value: build.float8_by_value,
        char_signed: build.default_char_signed,
        checksums: control.data_checksums,
        preload,
        memory,
        databases: None,
    }
}

/// The names in a list of libraries, without folders and suffixes.
pub(super) fn libraries(list: &str) -> Vec<String> {
    list.split(',')
        .map(|name| name.trim().trim_matches('"'))
        .filter(|name| !name.is_empty())
        .map(|name| {
            let name = name.rsplit('/').next().unwrap_or(name);
            name.strip_suffix(".so")
                .or_else(|| name.strip_suffix(".dylib"))
                .unwrap_or(name)
                .to_owned()
        })
        .collect()
}

/// The names of files in a folder that end so, without the ends.
fn names_in(folder: Option<&Path>, ends: &[&str]) -> Vec<String> {
    let entries = folder.and_then(|folder| fs::read_dir(folder).ok());
    entries
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            ends.iter()
                .find_map(|end| name.strip_suffix(end))
                .map(str::to_owned)
        })
        .collect()
}

/// `default_version` of an extension's control file, which has the grammar of `postgresql.conf`.
fn default_version(text: &str) -> Option<String> {
    crate::settings::syntax::parse_leniently(text)
        .filter_map(|(_, line)| line.ok())
        .find(|line| line.name == "default_version")
        .map(|line| line.value)
}

/// What the C library calls itself.
async fn libc_version() -> Option<String> {
    let mut command = crate::command::clean("getconf".as_ref(), &OsUser::current(), None);
    command.arg("GNU_LIBC_VERSION");
    if let Ok(running) = Running::spawn(&mut command)
        && let Ok(finished) = running.wait(LIMIT).await
        && finished.status.success()
        && let Some(line) = finished.stdout.lines().next()
        && !line.trim().is_empty()
    {
        return Some(line.trim().to_owned());
    }
    let musl = fs::read_dir("/lib")
        .ok()?
        .flatten()
        .any(|entry| entry.file_name().to_string_lossy().starts_with("ld-musl-"));
    musl.then(|| "musl".to_owned())
}

/// The version of ICU that a server program asks the loader for: the number in `libicui18n.so.72` (Linux) or
/// `libicui18n.72.dylib` (macOS) in its bytes.
///
/// It is looked for piece by piece: what the loader is asked for stands near the beginning.
fn icu_version(program: &Path) -> Option<u32> {
    let file = fs::File::open(program).ok()?;
    if file.metadata().ok()?.len() > MOST_BYTES {
        return None;
    }
    let mut rest = file;
    let mut bytes = Vec::new();
    loop {
        let read = rest.by_ref().take(PIECE).read_to_end(&mut bytes).ok()?;
        if icu_in(&bytes).is_some() {
            // Its digits may go on in the next piece.
            let more = LONGEST_NAME as u64;
            rest.by_ref().take(more).read_to_end(&mut bytes).ok()?;
            return icu_in(&bytes);
        }
        if read == 0 {
            return None;
        }
        // What stands across two pieces is seen with the next.
        let seen = bytes.len().saturating_sub(LONGEST_NAME);
        bytes.drain(..seen);
    }
}

fn icu_in(bytes: &[u8]) -> Option<u32> {
    const NAME: &[u8] = b"libicui18n.";
    bytes
        .windows(NAME.len())
        .enumerate()
        .filter(|(_, window)| *window == NAME)
        .find_map(|(at, _)| {
            let rest = bytes.get(at + NAME.len()..)?;
            let rest = rest.strip_prefix(b"so.").unwrap_or(rest);
            let digits: String = rest
                .iter()
                .map_while(|byte| byte.is_ascii_digit().then_some(char::from(*byte)))
                .collect();
            digits.parse().ok()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_told_by_their_names() {
        let list = "pg_stat_statements, \"$libdir/plugins/x.so\" ,/usr/lib/y.dylib,,";
        assert_eq!(libraries(list), ["pg_stat_statements", "x", "y"]);
        assert!(libraries("").is_empty());
    }

    #[test]
    fn the_linked_icu_is_found_in_the_bytes_of_a_program() {
        assert_eq!(icu_in(b"\0libicui18n.so.72\0libicuuc.so.72\0"), Some(72));
        assert_eq!(icu_in(b"@rpath/libicui18n.74.dylib\0"), Some(74));
        assert_eq!(icu_in(b"libicui18n.so\0"), None);
        assert_eq!(icu_in(b"libicui18n."), None);
    }

    #[test]
    fn the_default_version_of_an_extension_is_read() {
        let text = "# hstore\ncomment = 'key, value'\ndefault_version = '1.8'\ntrusted = true\n";
        assert_eq!(default_version(text).as_deref(), Some("1.8"));
    }
}
