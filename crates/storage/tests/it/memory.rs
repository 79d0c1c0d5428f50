//! Memory keeps the contract.

use std::sync::Arc;

use neon_storage::{Memory, contract};

#[tokio::test(flavor = "multi_thread")]
async fn memory_keeps_the_contract() {
    let report = contract::run(Arc::new(Memory::new())).await;
    assert!(report.held() > 30, "{report:#?}");
    report.into_result().unwrap();
}
