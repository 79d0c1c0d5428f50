//! Completions and manual pages.

use std::path::Path;

use clap_complete::aot;
use serde_json::json;

use crate::args::{NAME, Shell, grammar};
use crate::failure::{Failure, Outcome};
use crate::render::{Answer, write};

pub(crate) fn completions(shell: Shell) -> Outcome<u8> {
    let mut grammar = grammar();
    let mut text = Vec::new();
    match shell {
        Shell::Bash => aot::generate(aot::Shell::Bash, &mut grammar, NAME, &mut text),
        Shell::Zsh => aot::generate(aot::Shell::Zsh, &mut grammar, NAME, &mut text),
        Shell::Fish => aot::generate(aot::Shell::Fish, &mut grammar, NAME, &mut text),
    }
    write(&text)?;
    Ok(0)
}

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
        .filter(|verb| verb.get_name() != "help")
    {
        page(verb, folder, pages)?;
    }
    Ok(())
}
