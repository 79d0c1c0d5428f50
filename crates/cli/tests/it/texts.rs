//! Texts that are kept beside the tests. `NEON_BLESS=1` writes them anew; what changed is then seen in the diff.

use std::fs;
use std::path::Path;

/// Compares with `texts/<name>.txt`.
pub(crate) fn same(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/it/texts/{name}.txt"));
    if std::env::var_os("NEON_BLESS").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        return;
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        kept,
        text,
        "{} differs; NEON_BLESS=1 writes it anew",
        path.display()
    );
}

/// Replaces what differs from run to run: ids, ports, passwords, sizes, ages, times, the scratch folder.
pub(crate) fn redacted(text: &str, scratch: &Path) -> String {
    let text = text.replace(&scratch.display().to_string(), "SCRATCH");
    let mut lines = Vec::new();
    for line in text.lines() {
        // Which file systems share blocks is another test's.
        if line.starts_with("note: subvolume: ") || line.starts_with("note: reflink: ") {
            continue;
        }
        if line.trim_start().starts_with("postgresql: ") {
            lines.push("  postgresql: MAJOR".to_owned());
            continue;
        }
        // The newest that is installed.
        let line = match line.split_once(", PostgreSQL ") {
            Some((made, _)) if made.starts_with("Created ") => format!("{made}, PostgreSQL MAJOR."),
            _ => line.to_owned(),
        };
        let words: Vec<String> = line.split(' ').map(word).collect();
        // Columns are as wide as what was in them: one blank is as good as many.
        let joined = words.join(" ");
        let mut line = squeezed(&joined);
        if let Some((pages, rest)) = line.split_once(" pages, ")
            && pages.bytes().all(|byte| byte.is_ascii_digit())
        {
            line = format!("PAGES pages, {rest}");
        }
        lines.push(line);
    }
    let mut whole = lines.join("\n");
    whole.push('\n');
    whole
}

fn squeezed(line: &str) -> String {
    let indent = line.len() - line.trim_start_matches(' ').len();
    let words: Vec<&str> = line.split(' ').filter(|word| !word.is_empty()).collect();
    format!("{}{}", " ".repeat(indent), words.join(" "))
}

fn word(word: &str) -> String {
    if let Some(rest) = word.strip_prefix("postgresql://postgres:") {
        let database = rest.rsplit('/').next().unwrap_or_default();
        return format!("postgresql://postgres:PASSWORD@localhost:PORT/{database}");
    }
    if let Some(port) = word.strip_prefix("localhost:")
        && port.bytes().all(|byte| byte.is_ascii_digit())
    {
        return "localhost:PORT".to_owned();
    }
    if word.starts_with("basebackup://") {
        return "basebackup://FROM".to_owned();
    }
    if word.starts_with("temporary-") {
        return "temporary-ID".to_owned();
    }
    let hexadecimal = |word: &str| word.bytes().all(|byte| byte.is_ascii_hexdigit());
    if [16, 32, 64].contains(&word.len()) && hexadecimal(word) {
        return "ID".to_owned();
    }
    let bare = word.trim_end_matches([',', '.', ';', ')']);
    let (number, tail) = (
        bare.trim_end_matches(|c: char| c.is_ascii_alphabetic()),
        &word[bare.len()..],
    );
    let unit = &bare[number.len()..];
    let number = number.trim_start_matches('(');
    let is_number = !number.is_empty()
        && number
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'.');
    if is_number {
        match unit {
            "B" | "K" | "M" | "G" => return format!("SIZE{tail}"),
            "s" | "m" | "h" | "d" => return format!("AGE{tail}"),
            _ => {}
        }
    }
    word.to_owned()
}
