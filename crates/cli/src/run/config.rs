//! `config …`

use serde_json::json;

use crate::args::Config;
use crate::render::{Align, Answer, Table};
use crate::settings::Settings;

pub(crate) fn run(verb: &Config, settings: &Settings) -> Answer {
    let Config::Show { origin } = verb;
    let mut columns = vec![("NAME", Align::Left), ("VALUE", Align::Left)];
    if *origin {
        columns.push(("ORIGIN", Align::Left));
    }
    let mut table = Table::new(&columns);
    let mut rows = Vec::new();
    for setting in &settings.shown {
        let mut cells = vec![setting.name.clone(), setting.value.clone()];
        if *origin {
            cells.push(setting.origin.clone());
        }
        table.row_of(cells);
        rows.push(
            json!({ "name": setting.name, "value": setting.value, "origin": setting.origin }),
        );
    }
    Answer::list(&table, "settings", rows)
}
