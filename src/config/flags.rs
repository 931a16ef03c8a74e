//! The command line. Flags come from the table; their values are taken as they are and read by the
//! kinds, so that a bad value is the same error here as in the environment.

use std::ffi::OsString;
use std::sync::LazyLock;

use clap::builder::OsStringValueParser;
use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches};

use super::file::DEFAULT_PATH;
use super::layer::{Entry, Layer};
use super::source::Source;
use super::table::{KEYS, Key};
use super::units::duration;
use super::{Command, Detail, HealthCheck, LoadError};

/// What the command line asks for.
#[derive(Debug)]
pub(super) struct CommandLine {
    pub(super) command: Command,
    /// The value of `--config`.
    pub(super) config: Option<OsString>,
    pub(super) flags: Layer,
}

/// Reads the arguments, the first of which is the program's name.
///
/// # Errors
/// Help or version asked for, a usage error, a flag's value that is not UTF-8.
pub(super) fn read(args: impl IntoIterator<Item = OsString>) -> Result<CommandLine, LoadError> {
    let matches = program().try_get_matches_from(args).map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => LoadError::Answer(error.to_string()),
        _ => LoadError::Usage(error.to_string()),
    })?;
    let command = match matches.subcommand() {
        Some((CHECK_CONFIG, _)) => Command::CheckConfig,
        Some((PRINT_CONFIG, _)) => Command::PrintConfig,
        Some((REPORT, of)) => {
            let file = given(of, REPORT_FILE).expect("clap demands it");
            Command::Report(file.into())
        }
        Some((HEALTH_CHECK, of)) => Command::HealthCheck(health_check(of)),
        _ => Command::Serve,
    };
    let mut flags = Layer::new();
    for key in KEYS {
        if let Some(text) = given(&matches, key.name) {
            let entry = Entry::from_os(key.name, Source::Flag(key.flag()), text)?;
            flags.insert(key.name, entry);
        }
    }
    Ok(CommandLine { command, config: given(&matches, CONFIG).cloned(), flags })
}

fn health_check(of: &ArgMatches) -> HealthCheck {
    HealthCheck {
        url: of.get_one(URL).cloned(),
        timeout: *of.get_one(TIMEOUT).expect("it has a default"),
        wait_shutdown: of.get_one(WAIT_SHUTDOWN).copied(),
        detail: if of.get_flag(VERBOSE) { Detail::Verbose } else { Detail::Brief },
    }
}

fn given<'a>(matches: &'a ArgMatches, id: &str) -> Option<&'a OsString> {
    matches.get_one::<OsString>(id)
}

/// Every flag is global, so it may stand before and after the command; of a flag that is given
/// twice the later value holds. A command's name is never taken for the value of the flag before
/// it: `--access-log check-config` is a bare flag and a command.
fn program() -> clap::Command {
    clap::Command::new(env!("CARGO_PKG_NAME"))
        .version(env!("CARGO_PKG_VERSION"))
        .about(env!("CARGO_PKG_DESCRIPTION"))
        .after_help(AFTER_HELP)
        .args_override_self(true)
        .subcommand_precedence_over_arg(true)
        .next_line_help(true)
        .subcommand(clap::Command::new(SERVE).about("Serve until a signal (the default command)"))
        .subcommand(
            clap::Command::new(CHECK_CONFIG)
                .about("Check the configuration: status 0, or what is wrong and 78"),
        )
        .subcommand(
            clap::Command::new(PRINT_CONFIG)
                .about("Print the configuration in force as TOML, with where each value came from"),
        )
        .subcommand(
            clap::Command::new(REPORT)
                .about("Draw the report of a shutdown: a timeline, what became of the requests")
                .arg(
                    Arg::new(REPORT_FILE)
                        .required(true)
                        .value_name("FILE")
                        .value_parser(OsStringValueParser::new())
                        .help("The report, or a log in JSON (its last report); - is stdin"),
                ),
        )
        .subcommand(health_check_command())
        .arg(config_arg())
        .args(KEYS.iter().zip(FLAGS.iter()).map(|(key, flag)| arg(key, flag)))
}

fn health_check_command() -> clap::Command {
    let patience = |name: &'static str| {
        Arg::new(name).long(name).value_name("DURATION").value_parser(|text: &str| {
            let patience = duration(text).filter(|patience| !patience.is_zero());
            patience.ok_or("expected a duration such as 30, \"500ms\" or \"1m\", more than 0")
        })
    };
    clap::Command::new(HEALTH_CHECK)
        .about("Ask a server how it is: status 0 when it is well, 1 when not")
        .arg(Arg::new(URL).long(URL).value_name("URL").help(
            "Whom to ask: http://HOST:PORT/PATH or unix:/PATH-OF-THE-SOCKET \
             [default: /readyz at admin_listen, or at listen when that is off]",
        ))
        .arg(patience(TIMEOUT).default_value("5").help("How long the answer may take"))
        .arg(
            patience(WAIT_SHUTDOWN).num_args(0..=1).default_missing_value("30").help(
                "Wait until nobody is there, so long at most (30 s), and say how long it was",
            ),
        )
        .arg(Arg::new(VERBOSE).long(VERBOSE).action(ArgAction::SetTrue).help("Say each answer"))
}

fn config_arg() -> Arg {
    Arg::new(CONFIG)
        .long(CONFIG)
        .global(true)
        .value_name("PATH")
        .value_parser(OsStringValueParser::new())
        .help(format!("The configuration file [default: {DEFAULT_PATH}] [env: {CONFIG_VARIABLE}]"))
}

fn arg(key: &Key, flag: &'static str) -> Arg {
    let default = if key.default.is_empty() { "none" } else { key.default };
    let (what, takes) = (key.sentence(), key.kind.range());
    let file = key.file_variable().map(|name| format!(" or {name}")).unwrap_or_default();
    let variable = key.variable();
    let help = format!("{what} [default: {default}] [takes: {takes}] [env: {variable}{file}]");
    let arg = Arg::new(key.name)
        .long(flag)
        .global(true)
        .action(ArgAction::Set)
        .value_name(key.kind.value_name())
        .value_parser(OsStringValueParser::new())
        .allow_negative_numbers(true)
        .help_heading(key.section)
        .help(help.replace('`', ""));
    match key.kind.bare_flag() {
        Some(value) => arg.num_args(0..=1).default_missing_value(value),
        None => arg,
    }
}

/// The names of the keys' flags, for clap, which takes only names that live for ever.
static FLAGS: LazyLock<Vec<String>> = LazyLock::new(|| KEYS.iter().map(Key::flag).collect());

/// The environment variable that names the file when the flag does not.
pub(super) const CONFIG_VARIABLE: &str = "EBBTIDE_CONFIG";

pub(super) const CONFIG: &str = "config";
const SERVE: &str = "serve";
const CHECK_CONFIG: &str = "check-config";
const PRINT_CONFIG: &str = "print-config";
const REPORT: &str = "report";
const REPORT_FILE: &str = "file";
const HEALTH_CHECK: &str = "health-check";
const URL: &str = "url";
const TIMEOUT: &str = "timeout";
const WAIT_SHUTDOWN: &str = "wait-shutdown";
const VERBOSE: &str = "verbose";

const AFTER_HELP: &str = "\
A value comes from the flag, else the environment variable, else the file, else it is the default.
Durations are a number of seconds, 500ms, 30s or \"1m 500ms\"; sizes are bytes, 64KiB or 10kB.";

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_consistent() {
        super::program().debug_assert();
    }
}
