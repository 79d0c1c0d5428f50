//! Everything that was measured, as one JSON document: seconds, bytes, one object for each run.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::contest::{Results, Sample};
use crate::goals::Goal;
use crate::machine::Machine;

pub(crate) fn document(
    machine: &Machine,
    loads: &[f64],
    cold: bool,
    versions: &BTreeMap<String, String>,
    results: &Results,
    goals: &[Goal],
) -> Value {
    let rows: Vec<Value> = results
        .rows
        .iter()
        .map(|row| {
            let ratio = results.ratio(row).map(|spread| {
                json!({"median": spread.median, "least": spread.least, "most": spread.most})
            });
            json!({
                "data": row.data,
                "stage": row.stage,
                "who": row.who,
                "compared_with": (row.peer_of != row.who).then_some(&row.peer_of),
                "ratio": ratio,
                "runs": row.samples.iter().map(sample).collect::<Vec<_>>(),
            })
        })
        .collect();
    let goals: Vec<Value> = goals
        .iter()
        .map(|goal| {
            json!({"data": goal.data, "goal": goal.text, "asked": goal.asked, "measured": goal.ratio, "met": goal.met(), "floor": goal.floor})
        })
        .collect();
    json!({
        "schema": 1,
        "machine": {
            "began": machine.began,
            "cores": machine.cores,
            "processor": machine.processor,
            "memory": machine.memory,
            "kernel": machine.kernel,
            "file_system": machine.file_system,
            "caches": if cold { "cold" } else { "warm" },
            "loads": loads,
        },
        "versions": versions,
        "results": rows,
        "passed_over": results.passed_over,
        "goals": goals,
    })
}

fn sample(sample: &Sample) -> Value {
    let usage = &sample.usage;
    json!({
        "wall": usage.wall,
        "checkpoint": usage.checkpoint,
        "processor": usage.processor,
        "server_processor": usage.server_processor,
        "peak": usage.peak,
        "read": usage.read,
        "written": usage.written,
        "disk_read": usage.disk_read,
        "disk_written": usage.disk_written,
        "server_read": usage.server_read,
        "server_written": usage.server_written,
        "added": sample.added.map(|kept| kept.bytes),
        "objects": sample.added.map(|kept| kept.objects),
        // A directory counts none.
        "requests": usage.requests,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contest::FIRST;
    use crate::contest::tests::sample;

    #[test]
    fn the_document_has_every_run_and_the_ratio_of_peers() {
        let mut results = Results::default();
        results.add("d", FIRST, "ours", "ours", sample(1.0, 5));
        results.add("d", FIRST, "theirs", "ours", sample(2.0, 7));
        let machine = Machine {
            cores: 2,
            processor: String::new(),
            memory: 1,
            kernel: String::new(),
            file_system: String::new(),
            began: String::new(),
        };
        let document = document(&machine, &[0.5], false, &BTreeMap::new(), &results, &[]);
        let rows = document["results"].as_array().unwrap();
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[0]["compared_with"], Value::Null);
        assert_eq!(rows[1]["ratio"]["median"], 0.5);
        assert_eq!(rows[1]["runs"][0]["added"], 7);
    }
}
