//! The configuration as an operator meets it: three places to write a key, one line when it is
//! wrong. Nothing here touches the process's own environment or working directory.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ebbtide::internal::config::{
    Command, Config, Detail, EXIT_CONFIG, EXIT_USAGE, HealthCheck, Invocation, LoadError,
    LogFormat, Source, load, markdown_table, print_config, sample_settings,
};
use log::LevelFilter;

#[path = "config/refusals.rs"]
mod refusals;

/// A working directory of one test's own, and what the process would have been given in it.
struct Site {
    cwd: PathBuf,
    args: Vec<OsString>,
    env: BTreeMap<String, OsString>,
}

impl Site {
    fn new(name: &str) -> Self {
        let cwd = Path::new(env!("CARGO_TARGET_TMPDIR")).join("config").join(name);
        fs::create_dir_all(&cwd).expect("a folder for the test");
        let site = Self { cwd, args: vec!["ebbtide".into()], env: BTreeMap::new() };
        if site.cwd.join("config").exists() {
            fs::remove_dir_all(site.cwd.join("config")).expect("what an earlier run has left");
        }
        site
    }

    fn settings(self, text: impl AsRef<[u8]>) -> Self {
        self.file("config/settings.toml", text)
    }

    fn file(self, path: &str, text: impl AsRef<[u8]>) -> Self {
        let path = self.cwd.join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder for the file");
        fs::write(path, text).expect("a file in the test's folder");
        self
    }

    fn args(mut self, args: &str) -> Self {
        self.args.extend(args.split_whitespace().map(OsString::from));
        self
    }

    fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.env.insert(name.to_owned(), value.into());
        self
    }

    fn try_load(&self) -> Result<Invocation, LoadError> {
        load(self.args.clone(), &|name| self.env.get(name).cloned(), &self.cwd)
    }

    #[track_caller]
    fn load(&self) -> Invocation {
        self.try_load().unwrap_or_else(|error| panic!("{error}"))
    }

    /// The line of a configuration error.
    #[track_caller]
    fn refusal(&self) -> String {
        let error = self.try_load().expect_err("a bad configuration");
        assert!(matches!(error, LoadError::Config(_)), "{error}");
        assert_eq!(error.exit_status(), EXIT_CONFIG);
        error.to_string()
    }
}

fn keys() -> Vec<String> {
    let invocation = Site::new("keys").load();
    let text = print_config(&invocation.config, &invocation.sources);
    text.lines().map(|line| line.split(" = ").next().expect("a key").to_owned()).collect()
}

#[test]
fn with_nothing_given_the_defaults_serve() {
    let invocation = Site::new("nothing").load();
    assert_eq!(invocation.command, Command::Serve);
    let config = invocation.config;
    assert_eq!(config, Config::default());
    assert_eq!(config.listen, ["127.0.0.1:8080".parse().unwrap()]);
    assert_eq!(config.admin_listen, Some("127.0.0.1:9464".parse().unwrap()));
    assert_eq!((config.workers, config.max_connections), (None, None));
    assert_eq!((config.max_in_flight, config.blocking_threads), (10_000, 64));
    assert_eq!((config.head_bytes_max, config.request_line_bytes_max), (32 << 10, 8 << 10));
    assert_eq!((config.body_bytes_max, config.upload_bytes_max), (1 << 20, 1 << 30));
    assert_eq!(config.keep_alive_timeout, Duration::from_secs(75));
    assert_eq!(config.shutdown_timeout, Duration::from_secs(30));
    assert_eq!(config.shutdown_delay, Duration::ZERO);
    assert_eq!(config.shutdown_report_path, None);
    assert_eq!((config.log_level, config.log_format), (LevelFilter::Info, LogFormat::Auto));
    assert!(config.lab_routes && config.health_on_public && !config.access_log);
}

#[test]
fn every_layer_wins_over_the_one_before() {
    let given = |site: &Site| {
        let Invocation { config, sources, .. } = site.load();
        (config.shutdown_timeout.as_secs(), sources.of("shutdown_timeout").to_string())
    };
    let site = Site::new("layers");
    assert_eq!(given(&site), (30, "default".to_owned()));
    let site = site.settings("# one\nlog_level = 'warn'\nshutdown_timeout = 31\n");
    assert_eq!(given(&site), (31, "config/settings.toml line 3".to_owned()));
    let site = site.env("SHUTDOWN_TIMEOUT", "32");
    assert_eq!(given(&site), (32, "environment variable SHUTDOWN_TIMEOUT".to_owned()));
    let site = site.args("--shutdown-timeout 33");
    assert_eq!(given(&site), (33, "flag --shutdown-timeout".to_owned()));
}

#[test]
fn values_may_be_native_or_text() {
    let config = |text: &str| Site::new("native").settings(text).load().config;
    for text in ["head_timeout = 1.5", "head_timeout = '1.5'", "head_timeout = '1s 500ms'"] {
        assert_eq!(config(text).head_timeout, Duration::from_millis(1_500), "{text}");
    }
    for text in ["body_bytes_max = 65_536", "body_bytes_max = 0x10000", "body_bytes_max = '64KiB'"]
    {
        assert_eq!(config(text).body_bytes_max, 65_536, "{text}");
    }
    for text in ["access_log = true", "access_log = 'True'"] {
        assert!(config(text).access_log, "{text}");
    }
    for text in ["workers = 0", "workers = '0'"] {
        assert_eq!(config(text).workers, Some(0), "{text}");
    }
    for text in ["listen = '[::]:80, unix:/a'", "listen = ['[::]:80',\n'unix:/a']"] {
        let listen = config(text).listen;
        assert_eq!(listen, ["[::]:80".parse().unwrap(), "unix:/a".parse().unwrap()], "{text}");
    }
    assert_eq!(config("admin_listen = 'off'").admin_listen, None);
    assert_eq!(config("\u{feff}workers = 3\r\nlog_format = 'json'\r\n").workers, Some(3));
}

#[test]
fn the_ends_of_a_range_belong_to_it() {
    let outcome = |line: &str| Site::new("range").settings(line).try_load().is_ok();
    for (good, bad) in [
        ("workers = 1024", "workers = 1025"),
        ("max_connections = 1", "max_connections = 0"),
        ("max_in_flight = 1000000", "max_in_flight = 1000001"),
        ("blocking_threads = 1", "blocking_threads = 0"),
        ("head_bytes_max = '256KiB'", "head_bytes_max = 262145"),
        ("header_fields_max = 1000", "header_fields_max = -1"),
        ("request_line_bytes_max = 256", "request_line_bytes_max = 255"),
        ("upload_bytes_max = '1TiB'", "upload_bytes_max = '2TiB'"),
        ("first_byte_timeout = 0.1", "first_byte_timeout = 0.099"),
        ("request_timeout = '24h'", "request_timeout = 86400.001"),
        ("shutdown_idle_window = 0", "shutdown_idle_window = '25h'"),
        ("max_in_flight = 10", "max_in_flight = 10.0"),
    ] {
        assert!(outcome(good), "{good}");
        assert!(!outcome(bad), "{bad}");
    }
}

#[test]
fn an_empty_path_is_no_path() {
    let site = Site::new("no-path").settings("shutdown_report_path = '/a'");
    let path = |site: &Site| site.load().config.shutdown_report_path;
    assert_eq!(path(&site), Some(PathBuf::from("/a")));
    let site = site.env("SHUTDOWN_REPORT_PATH", "");
    assert_eq!(path(&site), None);
    assert_eq!(path(&site.args("--shutdown-report-path /b")), Some(PathBuf::from("/b")));
}

#[test]
fn a_named_file_must_be_there_and_the_default_one_need_not() {
    let site = || Site::new("named").file("mine.toml", "workers = 7");
    assert_eq!(site().load().config.workers, None);
    let by_flag = site().args("--config mine.toml").env("EBBTIDE_CONFIG", "missing.toml").load();
    assert_eq!(by_flag.config.workers, Some(7));
    assert_eq!(by_flag.sources.of("workers").to_string(), "mine.toml line 1");
    let by_variable = site().env("EBBTIDE_CONFIG", "mine.toml").load();
    assert_eq!(by_variable.config.workers, Some(7));
    assert_eq!(site().env("EBBTIDE_CONFIG", "").load().config.workers, None);
    assert_eq!(
        site().env("EBBTIDE_CONFIG", "missing.toml").refusal(),
        "missing.toml (named by environment variable EBBTIDE_CONFIG): can not be read: \
         No such file or directory (os error 2)"
    );
    assert_eq!(
        site().args("--config .").refusal(),
        ". (named by flag --config): can not be read: Is a directory (os error 21)"
    );
    assert_eq!(
        site().args("--config=").refusal(),
        "flag --config = \"\": set but empty: expected a path"
    );
    assert_eq!(
        site().settings(vec![b'#'; (1 << 20) + 1]).refusal(),
        "config/settings.toml: can not be read: it is larger than 1048576 bytes"
    );
}

#[test]
fn the_environments_port_changes_the_port_alone() {
    let listen = |site: &Site| {
        let Invocation { config, sources, .. } = site.load();
        let addresses: Vec<String> = config.listen.iter().map(ToString::to_string).collect();
        (addresses.join(" "), sources.of("listen").to_string())
    };
    let by_port = "environment variable PORT".to_owned();
    let site = || Site::new("port").env("PORT", "3000");
    assert_eq!(listen(&site()), ("127.0.0.1:3000".to_owned(), by_port.clone()));
    let of_file = site().settings("listen = '[::]:1,unix:/a'");
    assert_eq!(listen(&of_file), ("[::]:3000 unix:/a".to_owned(), by_port.clone()));
    let of_inherited = site().settings("listen = 'systemd,[::]:1'");
    assert_eq!(listen(&of_inherited), ("systemd [::]:3000".to_owned(), by_port.clone()));
    let of_variable = site().env("LISTEN", "0.0.0.0:1");
    assert_eq!(listen(&of_variable), ("0.0.0.0:3000".to_owned(), by_port));
    let of_flag = site().args("--listen 0.0.0.0:1");
    assert_eq!(listen(&of_flag), ("0.0.0.0:1".to_owned(), "flag --listen".to_owned()));
    let unix_alone = site().env("LISTEN", "unix:/a");
    let expected = ("unix:/a".to_owned(), "environment variable LISTEN".to_owned());
    assert_eq!(listen(&unix_alone), expected);
    assert_eq!(listen(&site().env("PORT", "0")).0, "127.0.0.1:0");
    for port in ["65536", "-1", "http", "80/tcp"] {
        assert_eq!(
            site().env("PORT", port).refusal(),
            format!(
                "environment variable PORT = \"{port}\": \
                 expected a port from 1 to 65535, or 0 for any free one"
            )
        );
    }
}

#[test]
fn log_level_is_read_in_any_case() {
    for (text, level) in [
        ("DEBUG", LevelFilter::Debug),
        ("debug", LevelFilter::Debug),
        ("Warn", LevelFilter::Warn),
        ("off", LevelFilter::Off),
        ("ERROR", LevelFilter::Error),
        ("trace", LevelFilter::Trace),
        (" info ", LevelFilter::Info),
    ] {
        assert_eq!(Site::new("level").env("LOG_LEVEL", text).load().config.log_level, level);
    }
    for text in ["warning", "verbose", "1", "ebbtide=debug"] {
        let line = Site::new("level").env("LOG_LEVEL", text).refusal();
        assert!(line.contains(text), "{line}");
    }
}

#[test]
fn flags_stand_before_or_after_the_command_and_bare_switches_mean_true() {
    let load = |args: &str| {
        let Invocation { command, config, .. } = Site::new("flags").args(args).load();
        (command, config.access_log, config.workers)
    };
    assert_eq!(load("serve"), (Command::Serve, false, None));
    assert_eq!(load("--access-log --workers 2"), (Command::Serve, true, Some(2)));
    assert_eq!(load("--access-log check-config"), (Command::CheckConfig, true, None));
    let report = |file: &str| Command::Report(file.into());
    assert_eq!(load("report a.json --workers 2"), (report("a.json"), false, Some(2)));
    assert_eq!(load("--access-log report -"), (report("-"), true, None));
    assert_eq!(load("print-config --access-log"), (Command::PrintConfig, true, None));
    assert_eq!(load("--access-log false serve --workers=1"), (Command::Serve, false, Some(1)));
    assert_eq!(load("--workers 1 serve --workers 2"), (Command::Serve, false, Some(2)));
    assert_eq!(load("--workers 1 --workers auto"), (Command::Serve, false, None));
    assert!(!Site::new("flags").args("--lab-routes false").load().config.lab_routes);
}

#[test]
fn a_health_check_needs_no_configuration_when_it_is_told_whom_to_ask() {
    let check = |args: &str| {
        let site = Site::new("health").args("health-check").args(args);
        match site.env("SHUTDOWN_TIMEOUT", "soon").try_load() {
            Ok(Invocation { command: Command::HealthCheck(check), .. }) => Ok(check),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.exit_status()),
        }
    };
    let url = Some("http://[::1]/".to_owned());
    let (timeout, detail) = (Duration::from_secs(5), Detail::Brief);
    let expected = HealthCheck { url, timeout, wait_shutdown: None, detail };
    assert_eq!(check("--url http://[::1]/"), Ok(expected.clone()));
    let timeout = Duration::from_millis(250);
    let verbose = HealthCheck { timeout, detail: Detail::Verbose, ..expected.clone() };
    assert_eq!(check("--url http://[::1]/ --timeout 250ms --verbose"), Ok(verbose));
    let wait = |seconds| {
        Ok(HealthCheck { wait_shutdown: Some(Duration::from_secs(seconds)), ..expected.clone() })
    };
    assert_eq!(check("--url http://[::1]/ --wait-shutdown"), wait(30));
    assert_eq!(check("--wait-shutdown 7 --url http://[::1]/"), wait(7));
    assert_eq!(check(""), Err(EXIT_CONFIG));
    for wrong in ["--timeout 0", "--timeout soon", "--wait-shutdown -1", "--url", "now"] {
        assert_eq!(check(wrong), Err(EXIT_USAGE), "{wrong}");
    }
}

#[test]
fn help_and_usage_errors_are_told_apart() {
    let answer = |args: &str| Site::new("help").args(args).try_load().expect_err("no invocation");
    let help = answer("--help");
    assert_eq!((help.exit_status(), matches!(help, LoadError::Answer(_))), (0, true));
    let help = help.to_string();
    for key in keys() {
        let flag = format!("--{} ", key.replace('_', "-"));
        assert!(help.contains(&flag), "{flag}");
        assert!(help.contains(&format!("[env: {}", key.to_uppercase())), "{key}");
    }
    let version = format!("ebbtide {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(answer("--version"), LoadError::Answer(version));
    for args in ["--wrkers 1", "--workers", "prnt-config", "serve extra"] {
        let error = answer(args);
        assert_eq!((error.exit_status(), matches!(error, LoadError::Usage(_))), (EXIT_USAGE, true));
    }
    assert!(answer("--wrkers 1").to_string().contains("'--workers'"));
}

#[test]
fn print_config_says_where_each_value_came_from_and_loads_back() {
    let site = Site::new("print")
        .settings("\n\n\naccess_log = true\nadmin_listen = 'off'\nbody_bytes_max = '10kB'\n")
        .env("LOG_LEVEL", "DEBUG")
        .env("LISTEN", "[::]:80,unix:/run/a \"b\"\\c")
        .env("SHUTDOWN_REPORT_PATH", "/tmp/ü # \\n \"x\"")
        .args("--workers 0 --head-timeout 0.25 print-config");
    let Invocation { command, config, sources } = site.load();
    assert_eq!(command, Command::PrintConfig);
    let text = print_config(&config, &sources);
    for line in [
        "access_log = true  # config/settings.toml line 4",
        "admin_listen = \"off\"  # config/settings.toml line 5",
        "body_bytes_max = 10000  # config/settings.toml line 6",
        "log_level = \"debug\"  # environment variable LOG_LEVEL",
        "workers = 0  # flag --workers",
        "head_timeout = \"250ms\"  # flag --head-timeout",
        "shutdown_timeout = \"30s\"  # default",
    ] {
        assert!(text.lines().any(|printed| printed == line), "{line}\n{text}");
    }
    let again = Site::new("print-again").settings(&text).load();
    assert_eq!(again.config, config);
    let whole = Source::File { path: "config/settings.toml".to_owned(), line: 1 };
    assert_eq!(*again.sources.of("listen"), whole);
}

/// `UPDATE=1 cargo test --test config` writes the committed file anew.
#[test]
fn the_committed_settings_file_is_what_the_table_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/settings.toml");
    let sample = sample_settings();
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, &sample).expect("the committed file can be written");
    }
    let committed = fs::read_to_string(&path).expect("the committed file");
    assert_eq!(committed, sample, "UPDATE=1 writes it anew");
    assert!(committed.lines().all(|line| line.len() <= 100));

    assert_eq!(Site::new("sample").settings(&sample).load().config, Config::default());
    let keys = keys();
    let is_key = |line: &str| keys.iter().any(|key| line.starts_with(&format!("# {key} = ")));
    let live = |line| if is_key(line) { &line["# ".len()..] } else { line };
    let text = sample.lines().map(live).collect::<Vec<_>>().join("\n");
    assert_eq!(
        text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).count(),
        keys.len()
    );
    let uncommented = Site::new("sample").settings(&text).load();
    assert_eq!(uncommented.config, Config::default());
    for key in &keys {
        assert!(matches!(uncommented.sources.of(key), Source::File { .. }), "{key}");
    }
    for section in ["Server", "Limits", "Shutdown", "Logs", "Application"] {
        assert!(sample.contains(&format!("\n# ==== {section} ====\n")), "{section}");
    }
}

#[test]
fn the_markdown_table_has_a_row_of_four_cells_for_every_key() {
    let table = markdown_table();
    let rows: Vec<&str> = table.lines().skip(2).collect();
    let keys = keys();
    assert_eq!(rows.len(), keys.len());
    for (row, key) in rows.iter().zip(keys) {
        assert!(row.starts_with(&format!("| `{key}` | ")), "{row}");
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        assert_eq!(cells.len(), 4, "{row}");
        assert!(cells.iter().all(|cell| !cell.is_empty()), "{row}");
    }
}

#[test]
fn a_secret_is_never_shown() {
    let url = "postgres://me:hunter2@db/items";
    let site = Site::new("secret").env("DATABASE_URL", url);
    let Invocation { config, sources, .. } = site.load();
    assert_eq!(config.database_url.as_ref().unwrap().expose(), url);
    let printed = print_config(&config, &sources);
    assert!(
        printed.contains(
            "# database_url = \"postgres://***@db/items\"  # environment variable DATABASE_URL\n"
        ),
        "{printed}"
    );
    assert!(!format!("{config:?}{printed}").contains("hunter2"));

    let in_error = |site: Site| {
        let line = site.refusal();
        assert!(!line.contains("hunter2"), "{line}");
        line
    };
    let line = in_error(Site::new("secret_env").env("DATABASE_URL", "hunter2\u{1b}x"));
    assert!(line.starts_with("environment variable DATABASE_URL = ***: expected"), "{line}");
    in_error(Site::new("secret_flag").arg("--database-url").arg("hunter2\u{7}x"));
    in_error(Site::new("secret_file").settings("database_url = [\"hunter2\"]\n"));
    in_error(Site::new("secret_open").settings("database_url = \"hunter2\n"));
    in_error(
        Site::new("secret_bytes").env("DATABASE_URL", OsString::from_vec(b"hunter2\xff".into())),
    );
}

#[test]
fn a_secret_may_be_in_a_file() {
    let site = Site::new("secret_in_file")
        .file("config/dsn", "https://key@sentry.example/1\n")
        .env("SENTRY_DSN_FILE", "config/dsn");
    let Invocation { config, sources, .. } = site.load();
    assert_eq!(config.sentry_dsn.unwrap().expose(), "https://key@sentry.example/1");
    assert_eq!(sources.of("sentry_dsn").to_string(), "environment variable SENTRY_DSN_FILE");

    let line = site.env("SENTRY_DSN", "https://key@sentry.example/1").refusal();
    let expected = "environment variable SENTRY_DSN_FILE = \"config/dsn\": \
                    expected it without SENTRY_DSN beside it";
    assert_eq!(line, expected);
    let line = Site::new("no_secret_file").env("REDIS_URL_FILE", "config/absent").refusal();
    assert!(line.contains("named by environment variable REDIS_URL_FILE"), "{line}");
    let site = Site::new("blank_secret_file").file("config/url", " \n");
    let line = site.env("DATABASE_URL_FILE", "config/url").refusal();
    assert!(line.ends_with("DATABASE_URL_FILE): can not be read: it is empty"), "{line}");
    // What is no secret has no such variable.
    Site::new("no_file").env("WORKERS_FILE", "config/absent").load();
}
