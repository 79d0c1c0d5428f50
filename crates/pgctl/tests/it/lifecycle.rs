//! Create, start, stop, crash, restart.

use super::support::*;

#[test]
fn an_instance_of_every_major_is_created_started_and_stopped() {
    runtime().block_on(async {
        for major in PgMajor::ALL {
            let scratch = Scratch::new();
            let installation = installation(major);
            let options = CreateOptions::new().without_sync();
            let t = std::time::Instant::now();
            let instance = Instance::create(&installation, scratch.path().join("pg"), &options)
                .await
                .unwrap();
            println!("{major} created {:?}", t.elapsed());
            assert!(!instance.status().await.unwrap().is_up());
            let t = std::time::Instant::now();
            let started = instance.start(&StartOptions::new()).await.unwrap();
            println!("{major} started {:?} {started:?}", t.elapsed());
            let status = instance.status().await.unwrap();
            assert_eq!(status.state, ServerState::Running, "{status:?}");
            assert_eq!(status.answer, Answer::Accepting);
            assert_eq!(status.pid, Some(started.pid));
            let error = instance.start(&StartOptions::new()).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::AlreadyRunning, "{error:?}");
            let t = std::time::Instant::now();
            let stopped = instance.stop(&StopOptions::default()).await.unwrap();
            println!("{major} stopped {:?}", t.elapsed());
            assert!(stopped.clean);
            assert_eq!(instance.status().await.unwrap().state, ServerState::Stopped);
        }
    });
}
