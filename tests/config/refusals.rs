//! What is refused, and the exact line that says so.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use ebbtide::internal::config::{Invocation, LoadError, print_config};
use proptest::prelude::{ProptestConfig, any, prop_assert, prop_assert_eq, proptest};
use proptest::sample::Index;

use super::{Site, keys};

#[test]
fn a_mistake_that_a_later_layer_covers_is_still_one() {
    let site = Site::new("covered").settings("workers = 'many'").args("--workers 2");
    let expected = "config/settings.toml line 1: workers = 'many': \
                    expected \"auto\" or a whole number from 0 to 1024";
    assert_eq!(site.refusal(), expected);
}

#[test]
fn a_bad_value_in_the_file_is_named_with_its_line() {
    assert_eq!(
        Site::new("bad-value").settings("\n\nshutdown_timeout = \"soon\" # comment\n").refusal(),
        "config/settings.toml line 3: shutdown_timeout = \"soon\": \
         expected a duration such as 30, \"500ms\" or \"1m\", from 100ms to 24h"
    );
    for (text, expected) in [
        ("access_log = 1", "expected true or false"),
        ("log_level = ['info']", "expected one of off, error, warn, info, debug, trace"),
        ("max_in_flight = inf", "expected a whole number from 1 to 1000000"),
        (
            "head_bytes_max = 1979-05-27",
            "expected a size such as 65536, \"64KiB\" or \"1MiB\", from 1KiB to 256KiB",
        ),
        ("shutdown_report_path = 5", "expected a path without control bytes, or nothing for none"),
        (
            "listen = 'localhost:80'",
            "a host name is not looked up: expected an IP address such as 127.0.0.1:8080",
        ),
        (
            "listen = ['[::]:80', 'Systemd']",
            "\"Systemd\": expected 127.0.0.1:8080, [::]:8080 or unix:/path",
        ),
        ("admin_listen = 'systemd'", "expected \"off\" or 127.0.0.1:8080, [::]:8080 or unix:/path"),
        (
            "listen = []",
            "expected 1 to 64 addresses such as 127.0.0.1:8080, [::]:8080, unix:/path or systemd, \
             separated by commas",
        ),
        ("admin_listen = false", "expected \"off\" or 127.0.0.1:8080, [::]:8080 or unix:/path"),
    ] {
        let line = Site::new("bad-value").settings(text).refusal();
        assert_eq!(line, format!("config/settings.toml line 1: {text}: {expected}"));
    }
    assert_eq!(
        Site::new("bad-value").settings("header_fields_max = [1,\n 2]").refusal(),
        "config/settings.toml line 1: header_fields_max = [1,\\n 2]: \
         expected a whole number from 1 to 1000"
    );
}

#[test]
fn a_bad_value_elsewhere_is_named_with_its_variable_or_flag() {
    let site = || Site::new("elsewhere");
    assert_eq!(
        site().env("LOG_LEVEL", "loud").refusal(),
        "environment variable LOG_LEVEL = \"loud\": \
         expected one of off, error, warn, info, debug, trace"
    );
    assert_eq!(
        site().env("WORKERS", "").refusal(),
        "environment variable WORKERS = \"\": set but empty: \
         expected \"auto\" or a whole number from 0 to 1024"
    );
    assert_eq!(
        site().args("--workers -1").refusal(),
        "flag --workers = \"-1\": expected \"auto\" or a whole number from 0 to 1024"
    );
    assert_eq!(
        site().args("check-config --access-log=maybe").refusal(),
        "flag --access-log = \"maybe\": expected true or false"
    );
}

#[test]
fn a_file_that_is_not_one_flat_list_of_known_keys_is_refused() {
    for (text, expected) in [
        (
            "log_level = 'info'\nshutdown_timout = 3",
            "line 2: unknown key \"shutdown_timout\": did you mean \"shutdown_timeout\"?",
        ),
        ("access-log = true", "line 1: unknown key \"access-log\": did you mean \"access_log\"?"),
        (
            "colour = 1\nbeta = 2",
            "line 1: unknown key \"colour\": expected a key that `ebbtide print-config` lists",
        ),
        (
            "\n[Server]\nworkers = 1",
            "line 2: \"Server\" is a table: expected one flat list of keys without [headings]",
        ),
        (
            "workers = 1\nlab_routes = true\nworkers = 2",
            "line 3: workers = 2: not TOML: duplicate key",
        ),
        ("workers = = 1", "line 1: workers = = 1: not TOML: extra `=`, expected nothing"),
        (
            "workers = \"1\nlog_level = 'info'",
            "line 1: workers = \"1: not TOML: invalid basic string, expected `\"`",
        ),
    ] {
        let line = Site::new("bad-file").settings(text).refusal();
        assert_eq!(line, format!("config/settings.toml {expected}"));
    }
    assert_eq!(
        Site::new("bad-file").settings(b"workers = 1\nlog_level = '\xff'").refusal(),
        "config/settings.toml line 2: log_level = '\u{fffd}': not TOML: expected UTF-8 text"
    );
}

#[test]
fn what_is_hostile_is_shown_escaped_and_cut() {
    let line = Site::new("hostile").env("LOG_LEVEL", "\u{1b}[2J\n\"info").refusal();
    assert!(
        line.starts_with(r#"environment variable LOG_LEVEL = "\u{1b}[2J\n\"info": "#),
        "{line}"
    );
    let line =
        Site::new("hostile").settings(format!("log_level = '{}'", "x".repeat(99_999))).refusal();
    assert!(line.contains("xxx... (100001 bytes): expected one of"), "{line}");
    assert!(line.len() < 300, "{line}");
    let line = Site::new("hostile").settings("\"a\\u001bb\" = 1").refusal();
    assert!(line.contains(r#"unknown key "a\u{1b}b": "#), "{line}");
    let deep = format!("workers = {}", "[".repeat(500_000));
    assert!(Site::new("hostile").settings(deep).refusal().contains("not TOML"));
}

#[test]
fn keys_that_contradict_each_other_are_both_named() {
    let site = || Site::new("contradiction");
    assert_eq!(
        site().settings("head_bytes_max = '4KiB'").refusal(),
        "request_line_bytes_max = \"8KiB\" (default) contradicts \
         head_bytes_max = \"4KiB\" (config/settings.toml line 1): \
         the request line is part of the head: expected no more than its limit"
    );
    assert_eq!(
        site().env("SHUTDOWN_DELAY", "5001ms").args("--shutdown-timeout 15").refusal(),
        "shutdown_delay = \"5001ms\" (environment variable SHUTDOWN_DELAY) contradicts \
         shutdown_timeout = \"15s\" (flag --shutdown-timeout): \
         expected a delay of at most a third of the whole budget"
    );
    assert!(site().args("--shutdown-timeout 15 --shutdown-delay 5").try_load().is_ok());
    assert_eq!(
        site().env("PORT", "9464").refusal(),
        "admin_listen = \"127.0.0.1:9464\" (default) contradicts \
         listen = \"127.0.0.1:9464\" (environment variable PORT): expected an address of its own"
    );
    assert_eq!(
        site().args("--listen [::]:1,unix:/a,[::]:1").refusal(),
        "listen = \"[::]:1,unix:/a,[::]:1\" (flag --listen): \
         [::]:1 is there twice: expected it once"
    );
    assert_eq!(
        site().args("--listen systemd,systemd").refusal(),
        "listen = \"systemd,systemd\" (flag --listen): systemd is there twice: expected it once"
    );
    assert!(site().args("--listen [::]:0,[::]:0").try_load().is_ok());
    assert!(site().args("--listen systemd,[::]:1,unix:/a").try_load().is_ok());
}

#[test]
fn text_that_is_not_utf8_is_an_error_and_not_a_panic() {
    let garbage = || OsString::from_vec(vec![b'a', 0xff]);
    let site = || Site::new("utf8");
    assert_eq!(
        site().env("LOG_LEVEL", garbage()).refusal(),
        "environment variable LOG_LEVEL = \"a\u{fffd}\": expected UTF-8 text"
    );
    assert!(site().env("PORT", garbage()).refusal().contains("environment variable PORT"));
    assert!(site().env("EBBTIDE_CONFIG", garbage()).refusal().contains("expected UTF-8 text"));
    assert_eq!(
        site().arg("--shutdown-report-path").arg(garbage()).refusal(),
        "flag --shutdown-report-path = \"a\u{fffd}\": expected UTF-8 text"
    );
    let error = site().arg(garbage()).try_load().expect_err("no command");
    assert!(matches!(error, LoadError::Usage(_)), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn whatever_a_file_holds_the_answer_is_a_configuration_or_one_line(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..200),
        key in any::<Index>(),
    ) {
        let mut text = format!("{} = ", key.get(&keys())).into_bytes();
        text.append(&mut bytes);
        if let Err(error) = Site::new("any-file").settings(&text).try_load() {
            let line = error.to_string();
            prop_assert!(!line.contains(char::is_control), "{line}");
            prop_assert!(line.starts_with("config/settings.toml line "), "{line}");
        }
    }

    #[test]
    fn whatever_is_accepted_prints_to_a_file_that_loads_back(
        text in "[0-9]{1,4}(ms|s|m|h|KiB|MiB|kB|)|true|off|auto|unix:/\\PC{0,9}|/\\PC*|\\PC*",
        key in any::<Index>(),
    ) {
        let site = Site::new("any-value").env(&key.get(&keys()).to_uppercase(), text.as_str());
        match site.try_load() {
            Ok(Invocation { config, sources, .. }) => {
                let printed = print_config(&config, &sources);
                let mut again = Site::new("any-value-again").settings(printed).load().config;
                // All but the secrets, which are not printed.
                again.database_url.clone_from(&config.database_url);
                again.redis_url.clone_from(&config.redis_url);
                again.sentry_dsn.clone_from(&config.sentry_dsn);
                prop_assert_eq!(again, config);
            }
            Err(error) => {
                let line = error.to_string();
                prop_assert!(!line.contains(char::is_control), "{line}");
            }
        }
    }
}
