//! The options that a server was last started with, from `postmaster.opts`: the server writes its own command line there at
//! each start, and it stays when it stops. `pg_ctl restart` takes them from there, too.

use std::fs;
use std::path::Path;

/// The command line of the last start: the program, then each argument. The file has them in double quotes.
pub(crate) fn command_line(data_dir: &Path) -> Option<Vec<String>> {
    let text = fs::read_to_string(data_dir.join("postmaster.opts")).ok()?;
    let text = text.trim_end_matches('\n');
    let (program, arguments) = text.split_once(" \"").unwrap_or((text, ""));
    let mut all = vec![program.to_owned()];
    let arguments = arguments.strip_suffix('"').unwrap_or(arguments);
    if !arguments.is_empty() {
        all.extend(arguments.split("\" \"").map(str::to_owned));
    }
    Some(all)
}

/// The settings that a command line gives, in its order.
pub(crate) fn settings(command_line: &[String]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut arguments = command_line.iter().skip(1);
    while let Some(argument) = arguments.next() {
        if let Some(long) = argument.strip_prefix("--") {
            found.extend(assignment(long));
            continue;
        }
        let mut letters = argument.strip_prefix('-').unwrap_or_default().chars();
        while let Some(letter) = letters.next() {
            let Some(option) = option(letter) else {
                // Nothing is known of what follows it.
                break;
            };
            let setting = match option {
                Takes::Nothing(setting) => setting.map(|(name, value)| (name, value.to_owned())),
                Takes::Value(name) => {
                    let attached = letters.as_str();
                    let value = match attached {
                        "" => arguments.next().cloned(),
                        value => Some(value.to_owned()),
                    };
                    letters = "".chars();
                    match (name, value) {
                        (Some(SETTING), Some(value)) => {
                            found.extend(assignment(&value));
                            None
                        }
                        (Some(name), Some(value)) => Some((name, value)),
                        _ => None,
                    }
                }
            };
            found.extend(setting.map(|(name, value)| (name.to_owned(), value)));
        }
    }
    found
}

/// What a command line says of one setting. The last one holds.
pub(crate) fn setting(command_line: &[String], name: &str) -> Option<String> {
    let mut found = settings(command_line).into_iter().rev();
    found.find_map(|(known, value)| (known == name).then_some(value))
}

/// Any setting, as `name=value`.
const SETTING: &str = "";

/// What a letter means, and whether a value follows.
enum Takes {
    Nothing(Option<(&'static str, &'static str)>),
    Value(Option<&'static str>),
}

/// The options of `postgres` (its manual page), as far as they may stand in `postmaster.opts`.
fn option(letter: char) -> Option<Takes> {
    Some(match letter {
        'c' => Takes::Value(Some(SETTING)),
        'p' => Takes::Value(Some("port")),
        'k' => Takes::Value(Some("unix_socket_directories")),
        'h' => Takes::Value(Some("listen_addresses")),
        'N' => Takes::Value(Some("max_connections")),
        'B' => Takes::Value(Some("shared_buffers")),
        'S' => Takes::Value(Some("work_mem")),
        'W' => Takes::Value(Some("post_auth_delay")),
        'i' => Takes::Nothing(Some(("listen_addresses", "*"))),
        'F' => Takes::Nothing(Some(("fsync", "off"))),
        'l' => Takes::Nothing(Some(("ssl", "on"))),
        'e' => Takes::Nothing(Some(("datestyle", "euro"))),
        'O' => Takes::Nothing(Some(("allow_system_table_mods", "on"))),
        'P' => Takes::Nothing(Some(("ignore_system_indexes", "on"))),
        's' => Takes::Nothing(Some(("log_statement_stats", "on"))),
        // Of single sessions, of debuggers, and the data directory.
        'd' | 'D' | 'f' | 'o' | 'r' | 't' | 'v' => Takes::Value(None),
        'b' | 'j' | 'n' | 'T' => Takes::Nothing(None),
        _ => return None,
    })
}

/// `name=value`; in names `-` stands for `_`.
fn assignment(text: &str) -> Option<(String, String)> {
    let (name, value) = text.split_once('=')?;
    let name = name.trim().to_ascii_lowercase().replace('-', "_");
    (!name.is_empty()).then(|| (name, value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(arguments: &[&str]) -> Vec<String> {
        let program = ["/usr/bin/postgres"];
        program
            .iter()
            .chain(arguments)
            .map(|text| (*text).to_owned())
            .collect()
    }

    #[test]
    fn every_spelling_of_an_option_is_a_setting() {
        let line = of(&[
            "-D",
            "/data",
            "-p",
            "7215",
            "-k/tmp",
            "-c",
            "work_mem=7MB",
            "--Log-Statement=all",
            "-Fi",
            "-cport=1",
            "-n",
            "-d",
            "2",
            "-N12",
        ]);
        let settings = settings(&line);
        let settings: Vec<(&str, &str)> = settings
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        assert_eq!(
            settings,
            [
                ("port", "7215"),
                ("unix_socket_directories", "/tmp"),
                ("work_mem", "7MB"),
                ("log_statement", "all"),
                ("fsync", "off"),
                ("listen_addresses", "*"),
                ("port", "1"),
                ("max_connections", "12"),
            ]
        );
        assert_eq!(setting(&line, "port").as_deref(), Some("1"));
        assert_eq!(setting(&line, "hba_file"), None);
        assert!(super::settings(&of(&["-p"])).is_empty());
        assert!(super::settings(&[]).is_empty());
    }

    #[test]
    fn the_file_of_the_last_start_is_read_with_its_quotes() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("postmaster.opts");
        assert_eq!(command_line(folder.path()), None);
        fs::write(&file, "/bin/postgres\n").unwrap();
        assert_eq!(command_line(folder.path()).unwrap(), ["/bin/postgres"]);
        fs::write(&file, "/bin/postgres \"-D\" \"/a b\" \"-p\" \"1\"\n").unwrap();
        assert_eq!(
            command_line(folder.path()).unwrap(),
            ["/bin/postgres", "-D", "/a b", "-p", "1"]
        );
    }
}
