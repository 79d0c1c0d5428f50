//! What the command says of itself.

use std::time::{Duration, Instant};

use crate::support::{Home, neon, ran};
use crate::texts;

/// Every verb, by the lists of verbs in the help texts themselves.
pub(crate) fn verbs() -> Vec<Vec<String>> {
    let mut all = Vec::new();
    let mut open = vec![Vec::new()];
    while let Some(path) = open.pop() {
        let text = help(&path);
        let listed = text.split("\nCommands:\n").nth(1).unwrap_or_default();
        for line in listed.lines().take_while(|line| !line.is_empty()) {
            let name = line.split_whitespace().next().unwrap();
            // A further line of a description.
            if line.starts_with("   ") || name == "help" {
                continue;
            }
            let mut verb = path.clone();
            verb.push(name.to_owned());
            open.push(verb);
        }
        all.push(path);
    }
    all.sort();
    all
}

fn help(path: &[String]) -> String {
    let ran = ran(neon().args(path).arg("--help"));
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{path:?}");
    ran.out
}

#[test]
fn help_of_every_verb_is_as_it_was_read_last() {
    let verbs = verbs();
    assert!(verbs.len() > 15, "{verbs:?}");
    for verb in verbs {
        let mut name = vec!["neon".to_owned()];
        name.extend(verb.iter().cloned());
        texts::same(&format!("help/{}", name.join("-")), &help(&verb));
    }
}

#[test]
fn help_is_a_result_and_wrong_usage_is_not() {
    let plain = ran(neon().arg("help").arg("pg"));
    assert_eq!(plain.code, 0);
    assert!(plain.out.contains("neon pg") && plain.err.is_empty());
    let nothing = ran(&mut neon());
    assert_eq!((nothing.code, nothing.out.as_str()), (2, ""));
    assert!(nothing.err.contains("Usage: neon"));
    let close = ran(neon().args(["pg", "crate"]));
    assert_eq!((close.code, close.out.as_str()), (2, ""));
    assert!(close.err.contains("'create'"), "{}", close.err);
    for port in ["99999", "0"] {
        assert_eq!(ran(neon().args(["pg", "create", "--port", port])).code, 2);
        assert_eq!(
            ran(neon().args(["pg", "start", "one", "--port", port])).code,
            2
        );
    }
    let name = ran(neon().args(["pg", "start", "a/b"]));
    assert_eq!(name.code, 2);
    assert!(name.err.contains("may have letters"), "{}", name.err);
}

#[test]
fn the_version_needs_no_home_and_nothing_else() {
    let version = ran(neon().arg("--version").env_clear());
    assert_eq!((version.code, version.err.as_str()), (0, ""));
    assert_eq!(version.out, format!("neon {}\n", env!("CARGO_PKG_VERSION")));
    // The time is measured by a bench; here only that nothing waits.
    let begun = Instant::now();
    ran(neon().arg("--version"));
    assert!(begun.elapsed() < Duration::from_secs(30));
}

#[test]
fn there_is_a_manual_page_for_every_verb() {
    let home = Home::new();
    let folder = home.scratch().join("man");
    let written = ran(neon().arg("man").arg(&folder));
    assert_eq!((written.code, written.err.as_str()), (0, ""));
    for verb in verbs() {
        let mut name = vec!["neon".to_owned()];
        name.extend(verb);
        let page = std::fs::read_to_string(folder.join(format!("{}.1", name.join("-")))).unwrap();
        assert!(
            page.contains(".SH NAME") && page.contains(".SH SYNOPSIS"),
            "{name:?}"
        );
    }
    assert!(!folder.join("neon-complete.1").exists());
}
