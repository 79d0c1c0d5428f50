//! Tests that need processes of their own start this binary again with a task in a variable.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use neon_storage::{ErrorKind, GetOptions, Key, Native, NativeOptions, Storage, StorageExt};

const TASK: &str = "NEON_STORAGE_CHILD";

/// Starts a process that does one task; its output is a pipe.
pub fn start(task: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "child::does_its_task",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(TASK, task)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// The lines that a task printed for its parent, until it ended.
pub fn lines(child: &mut Child) -> Vec<String> {
    BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok)
        .filter_map(|line| line.split_once("@ ").map(|(_, line)| line.to_owned()))
        .collect()
}

/// Tells the parent, at once.
pub fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "@ {text}").unwrap();
    out.flush().unwrap();
}

/// The content of a numbered object: length and bytes follow from the number.
pub fn content(number: u64) -> Vec<u8> {
    let length = usize::try_from(number % 7 * 50_000 + number % 1000).unwrap();
    number
        .to_le_bytes()
        .into_iter()
        .cycle()
        .take(length)
        .collect()
}

pub fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn does_its_task() {
    let Ok(task) = std::env::var(TASK) else {
        // Run as a test: the simplest task, in this process.
        let dir = tempfile::tempdir().unwrap();
        claim(dir.path(), 3).await;
        return;
    };
    let words: Vec<&str> = task.split('|').collect();
    match words[..] {
        ["write", root, from] => write(Path::new(root), from.parse().unwrap()).await,
        ["claim", root, count] => claim(Path::new(root), count.parse().unwrap()).await,
        ["count", root, count] => increment(Path::new(root), count.parse().unwrap()).await,
        #[cfg(feature = "s3")]
        ["soak", what, at, size] => crate::scale::soak(what, at, size.parse().unwrap()).await,
        _ => panic!("no such task: {task}"),
    }
}

fn open(root: &Path) -> Arc<dyn Storage> {
    Arc::new(Native::open(root, NativeOptions::default()).unwrap())
}

/// Creates numbered objects until it is killed, telling of each when it is durable.
async fn write(root: &Path, from: u64) {
    let storage = open(root);
    for number in from.. {
        let name = key(&format!("d{}/{number}", number % 5));
        storage.create(&name, content(number)).await.unwrap();
        say(&format!("wrote {number}"));
        if number % 3 == 0 {
            storage
                .overwrite(&key("latest"), content(number))
                .await
                .unwrap();
            say(&format!("latest {number}"));
        }
    }
}

/// Claims names that others claim too.
async fn claim(root: &Path, count: u64) {
    let storage = open(root);
    for number in 0..count {
        let pid = std::process::id().to_string();
        match storage
            .create(&key(&format!("claims/{number}")), pid.into_bytes())
            .await
        {
            Ok(_) => say(&format!("won {number}")),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Exists, "{error:?}"),
        }
    }
}

/// Increments a counter that others increment too.
async fn increment(root: &Path, count: u64) {
    let storage = open(root);
    for _ in 0..count {
        loop {
            let got = storage
                .get(&key("counter"), GetOptions::new())
                .await
                .unwrap();
            let version = got.meta.version.clone().unwrap();
            let text = String::from_utf8(got.bytes().await.unwrap().to_vec()).unwrap();
            let next = (text.parse::<u64>().unwrap() + 1).to_string();
            match storage
                .replace(&key("counter"), &version, next.into_bytes())
                .await
            {
                Ok(_) => break,
                Err(error) => assert_eq!(error.kind(), ErrorKind::Precondition, "{error:?}"),
            }
        }
    }
    say("done");
}
