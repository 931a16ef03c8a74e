//! The configuration: what the command line, the environment and one TOML file say, made into a
//! [`Config`] whose every value is in range, or into one line that says what to repair.
//!
//! `table.rs` declares the keys, once. What a value of a kind looks like is in `value.rs`,
//! `place.rs`, `secret.rs` and `units.rs`; where values come from and which of them holds is in
//! `flags.rs`, `file.rs` and `layer.rs`; `source.rs` names sources and errors; `render.rs` writes
//! the table.
//!
//! Invariants: nothing here reads the process's own environment, arguments or working directory
//! (they are arguments, so a test can not disturb another), and nothing is bound, opened for
//! writing or logged. A key works alike in all three places: `shutdown_timeout = 30` in the file is
//! `SHUTDOWN_TIMEOUT=30` in the environment and `--shutdown-timeout 30` on the command line; later
//! wins. Beside the table stand only `--config`, `EBBTIDE_CONFIG` and `PORT`, and for secrets the
//! variables that name a file.

mod file;
mod flags;
mod layer;
mod place;
mod render;
mod secret;
mod source;
mod table;
mod units;
mod value;

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use self::layer::{Entry, Layers};
pub use self::render::{markdown_table, print_config, sample_settings};
pub use self::secret::Secret;
pub use self::source::{ConfigError, Setting, Source, Sources};
use self::table::KEYS;
pub use self::table::{ClientHalfClose, Config, LogFormat};
use self::value::Input;
use crate::server::Address;

/// What the process was asked to do, and with which settings.
#[derive(Debug, Clone, PartialEq)]
pub struct Invocation {
    /// What to do.
    pub command: Command,
    /// With which values, every one of them in range.
    pub config: Config,
    /// Where each of them came from.
    pub sources: Sources,
}

/// A command of the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Serve until a signal; also what no command means.
    Serve,
    /// Say whether the configuration is good.
    CheckConfig,
    /// Print the configuration in force.
    PrintConfig,
    /// Draw the report of a shutdown from this file, `-` for the standard input.
    Report(PathBuf),
    /// Ask a server how it is.
    HealthCheck(HealthCheck),
}

/// What `health-check` is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    /// Whom to ask, as it was given; `None` for the server of this configuration.
    pub url: Option<String>,
    /// How long an answer may take.
    pub timeout: Duration,
    /// Wait so long for the server to be gone instead.
    pub wait_shutdown: Option<Duration>,
    /// Say more.
    pub detail: Detail,
}

/// How much the health check says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// What is wrong, if something is.
    Brief,
    /// Each answer as well.
    Verbose,
}

impl Command {
    /// Whether it works without a configuration, so that a bad one is no reason not to.
    fn needs_none(&self) -> bool {
        match self {
            Self::Report(_) => true,
            Self::HealthCheck(check) => check.url.is_some(),
            Self::Serve | Self::CheckConfig | Self::PrintConfig => false,
        }
    }
}

/// Why there is no [`Invocation`]. Displays as the text to print, which ends its last line unless
/// it is a [`LoadError::Config`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoadError {
    /// Help or version, which was asked for: belongs on stdout, status 0.
    Answer(String),
    /// A command line that is not understood: belongs on stderr, status [`EXIT_USAGE`].
    Usage(String),
    /// A configuration that can not be used: belongs on stderr, status [`EXIT_CONFIG`].
    Config(ConfigError),
}

impl LoadError {
    /// The status the process should exit with.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Answer(_) => 0,
            Self::Usage(_) => EXIT_USAGE,
            Self::Config(_) => EXIT_CONFIG,
        }
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answer(text) | Self::Usage(text) => f.write_str(text),
            Self::Config(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for LoadError {}

impl From<ConfigError> for LoadError {
    fn from(error: ConfigError) -> Self {
        Self::Config(error)
    }
}

/// Reads the configuration. `args` begins with the program's name, as [`std::env::args_os`] does;
/// `env` looks up one environment variable; relative paths of configuration files start at `cwd`.
///
/// # Errors
/// See [`LoadError`]. Of several mistakes one is reported: a command line that can not be read
/// before the file, its syntax and the names in it before any value.
pub fn load(
    args: impl IntoIterator<Item = OsString>,
    env: &dyn Fn(&str) -> Option<OsString>,
    cwd: &Path,
) -> Result<Invocation, LoadError> {
    let line = flags::read(args)?;
    if line.command.needs_none() {
        let (config, sources) = Config::read(&Layers { flags: line.flags, ..Layers::default() })?;
        return Ok(Invocation { command: line.command, config, sources });
    }
    let layers = Layers {
        file: file::read(named_file(line.config, env)?, cwd)?,
        environment: layer::environment(env, cwd)?,
        flags: line.flags,
    };
    let (mut config, mut sources) = Config::read(&layers)?;
    apply_port(&mut config, &mut sources, env)?;
    check_database(&config, &sources)?;
    check_redis(&config, &sources)?;
    check(&config, &sources)?;
    Ok(Invocation { command: line.command, config, sources })
}

/// The configuration file that flag or environment name, and which of them did. An empty variable
/// names none.
fn named_file(
    flag: Option<OsString>,
    env: &dyn Fn(&str) -> Option<OsString>,
) -> Result<Option<(String, Source)>, ConfigError> {
    let (text, source) = if let Some(text) = flag {
        (text, Source::Flag(flags::CONFIG.to_owned()))
    } else if let Some(text) = env(flags::CONFIG_VARIABLE).filter(|text| !text.is_empty()) {
        (text, Source::Environment(flags::CONFIG_VARIABLE.to_owned()))
    } else {
        return Ok(None);
    };
    let entry = Entry::from_os(flags::CONFIG, source, &text)?;
    match &entry.input {
        Input::Text(path) if !path.is_empty() => Ok(Some((path.clone(), entry.source))),
        _ => Err(entry.refuse(flags::CONFIG, "expected a path".to_owned())),
    }
}

/// `PORT`, which container platforms set: the port of every TCP address that is not from the flag.
/// A bad value is an error even where it would change nothing.
fn apply_port(
    config: &mut Config,
    sources: &mut Sources,
    env: &dyn Fn(&str) -> Option<OsString>,
) -> Result<(), ConfigError> {
    let Some(text) = env(PORT) else { return Ok(()) };
    let source = Source::Environment(PORT.to_owned());
    let entry = Entry::from_os(LISTEN, source.clone(), &text)?;
    let Some(port) = entry.input.scalar().and_then(|text| text.parse().ok()) else {
        let expected = "expected a port from 1 to 65535, or 0 for any free one";
        return Err(entry.refuse(LISTEN, expected.to_owned()));
    };
    if matches!(sources.of(LISTEN), Source::Flag(_)) {
        return Ok(());
    }
    for address in &mut config.listen {
        if let Address::Tcp(tcp) = address {
            tcp.set_port(port);
            sources.set(LISTEN, source.clone());
        }
    }
    Ok(())
}

/// Looks at the address of the database. What it is like is for its client to say.
fn check_database(config: &Config, sources: &Sources) -> Result<(), ConfigError> {
    let Some(url) = &config.database_url else { return Ok(()) };
    let checked = match url.expose() {
        "off" => return Ok(()),
        #[cfg(feature = "sqlite")]
        url if url.starts_with("sqlite:") => {
            crate::pool::SqliteAddress::parse(url).map(drop).map_err(|why| why.to_string())
        }
        #[cfg(feature = "postgres")]
        url if !url.starts_with("sqlite:") => {
            crate::pool::PostgresAddress::parse(url).map(drop).map_err(|why| why.to_string())
        }
        _ => Err("this build has no client for it".to_owned()),
    };
    checked.map_err(|why| ConfigError::Value {
        source: sources.of(DATABASE_URL).clone(),
        key: DATABASE_URL,
        value: source::shown_text(&url.to_string()),
        expected: why,
    })
}

fn check_redis(config: &Config, sources: &Sources) -> Result<(), ConfigError> {
    let Some(url) = &config.redis_url else { return Ok(()) };
    #[cfg(feature = "redis")]
    let checked = crate::pool::RedisAddress::parse(url.expose()).map(drop);
    #[cfg(not(feature = "redis"))]
    let checked: Result<(), &str> = Err("this build has no client for it: feature `redis`");
    checked.map_err(|why| ConfigError::Value {
        source: sources.of(REDIS_URL).clone(),
        key: REDIS_URL,
        value: source::shown_text(&url.to_string()),
        expected: why.to_string(),
    })
}

/// Looks for values that can not hold together.
fn check(config: &Config, sources: &Sources) -> Result<(), ConfigError> {
    let setting = |name: &str| {
        let row = KEYS.iter().zip(config.written()).find(|(key, _)| key.name == name);
        let (key, value) = row.expect("the rules below name keys of the table");
        Box::new(Setting { key: key.name, value, source: sources.of(name).clone() })
    };
    let against = |first: &str, second: &str, rule: &'static str| {
        Err(ConfigError::Contradiction { first: setting(first), second: setting(second), rule })
    };
    if config.request_line_bytes_max > config.head_bytes_max {
        let rule = "the request line is part of the head: expected no more than its limit";
        return against("request_line_bytes_max", "head_bytes_max", rule);
    }
    if config.shutdown_delay > config.shutdown_timeout / DELAY_SHARE {
        let rule = "expected a delay of at most a third of the whole budget";
        return against("shutdown_delay", "shutdown_timeout", rule);
    }
    if config.pool_job_timeout < config.statement_timeout {
        let rule = "the database is to end a statement before it is given up: expected no less";
        return against("pool_job_timeout", "statement_timeout", rule);
    }
    if !config.shutdown_wait_for_connections && !config.shutdown_force_after_timeout {
        let rule = "what is not waited for is ended by force: expected one of them to be true";
        let force = "shutdown_force_after_timeout";
        return against("shutdown_wait_for_connections", force, rule);
    }
    for (at, address) in config.listen.iter().enumerate() {
        if config.listen[..at].iter().any(|earlier| earlier.is_same_place(address)) {
            let item = address.to_string();
            return Err(ConfigError::Repeated { setting: setting(LISTEN), item });
        }
    }
    match &config.admin_listen {
        Some(admin) if config.listen.iter().any(|address| address.is_same_place(admin)) => {
            against("admin_listen", LISTEN, "expected an address of its own")
        }
        _ => Ok(()),
    }
}

/// The exit status of a bad configuration, `EX_CONFIG` of sysexits(3).
pub const EXIT_CONFIG: u8 = 78;

/// The exit status of a command line that is not understood, as clap has it.
pub const EXIT_USAGE: u8 = 2;

/// The lame duck gets at most this part of the budget; the other phases need the rest.
const DELAY_SHARE: u32 = 3;

const DATABASE_URL: &str = "database_url";
const REDIS_URL: &str = "redis_url";
const LISTEN: &str = "listen";
const PORT: &str = "PORT";
