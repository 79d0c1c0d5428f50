//! Preloaded libraries: which of them this installation has.
//!
//! A server with a library in `shared_preload_libraries` that is not there does not start; with one in
//! `session_` or `local_preload_libraries` it starts and refuses every session.

use std::path::{Path, PathBuf};

use crate::installation::Installation;

/// The setting whose libraries the server loads for itself.
pub(super) const SHARED: &str = "shared_preload_libraries";

/// The settings that name libraries to load.
pub(super) const SETTINGS: [&str; 3] = [
    SHARED,
    "session_preload_libraries",
    "local_preload_libraries",
];

/// The libraries of a list that are there, and those that are not.
pub(super) fn split_present(
    list: &str,
    installation: &Installation,
    search_path: Option<&str>,
) -> (Vec<String>, Vec<String>) {
    names(list)
        .into_iter()
        .partition(|name| is_present(name, installation, search_path))
}

/// The names of a list: separated by commas, in double quotes where they hold one.
fn names(list: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut name = String::new();
    let mut quoted = false;
    for c in list.chars() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => names.push(std::mem::take(&mut name)),
            other => name.push(other),
        }
    }
    names.push(name);
    let names = names.into_iter().map(|name| name.trim().to_owned());
    names.filter(|name| !name.is_empty()).collect()
}

/// A list as a setting has it.
pub(super) fn join(names: &[String]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
    quoted.join(", ")
}

fn is_present(name: &str, installation: &Installation, search_path: Option<&str>) -> bool {
    let lib_dir = installation.extension_lib_dir();
    let here = |path: PathBuf| {
        ["", ".so", ".dylib"].iter().any(|suffix| {
            let mut path = path.clone().into_os_string();
            path.push(suffix);
            Path::new(&path).is_file()
        })
    };
    let expand = |text: &str| match (text.strip_prefix("$libdir"), lib_dir) {
        (Some(rest), Some(lib_dir)) => Some(lib_dir.join(rest.trim_start_matches('/'))),
        (Some(_), None) => None,
        (None, _) => Some(PathBuf::from(text)),
    };
    if name.contains('/') {
        return expand(name).is_some_and(here);
    }
    search_path
        .unwrap_or("$libdir")
        .split(':')
        .filter_map(expand)
        .any(|dir| here(dir.join(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_split_as_the_server_splits_them() {
        assert_eq!(names("a, b ,\"c,d\""), ["a", "b", "c,d"]);
        assert!(names(" , ").is_empty());
    }
}
