//! Tables: upper-case headers, two spaces between columns, `-` for nothing, no line cut.

use std::fmt;

/// Where the text of a column stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    Left,
    Right,
}

/// A table that is being filled.
#[derive(Debug)]
pub(crate) struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(columns: &[(&'static str, Align)]) -> Self {
        Self {
            columns: columns.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row. Empty cells show as `-`.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.row_of(cells.into());
    }

    pub(crate) fn row_of(&mut self, cells: Vec<String>) {
        let shown = cells.into_iter().map(|cell| {
            if cell.is_empty() {
                "-".to_owned()
            } else {
                cell.replace(['\n', '\r', '\t'], " ")
            }
        });
        self.rows.push(shown.collect());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let headers: Vec<String> = self
            .columns
            .iter()
            .map(|(name, _)| (*name).to_owned())
            .collect();
        let lines: Vec<&Vec<String>> = std::iter::once(&headers).chain(&self.rows).collect();
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|column| {
                let cells = lines.iter().filter_map(|line| line.get(column));
                cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
            })
            .collect();
        for line in lines {
            let mut text = String::new();
            for ((cell, width), (_, align)) in line.iter().zip(&widths).zip(&self.columns) {
                if !text.is_empty() {
                    text.push_str("  ");
                }
                match align {
                    Align::Left => text.push_str(&format!("{cell:<width$}")),
                    Align::Right => text.push_str(&format!("{cell:>width$}")),
                }
            }
            writeln!(f, "{}", text.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_nothing_is_a_dash() {
        let mut table = Table::new(&[
            ("NAME", Align::Left),
            ("USED", Align::Right),
            ("PATH", Align::Left),
        ]);
        table.row([
            "local".to_owned(),
            "5.1G".to_owned(),
            "/opt/neon".to_owned(),
        ]);
        table.row(["local.compr".to_owned(), "20.4G".to_owned(), String::new()]);
        assert_eq!(
            table.to_string(),
            "NAME          USED  PATH\n\
             local         5.1G  /opt/neon\n\
             local.compr  20.4G  -\n"
        );
    }
}
