//! A chart for the documentation: for each stage a bar for each contender, as long as its time is to ours.

use std::fmt::Write as _;

use crate::contest::{BUCKET, Results};
use crate::table::figure;

const WIDTH: f64 = 860.0;
const LABEL: f64 = 330.0;
const BAR: f64 = 380.0;
const LINE: f64 = 18.0;
/// Bars end at so many times ours; longer ones are cut and say so by their figure.
const MOST: f64 = 12.0;

/// Draws all rows but floors, with ours as 1.
pub(crate) fn chart(results: &Results) -> String {
    let mut body = String::new();
    let mut y = 46.0;
    for (data, stage) in results.stages() {
        let rows: Vec<_> = results
            .rows
            .iter()
            .filter(|row| row.data == data && row.stage == stage && !row.who.starts_with("floor"))
            .collect();
        // The time of a bucket is that of the server beside it.
        if stage.starts_with(BUCKET) || rows.iter().all(|row| row.peer_of == row.who) {
            continue;
        }
        y += LINE;
        writeln!(
            body,
            r#"<text x="10" y="{y}" font-weight="bold">{}: {}</text>"#,
            escape(&stage),
            escape(&data)
        )
        .unwrap();
        y += LINE;
        for row in rows {
            let own = row.peer_of == row.who;
            // How many times as long as ours it takes.
            let times = results.ratio(row).map_or(1.0, |spread| 1.0 / spread.median);
            let length = BAR * times.min(MOST) / MOST;
            let colour = if own { "#2b7a4b" } else { "#9aa5b1" };
            let wall = figure(row.spread(|sample| sample.usage.wall).median);
            let shown = if own {
                format!("{wall} s")
            } else {
                format!("{} × ({wall} s)", figure(times))
            };
            writeln!(
                body,
                r#"<text x="{}" y="{y}" text-anchor="end">{}</text>"#,
                LABEL - 8.0,
                escape(&row.who)
            )
            .unwrap();
            writeln!(
                body,
                r#"<rect x="{LABEL}" y="{}" width="{length:.1}" height="12" fill="{colour}"/>"#,
                y - 10.5
            )
            .unwrap();
            writeln!(
                body,
                r#"<text x="{:.1}" y="{y}">{shown}</text>"#,
                LABEL + length + 6.0
            )
            .unwrap();
            y += LINE;
        }
    }
    let height = y + 10.0;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
        font-family=\"sans-serif\" font-size=\"12\" fill=\"#1f2933\">\n\
        <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n\
        <text x=\"10\" y=\"22\" font-size=\"15\" font-weight=\"bold\">Time by the clock, as multiples of ours with the same codec</text>\n\
        <text x=\"10\" y=\"40\">Medians; flushed within the clock; bars end at {MOST} times ours.</text>\n\
        {body}</svg>\n"
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contest::FIRST;
    use crate::contest::tests::sample;

    #[test]
    fn bars_are_as_long_as_times_and_end_somewhere() {
        let mut results = Results::default();
        results.add("a < b", FIRST, "ours", "ours", sample(1.0, 0));
        results.add("a < b", FIRST, "tar | zstd & more", "ours", sample(6.0, 0));
        results.add("a < b", FIRST, "slow", "ours", sample(100.0, 0));
        results.add("a < b", FIRST, "floor: read", "ours", sample(0.5, 0));
        let text = chart(&results);
        assert!(text.contains("a &lt; b"), "{text}");
        assert!(text.contains("tar | zstd &amp; more"), "{text}");
        assert!(
            text.contains(&format!("width=\"{:.1}\" height=\"12\"", BAR / 2.0)),
            "{text}"
        );
        assert!(
            text.contains(&format!("width=\"{BAR:.1}\" height=\"12\"")),
            "{text}"
        );
        assert!(text.contains("100.00 × (100.00 s)"), "{text}");
        assert!(!text.contains("floor"), "{text}");
        assert_eq!(
            text.matches("<text").count(),
            text.matches("</text>").count()
        );
    }
}
