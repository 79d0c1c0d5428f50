//! The native backend: contract.

use std::sync::Arc;

use neon_storage::{Native, NativeOptions, contract};

#[tokio::test(flavor = "multi_thread")]
async fn native_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    let native = Native::open(dir.path().join("root"), NativeOptions::default()).unwrap();
    let report = contract::run(Arc::new(native)).await;
    assert!(report.held() > 30, "{report:#?}");
    report.into_result().unwrap();
}
