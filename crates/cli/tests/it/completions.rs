//! Completions: what a shell offers when somebody presses the tabulator.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, ChildStdout};

use crate::help::verbs;
use crate::support::{Home, neon, ran};

/// Instances, snapshots and storages to complete.
fn furnished() -> Home {
    let home = Home::new();
    for name in ["shop", "shelf", "other"] {
        home.ok(&["pg", "create", name, "--no-start"]);
    }
    home.ok(&["snapshot", "create", "shop@before"]);
    home.ok(&["snapshot", "create", "shop@beside"]);
    let tank = home.scratch().join("tank");
    home.ok(&["storage", "attach", "-n", "tank", tank.to_str().unwrap()]);
    home.ok(&["snapshot", "create", "other@far", "-s", "tank"]);
    home
}

/// What a shell is told when the last of these words is completed.
fn offered(home: &Home, shell: &str, line: &[&str]) -> Vec<String> {
    let index = (line.len() - 1).to_string();
    let mut arguments = vec!["complete", shell, &index, "--"];
    arguments.extend(line);
    let told = home.ok(&arguments);
    told.lines().map(str::to_owned).collect()
}

#[test]
fn every_word_of_a_line_is_completed_with_what_it_may_be() {
    let home = furnished();
    let bash = |line: &str| offered(&home, "bash", &line.split(' ').collect::<Vec<_>>());
    for verb in verbs() {
        let Some((last, before)) = verb.split_last() else {
            continue;
        };
        let mut line = vec!["neon"];
        line.extend(before.iter().map(String::as_str));
        line.push(last);
        assert!(offered(&home, "bash", &line).contains(last), "{line:?}");
    }
    assert_eq!(bash("neon pg start "), ["other", "shelf", "shop"]);
    assert_eq!(bash("neon pg start sh"), ["shelf", "shop"]);
    assert_eq!(bash("neon -o json pg destroy o"), ["other"]);
    assert_eq!(
        bash("neon pg checkout "),
        ["other@far", "shop@before", "shop@beside"]
    );
    assert_eq!(bash("neon pg create --snapshot shop@bef"), ["shop@before"]);
    assert_eq!(
        bash("neon pg create --snapshot=shop@bef"),
        ["--snapshot=shop@before"]
    );
    assert_eq!(
        bash("neon snapshot diff shop@before shop@"),
        ["shop@CURRENT", "shop@before", "shop@beside"]
    );
    assert_eq!(bash("neon storage gc "), ["local", "tank"]);
    assert_eq!(bash("neon snapshot push --to t"), ["tank"]);
    assert_eq!(bash("neon snapshot list -s l"), ["local"]);
    assert_eq!(bash("neon pg create --pg-version 1").len(), 6);
    assert_eq!(bash("neon pg start --rep"), ["--replica"]);
    assert_eq!(bash("neon snapshot export x --format p"), ["pgdata"]);
    // A name that is yet to be given is nobody's; its instance is somebody's.
    assert!(bash("neon pg create sh").is_empty());
    assert_eq!(bash("neon snapshot create sh"), ["shelf@", "shop@"]);
    // Paths where paths may stand.
    let scratch = home.scratch().to_str().unwrap();
    let tank = format!("{scratch}/tank/");
    assert_eq!(bash(&format!("neon storage attach {scratch}/ta")), [&*tank]);
    assert_eq!(
        bash(&format!("neon pg create --snapshot {scratch}/ta")),
        [&*tank]
    );
    // Another home, by its option.
    let other = Home::new();
    let place = home.path();
    let line = ["neon", "--home", place.to_str().unwrap(), "pg", "show", "o"];
    assert_eq!(offered(&other, "bash", &line), ["other"]);
    // Where none is, none is made.
    assert!(offered(&other, "bash", &["neon", "pg", "show", ""]).len() < 10);
    assert!(!other.path().exists());
}

#[test]
fn shells_that_show_more_are_told_more() {
    let home = furnished();
    for shell in ["zsh", "fish"] {
        let verbs = offered(&home, shell, &["neon", "pg", "sto"]);
        assert_eq!(verbs.len(), 1, "{verbs:?}");
        assert!(verbs[0].starts_with("stop\tStops a server"), "{verbs:?}");
        let names = offered(&home, shell, &["neon", "pg", "stop", "sho"]);
        assert_eq!(names, ["shop"]);
        let script = ran(neon().args(["completions", shell]));
        assert_eq!(script.code, 0);
        assert!(
            script.out.contains(&format!("complete {shell}")),
            "{script:?}"
        );
        assert!(!script.out.contains("NAME"), "{script:?}");
    }
    assert_eq!(ran(neon().args(["completions", "tcsh"])).code, 2);
}

const PROMPT: &str = "READY> ";

/// A shell on a terminal, and somebody who types.
struct Shell {
    child: Child,
    keys: ChildStdin,
    screen: ChildStdout,
}

impl Shell {
    fn bash(home: &Home) -> Self {
        let mut command = home.on_terminal("bash --norc --noprofile -i");
        let program = std::path::Path::new(Home::program());
        let path = format!("{}:/usr/bin:/bin", program.parent().unwrap().display());
        let mut child = command
            .env("PATH", path)
            .env("PS1", "")
            .env("INPUTRC", "/dev/null")
            .spawn()
            .unwrap();
        let mut shell = Self {
            keys: child.stdin.take().unwrap(),
            screen: child.stdout.take().unwrap(),
            child,
        };
        shell.type_in("bind 'set enable-bracketed-paste off'\n");
        shell.type_in("bind 'set show-all-if-ambiguous on'\n");
        // Not as it is typed, which is seen too.
        shell.type_in("PS1='READ''Y> '\n");
        shell.until_prompt();
        shell
    }

    fn type_in(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    fn until_prompt(&mut self) -> String {
        let mut shown = Vec::new();
        let mut byte = [0];
        while !shown.ends_with(PROMPT.as_bytes()) {
            let read = self.screen.read(&mut byte).unwrap();
            assert_eq!(read, 1, "{}", String::from_utf8_lossy(&shown));
            shown.push(byte[0]);
        }
        String::from_utf8_lossy(&shown).into_owned()
    }

    /// What is on the screen after this line.
    fn line(&mut self, keys: &str) -> String {
        self.type_in(keys);
        self.type_in("\n");
        self.until_prompt()
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        // It may have ended.
        let _gone = self.child.kill();
        let _code = self.child.wait();
    }
}

#[test]
fn bash_completes_names_that_it_cuts_at_their_signs() {
    let home = furnished();
    let file = home.scratch().join("neon.bash");
    std::fs::write(&file, ran(neon().args(["completions", "bash"])).out).unwrap();
    let mut shell = Shell::bash(&home);
    shell.line(&format!("source {}", file.display()));
    // What was completed is what is run: the answers tell.
    let shown = shell.line("neon pg sho\tshe\t -o ndjson");
    assert!(shown.contains(r#""name":"shelf""#), "{shown}");
    let shown = shell.line("neon snapshot check shop@bef\t");
    assert!(
        shown.contains("snapshot shop@before: 1 snapshot,"),
        "{shown}"
    );
    let shown = shell.line("neon snapshot check 'shop@bes\t");
    assert!(
        shown.contains("snapshot shop@beside: 1 snapshot,"),
        "{shown}"
    );
    let shown = shell.line("neon snapshot check other@\t --storage=ta\t");
    assert!(shown.contains("snapshot other@far: 1 snapshot,"), "{shown}");
    let shown = shell.line("neon storage show ta\t");
    assert!(
        shown.contains("\ntank:") || shown.contains("\rtank:"),
        "{shown}"
    );
    // Several: all are shown, and what they share is typed.
    shell.type_in("neon pg checkout shop@\t");
    let shown = shell.until_prompt() + &shell.line("fore --dry-run");
    assert!(shown.contains("beside"), "{shown}");
    assert!(
        shown.contains("pg shop goes back to shop@before"),
        "{shown}"
    );
    // With its path, and with something behind the cursor.
    let program = Home::program();
    let shown = shell.line(&format!("{program} storage show ta\t"));
    assert!(shown.contains("type: native"), "{shown}");
    let shown = shell.line("neon snapshot check shop@bef -s local\x1bb\x1bb\x1b[D\x1b[D\t");
    assert!(
        shown.contains("snapshot shop@before: 1 snapshot,"),
        "{shown}"
    );
    // A folder with a blank in its name.
    let odd = home.scratch().join("odd place");
    std::fs::create_dir(&odd).unwrap();
    let typed = format!(
        "neon storage attach -n odd {}/od\t",
        home.scratch().display()
    );
    let shown = shell.line(&typed);
    assert!(shown.contains("Attached odd: native at"), "{shown}");
    let attached = home.json(&["storage", "show", "odd"]);
    let path = attached["path"].as_str().unwrap();
    assert_eq!(path.trim_end_matches('/'), odd.to_str().unwrap());
}
