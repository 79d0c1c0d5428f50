//! Every future is dropped at every await point: no server, no file, no process is left.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::support::*;

/// Polls a future `times` times, each time when it asks to be, and gives what it returns if it is done by
/// then. Dropped otherwise.
async fn poll_times<T>(future: impl Future<Output = T>, times: usize) -> Option<T> {
    let mut future = Box::pin(future);
    for _ in 0..times {
        // Woken or not: a poll too many is allowed at any time, and it moves on with the clock.
        if let Poll::Ready(done) = poll_once(future.as_mut()).await {
            return Some(done);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    None
}

async fn poll_once<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    let mut future = Some(future);
    std::future::poll_fn(move |context| {
        let waker = Waker::noop();
        let mut quiet = Context::from_waker(waker);
        // Timers register the waker they are given; ours would be woken for each of them.
        let _ = &context;
        Poll::Ready(future.take().unwrap().poll(&mut quiet))
    })
    .await
}

/// Numbers of polls: each of the first, then more and more apart, since a start waits in hundreds of them.
fn counts() -> impl Iterator<Item = usize> {
    (0..12).chain((1..).map(|n| 12 + 4 * n * n))
}

fn everything_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            }
            found.push(entry.path());
        }
    }
    found.sort();
    found
}

#[test]
fn a_creation_given_up_anywhere_leaves_nothing() {
    run(async {
        let scratch = Scratch::new();
        let installation = installation(PgMajor::V13);
        let options = create_options();
        for count in counts() {
            let create = Instance::create(&installation, scratch.path().join("pg"), &options);
            if let Some(done) = poll_times(create, count).await {
                done.unwrap();
                return;
            }
            assert_eq!(
                everything_below(scratch.path()),
                Vec::<PathBuf>::new(),
                "after {count} polls"
            );
            assert!(postgres_in(scratch.path()).is_empty());
        }
    });
}

#[test]
fn a_start_given_up_anywhere_leaves_no_server_and_no_file() {
    run(async {
        for (major, quarantined) in [(PgMajor::V14, false), (PgMajor::V18, true)] {
            let fixture = Fixture::new(major).await;
            let instance = &fixture.instance;
            let options = if quarantined {
                start_options().in_quarantine(QuarantineOptions::new())
            } else {
                start_options()
            };
            for count in counts() {
                if let Some(done) = poll_times(instance.start(&options), count).await {
                    done.unwrap();
                    instance.stop(&StopOptions::default()).await.unwrap();
                    break;
                }
                let left = postgres_in(&fixture.dir());
                assert!(left.is_empty(), "after {count} polls: {left:?}");
                assert!(!instance.data_dir().join("postmaster.pid").exists());
                let in_run: Vec<_> = everything_below(instance.socket_dir());
                assert!(in_run.is_empty(), "after {count} polls: {in_run:?}");
            }
        }
    });
}

#[test]
fn a_temporary_server_given_up_anywhere_leaves_nothing() {
    run(async {
        let scratch = Scratch::new();
        let installation = installation(PgMajor::V16);
        let (create, start) = (create_options(), start_options());
        for count in counts().step_by(3) {
            let server = ScopedServer::temporary(&installation, scratch.path(), &create, &start);
            let done = poll_times(server, count).await;
            let finished = done.is_some();
            drop(done.map(Result::unwrap));
            assert_eq!(
                everything_below(scratch.path()),
                Vec::<PathBuf>::new(),
                "after {count} polls"
            );
            assert!(postgres_in(scratch.path()).is_empty());
            if finished {
                return;
            }
        }
    });
}

/// Asking changes nothing; a stop that was asked for happens.
#[test]
fn status_settings_and_stop_given_up_anywhere_leave_what_they_say() {
    run(async {
        let fixture = Fixture::new(PgMajor::V17).await;
        let instance = &fixture.instance;
        let before = everything_below(&fixture.dir());
        for count in counts() {
            if poll_times(instance.setting("work_mem"), count)
                .await
                .is_some()
            {
                break;
            }
        }
        for count in counts() {
            if poll_times(instance.set_own(&[("work_mem", "6MB")]), count)
                .await
                .is_some()
            {
                break;
            }
        }
        assert_eq!(everything_below(&fixture.dir()), before);
        let started = instance.start(&start_options()).await.unwrap();
        for count in counts() {
            if poll_times(instance.status(), count).await.is_some() {
                break;
            }
        }
        for count in counts() {
            if poll_times(instance.online_settings(), count)
                .await
                .is_some()
            {
                break;
            }
        }
        assert!(is_alive(started.pid));
        assert!(
            poll_times(instance.stop(&StopOptions::default()), 1)
                .await
                .is_none()
        );
        until("the stop that was asked for", || !is_alive(started.pid)).await;
        let options = start_options();
        let stop = StopOptions::default();
        instance.start(&options).await.unwrap();
        for count in counts() {
            if let Some(done) = poll_times(instance.restart(&stop, &options), count).await {
                done.unwrap();
                break;
            }
            // Either the old one, ending, or none: never a new one that nobody waited for.
            until("no server", || {
                postgres_in(instance.data_dir()).is_empty() || count == 0
            })
            .await;
            if count == 0 {
                assert_eq!(instance.status().await.unwrap().state, ServerState::Running);
            }
        }
        assert_eq!(instance.status().await.unwrap().state, ServerState::Running);
        instance.stop(&StopOptions::default()).await.unwrap();
    });
}

/// A promotion cannot be taken back: it happens, and nothing of the request stays.
#[test]
fn a_promotion_given_up_happens_all_the_same() {
    run(async {
        for count in [1, 2, 4] {
            let fixture = Fixture::new(PgMajor::V18).await;
            let instance = &fixture.instance;
            let signal = instance.data_dir().join("standby.signal");
            std::fs::write(&signal, "").unwrap();
            let user = instance.os_user();
            std::os::unix::fs::chown(&signal, Some(user.uid()), Some(user.gid())).unwrap();
            instance.start(&start_options()).await.unwrap();
            drop(poll_times(instance.promote(PATIENCE), count).await);
            until("it is promoted", || !signal.exists()).await;
            assert!(!instance.data_dir().join("promote").exists());
            let quick = StopOptions::new(StopMode::Immediate);
            instance.stop(&quick).await.unwrap();
        }
    });
}
