//! The `loadtest` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(loadtest::cli::run(&loadtest::cli::command().get_matches()))
}
