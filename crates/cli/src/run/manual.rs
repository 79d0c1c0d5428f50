//! Manual pages.

use std::path::Path;

use serde_json::json;

use crate::args::grammar;
use crate::failure::{Failure, Outcome};
use crate::render::Answer;

/// A page for the program and for each verb.
pub(crate) fn pages(folder: &Path) -> Outcome<Answer> {
    let failed = |error| Failure::io(format!("{} cannot be written", folder.display()), &error);
    std::fs::create_dir_all(folder).map_err(failed)?;
    let mut grammar = grammar();
    grammar.build();
    let mut pages = Vec::new();
    page(&grammar, folder, &mut pages).map_err(failed)?;
    Ok(Answer::of(
        format!("{} pages in {}", pages.len(), folder.display()),
        json!({ "folder": folder, "pages": pages }),
    ))
}

fn page(command: &clap::Command, folder: &Path, pages: &mut Vec<String>) -> std::io::Result<()> {
    let title = command
        .get_display_name()
        .unwrap_or(command.get_name())
        .to_owned();
    let name = format!("{title}.1");
    let mut text = Vec::new();
    clap_mangen::Man::new(command.clone())
        .title(title.to_uppercase())
        .render(&mut text)?;
    std::fs::write(folder.join(&name), text)?;
    pages.push(name);
    for verb in command
        .get_subcommands()
        .filter(|verb| verb.get_name() != "help" && !verb.is_hide_set())
    {
        page(verb, folder, pages)?;
    }
    Ok(())
}
