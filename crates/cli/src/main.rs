#![doc = include_str!("../README.md")]

mod args;
mod asking;
mod complete;
mod failure;
mod home;
mod progress;
mod render;
mod run;
mod settings;
mod signals;
mod surroundings;

use std::process::ExitCode;

fn main() -> ExitCode {
    failure::report_panics();
    let output = surroundings::output();
    let code = match args::parse(std::env::args_os(), output.as_deref()) {
        Ok(arguments) => run::command(arguments),
        Err(shown) => shown,
    };
    failure::exit(code)
}
