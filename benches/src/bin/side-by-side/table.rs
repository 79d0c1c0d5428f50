//! Results as Markdown tables, for a terminal and for `docs/performance.md`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::contest::{Results, Row};
use crate::goals::Goal;
use crate::machine::Machine;
use crate::statistics::Spread;

/// On what it ran, and against whom.
pub(crate) fn machine(
    machine: &Machine,
    load: f64,
    cold: bool,
    versions: &BTreeMap<String, String>,
) -> String {
    let versions: Vec<String> = versions
        .iter()
        .map(|(name, version)| format!("{name} {version}"))
        .collect();
    let gigabytes = bytes(machine.memory);
    format!(
        "{} UTC, {} cores ({}), {gigabytes} of memory, {}, Linux {}, caches {}, load up to {load:.1}\n{}\n",
        machine.began,
        machine.cores,
        machine.processor,
        machine.file_system,
        machine.kernel,
        if cold { "cold" } else { "warm" },
        versions.join(", "),
    )
}

/// A table for each stage.
pub(crate) fn results(results: &Results) -> String {
    let mut text = String::new();
    for what in &results.passed_over {
        writeln!(text, "\nPassed over: {what}.").unwrap();
    }
    for (data, stage) in results.stages() {
        let rows = results
            .rows
            .iter()
            .filter(|row| row.data == data && row.stage == stage);
        let rounds = rows.clone().map(|row| row.samples.len()).max().unwrap_or(0);
        write!(
            text,
            "\n### {data}: {stage} ({rounds} rounds)\n\n\
            | | s (least–most) | ours to it | of it checkpoint | CPU s, server's | peak | read | written | added | objects | requests |\n\
            |---|---|---|---|---|---|---|---|---|---|---|\n"
        )
        .unwrap();
        for row in rows {
            text.push_str(&line(results, row));
        }
    }
    text
}

fn line(results: &Results, row: &Row) -> String {
    let spread =
        |figure: fn(&crate::measure::Usage) -> f64| row.spread(|sample| figure(&sample.usage));
    let middle = |figure: fn(&crate::measure::Usage) -> u64| {
        bytes(round(
            row.spread(|sample| whole(figure(&sample.usage))).median,
        ))
    };
    let wall = spread(|usage| usage.wall);
    let (added, objects) = match row.samples.iter().find_map(|sample| sample.added) {
        None => ("".to_owned(), "".to_owned()),
        Some(_) => {
            let of = |figure: fn(crate::repository::Kept) -> u64| {
                round(
                    row.spread(|sample| whole(sample.added.map_or(0, figure)))
                        .median,
                )
            };
            (
                bytes(of(|kept| kept.bytes)),
                of(|kept| kept.objects).to_string(),
            )
        }
    };
    let requests = row
        .samples
        .iter()
        .filter_map(|sample| sample.usage.requests);
    let requests = Spread::of(requests.map(whole))
        .map_or_else(String::new, |spread| round(spread.median).to_string());
    format!(
        "| {} | {} | {} | {:.2} | {:.2}, {:.2} | {} | {} | {} | {added} | {objects} | {requests} |\n",
        row.who,
        reach(wall),
        results.ratio(row).map(reach).unwrap_or_default(),
        spread(|usage| usage.checkpoint).median,
        spread(|usage| usage.processor).median,
        spread(|usage| usage.server_processor).median,
        middle(|usage| usage.peak),
        middle(|usage| usage.read),
        middle(|usage| usage.written),
    )
}

/// The goals and whether they are met.
pub(crate) fn goals(goals: &[Goal]) -> String {
    let mut text =
        "\n### Goals\n\n| data | goal | asked | measured | | floor to peer |\n|---|---|---|---|---|---|\n"
            .to_owned();
    for goal in goals {
        let measured = goal.ratio.map_or_else(|| "–".to_owned(), figure);
        let met = match goal.met() {
            None => "not measured",
            Some(true) => "met",
            Some(false) => "**not met**",
        };
        let floor = goal.floor.map_or_else(String::new, figure);
        writeln!(
            text,
            "| {} | {} | {} | {measured} | {met} | {floor} |",
            goal.data, goal.text, goal.asked
        )
        .unwrap();
    }
    text
}

/// `median (least–most)`, or the median alone.
fn reach(spread: Spread) -> String {
    let (median, least, most) = (
        figure(spread.median),
        figure(spread.least),
        figure(spread.most),
    );
    if least == most {
        median
    } else {
        format!("{median} ({least}–{most})")
    }
}

/// Two digits after the point, three of small ones.
pub(crate) fn figure(value: f64) -> String {
    if value.abs() < 0.1 {
        format!("{value:.3}")
    } else {
        format!("{value:.2}")
    }
}

fn whole(value: u64) -> f64 {
    value as f64
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the median of whole numbers that are not negative"
)]
fn round(value: f64) -> u64 {
    value.round() as u64
}

/// Bytes as people say them.
pub(crate) fn bytes(count: u64) -> String {
    let mut value = whole(count);
    for unit in ["B", "kB", "MB"] {
        if value < 1000.0 {
            return if unit == "B" {
                format!("{count} B")
            } else {
                format!("{value:.1} {unit}")
            };
        }
        value /= 1000.0;
    }
    format!("{value:.2} GB")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contest::tests::sample;
    use crate::contest::{FIRST, Results};

    #[test]
    fn a_table_has_a_line_for_each_contender_with_its_ratio() {
        let mut all = Results::default();
        all.add("d", FIRST, "ours", "ours", sample(1.0, 2_500_000));
        all.add("d", FIRST, "theirs", "ours", sample(4.0, 999));
        let text = results(&all);
        assert!(text.contains("### d: first snapshot (1 rounds)"), "{text}");
        assert!(text.contains("| ours | 1.00 |  | 0.00 |"), "{text}");
        assert!(text.contains("| theirs | 4.00 | 0.25 | 0.00 |"), "{text}");
        assert!(text.contains("| 2.5 MB | 1 |  |\n"), "{text}");
        let columns = |line: &str| line.matches('|').count();
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with('|')).collect();
        assert!(lines.iter().all(|line| columns(line) == columns(lines[0])));
    }

    #[test]
    fn figures_are_as_long_as_they_are_good_for() {
        assert_eq!(figure(0.0123), "0.012");
        assert_eq!(figure(1.234), "1.23");
        assert_eq!(
            (bytes(12), bytes(1500), bytes(4_400_000_000)),
            ("12 B".into(), "1.5 kB".into(), "4.40 GB".into())
        );
    }

    #[test]
    fn goals_say_whether_they_are_met() {
        let goal = |ratio| Goal {
            data: "d".to_owned(),
            text: "t".to_owned(),
            asked: 0.5,
            ratio,
            floor: ratio.map(|ratio| ratio / 2.0),
        };
        let text = goals(&[goal(Some(0.4)), goal(Some(0.6)), goal(None)]);
        assert!(text.contains("| 0.5 | 0.40 | met | 0.20 |"), "{text}");
        assert!(text.contains("| 0.5 | 0.60 | **not met** |"), "{text}");
        assert!(text.contains("| 0.5 | – | not measured |"), "{text}");
    }
}
