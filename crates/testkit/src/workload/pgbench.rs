//! `pgbench`, whose balances must agree in every consistent state.

use crate::client::{Client, SqlError};
use crate::workload::Random;

fn pgbench(client: &Client, args: &[&str]) -> Result<(), SqlError> {
    let output = client
        .tool("pgbench")
        .args(args)
        .output()
        .expect("pgbench is installed");
    if output.status.success() {
        return Ok(());
    }
    Err(SqlError::new(
        String::from_utf8_lossy(&output.stderr).into_owned(),
    ))
}

pub(super) fn prepare(client: &Client, size: u32) -> Result<(), SqlError> {
    // A unit of scale is a hundred thousand accounts.
    let scale = size.div_ceil(10).to_string();
    pgbench(client, &["-i", "-q", "-s", &scale])
}

pub(super) fn round(client: &Client, random: &mut Random) -> Result<(), SqlError> {
    let seed = random.below(u32::MAX).to_string();
    let protocol = random.pick(&["simple", "prepared"]);
    pgbench(
        client,
        &[
            "-n",
            "-c",
            "2",
            "-t",
            "50",
            "-M",
            protocol,
            "--random-seed",
            &seed,
        ],
    )
}

pub(super) fn wrong(client: &Client) -> Result<String, SqlError> {
    client.try_psql(
        "select 'balances differ: ' || h || ', ' || a || ', ' || b || ', ' || t from
           (select (select coalesce(sum(delta), 0) from pgbench_history) as h,
                   (select sum(abalance) from pgbench_accounts) as a,
                   (select sum(bbalance) from pgbench_branches) as b,
                   (select sum(tbalance) from pgbench_tellers) as t) as sums
         where h <> a or a <> b or b <> t",
    )
}
