//! The style as a test: who may name whom, which name stands in which place only, how long things
//! may be, and that the README and the manifest say what the code does.
//!
//! What the compiler and clippy can see (`[lints]` in Cargo.toml, .clippy.toml) is left to them.
//! The two tables come first: a change of the layout begins with a row there, and with its reason.

#[path = "tidy/budgets.rs"]
mod budgets;
#[path = "tidy/manifest.rs"]
mod manifest;
#[path = "tidy/paths.rs"]
mod paths;
#[path = "tidy/readme.rs"]
mod readme;
#[path = "tidy/source.rs"]
mod source;
#[path = "tidy/tree.rs"]
mod tree;

use std::collections::BTreeSet;

use paths::{Path, paths};
use source::{Source, Token};
use tree::{Findings, src};

/// One row per top-level module of `src/`: what it may name of ours. `a` is all of a module, `a::b`
/// what is under that path, `*` everything. A module may always name itself.
const IMPORTS: &[(&str, &[&str], &str)] = &[
    ("drain", &[], "pure: facts in, orders out"),
    ("said", &[], "text of errors and panics, whoever met them"),
    ("awaited", &[], "a word left by who is waited for, found by who waits"),
    ("wakes", &[], "wakes that are held for a batch, by whoever makes many of them"),
    ("cleanup", &["said"], "pure: which hooks run and until when; threads are the server's"),
    ("ledger", &[], "plain counters that every layer writes or reads"),
    ("metrics", &[], "is told facts and gives them names"),
    ("signals", &[], "knows signals, not what they lead to"),
    ("logging", &[], "the library must work with any logger; this one is the binary's"),
    ("os", &[], "system calls, none of our ideas"),
    (
        "reactor",
        &["os", "wakes"],
        "readiness, time and wakes; a socket asks the system for its queue",
    ),
    (
        "pool",
        &["awaited", "os", "said", "wakes"],
        "threads and tickets for any executor; a server sees it from outside",
    ),
    (
        "http",
        &["reactor", "awaited", "ledger", "metrics", "said"],
        "a connection's life on a reactor, in the books",
    ),
    (
        "app",
        &["http", "drain", "ledger", "metrics", "pool", "reactor::sleep", "reactor::blocking"],
        "handlers in, answers out: status from the books, no sockets and no threads",
    ),
    (
        "sentry",
        &["cleanup", "http", "reactor::turn", "said"],
        "hears of failures and panics, sends them on a thread of its own",
    ),
    (
        "report",
        &["cleanup", "drain", "ledger", "http", "logging::visible"],
        "phases, counts and the requests they name, fit for a terminal",
    ),
    (
        "server",
        &[
            "app", "cleanup", "drain", "http", "ledger", "logging", "metrics", "os", "pool",
            "reactor", "report", "signals",
        ],
        "composition: the only place that sees everything, except where settings come from",
    ),
    (
        "config",
        &[
            "server::Address",
            "server::AddressError",
            "pool::PostgresAddress",
            "pool::SqliteAddress",
            "pool::RedisAddress",
        ],
        "reads the world into plain values; an address is parsed by who binds or connects to it",
    ),
    (
        "health_check",
        &["server::Address", "server::HealthOn"],
        "a client: all it knows of servers is where they stand",
    ),
    ("lib", &["*"], "the public face"),
    ("main", &[], "a user of the library: names it as `ebbtide`"),
];

/// A name and the only places of `src/` that may use it.
struct Fence {
    /// `krate::` the crate, `a::b` a path, `.name(` a method, `name!` a macro, `word` a keyword.
    name: &'static str,
    /// Files, or folders with a `/` at their end.
    only_in: &'static [&'static str],
    unit_tests: UnitTests,
    instead: &'static str,
}

/// Whether a fence stands for code under `#[cfg(test)]` as well.
#[derive(PartialEq, Eq)]
enum UnitTests {
    Held,
    Free,
}

use UnitTests::{Free, Held};

#[rustfmt::skip]
const FENCES: &[Fence] = &[
    // Dependencies: each has one home, so that replacing it is a matter of one folder.
    Fence { name: "mio::", only_in: &["src/reactor/"], unit_tests: Held,
        instead: "the reactor wraps what the rest of the server needs of mio" },
    Fence { name: "hyper::", only_in: &["src/http/"], unit_tests: Held,
        instead: "use the types that src/http re-exports" },
    Fence { name: "signal_hook_mio::", only_in: &["src/signals.rs"], unit_tests: Held,
        instead: "use src/signals.rs" },
    Fence { name: "signal_hook::", only_in: &["src/signals.rs"], unit_tests: Held,
        instead: "use src/signals.rs" },
    Fence { name: "libc::", only_in: &["src/os.rs"], unit_tests: Held,
        instead: "give src/os.rs a function that says what the number means" },
    Fence { name: "socket2::",
        only_in: &["src/server/listener.rs", "src/server/inherited.rs", "src/reactor/socket.rs",
            "src/reactor/listener.rs", "src/pool/postgres_connect.rs"],
        unit_tests: Held,
        instead: "make sockets in server/listener.rs; reactor/ sets what exists" },
    Fence { name: "sd_notify::", only_in: &["src/server/inherited.rs", "src/server/manager.rs"],
        unit_tests: Held,
        instead: "what the service manager passed on and is told has its two places" },
    Fence { name: "prometheus::", only_in: &["src/metrics/"], unit_tests: Held,
        instead: "hand the number to src/metrics as a fact or an observation" },
    Fence { name: "env_logger::", only_in: &["src/logging/"], unit_tests: Held,
        instead: "log through the `log` crate" },
    Fence { name: "clap::", only_in: &["src/config/"], unit_tests: Held,
        instead: "a setting is a row of config/table.rs" },
    Fence { name: "toml::", only_in: &["src/config/"], unit_tests: Held,
        instead: "a setting is a row of config/table.rs" },
    Fence { name: "tokio::", only_in: &["src/pool/"], unit_tests: Held,
        instead: "a runtime lives inside threads of the PostgreSQL client, and nowhere else" },
    Fence { name: "tokio_postgres::", only_in: &["src/pool/"], unit_tests: Held,
        instead: "use src/pool" },
    Fence { name: "rustls::", only_in: &["src/pool/postgres_tls.rs"], unit_tests: Held,
        instead: "connect in src/pool" },
    Fence { name: "matchit::", only_in: &["src/app/router.rs"], unit_tests: Held,
        instead: "routes are added to app::Router" },

    Fence { name: "sentry::", only_in: &["src/sentry.rs"], unit_tests: Held,
        instead: "report through src/sentry.rs" },
    Fence { name: "ureq::", only_in: &["src/sentry.rs"], unit_tests: Held,
        instead: "the server is no client; what it reports goes through src/sentry.rs" },
    Fence { name: "backtrace::", only_in: &["src/sentry.rs"], unit_tests: Held,
        instead: "a panic's frames are named by src/sentry.rs" },

    Fence { name: "redis::", only_in: &["src/pool/redis.rs", "src/app/hits.rs"], unit_tests: Held,
        instead: "use pool::Redis" },
    Fence { name: "rusqlite::", only_in: &["src/pool/sqlite.rs"], unit_tests: Held,
        instead: "use pool::Sqlite, or pool::Database for either kind" },

    // The clock: read once per turn, so that all that happens in a turn agrees on the time.
    Fence { name: "Instant::now",
        // The threads of a pool have no turns, and the health check is a process of its own.
        only_in: &[
            "src/reactor/turn.rs", "src/pool/clock.rs", "src/logging/", "src/main.rs",
            "src/health_check.rs",
        ],
        unit_tests: Free,
        instead: "take `now` as an argument: it is the turn's" },
    Fence { name: "turn::clock",
        // An access log's line wants the time its request took, within the turn; who waits for
        // hooks without a server runs no reactor, nor does who reports failures.
        only_in: &["src/http/flow.rs", "src/sentry.rs", "src/server/hooks.rs"], unit_tests: Free,
        instead: "take `now` as an argument: it is the turn's" },
    Fence { name: ".elapsed(", only_in: &[], unit_tests: Free,
        instead: "it reads the clock: subtract from the turn's `now`" },
    Fence { name: "SystemTime::now",
        // A log line's date; the `Date` of a rejection, which hyper has no part in; the date of the
        // shutdown in its report, and what is left of the budget after it.
        only_in: &["src/logging/", "src/http/date.rs", "src/main.rs", "src/server/mod.rs"],
        unit_tests: Free,
        instead: "take the date as an argument" },

    // The process: the library shares it with whoever embeds it.
    Fence { name: "unsafe", only_in: &["src/os.rs"], unit_tests: Held,
        instead: "find a crate with a safe wrapper, or give src/os.rs a function" },
    // (Unit tests ask it whether to write what they compare with.)
    Fence { name: "std::env", only_in: &["src/main.rs"], unit_tests: Free,
        instead: "take it as an argument, as config::load does" },
    Fence { name: "process::exit", only_in: &[], unit_tests: Held,
        instead: "return an outcome: the process ends when `main` returns" },
    Fence { name: "process::abort", only_in: &[], unit_tests: Held,
        instead: "return an outcome: the process ends when `main` returns" },
    Fence { name: "thread::Builder",
        only_in: &["src/server/", "src/reactor/blocking.rs", "src/pool/", "src/logging/",
            "src/sentry.rs", "src/health_check.rs"],
        unit_tests: Free,
        instead: "threads are started by the server, the pools, the log and Sentry's reporter" },
    Fence { name: "thread::spawn", only_in: &[], unit_tests: Free,
        instead: "use thread::Builder with a name, and handle the error" },
    Fence { name: "thread::sleep",
        // /block holds its worker because that is what it is for.
        only_in: &["src/app/lab.rs"], unit_tests: Held,
        instead: "wait for a condition with a deadline" },
    Fence { name: "print!", only_in: &["src/main.rs"], unit_tests: Free,
        instead: "log it: standard output may be a pipe that nobody reads" },
    Fence { name: "println!", only_in: &["src/main.rs"], unit_tests: Free,
        instead: "log it: standard output may be a pipe that nobody reads" },
    Fence { name: "eprint!", only_in: &["src/main.rs"], unit_tests: Free,
        instead: "log it: standard error may be a pipe that nobody reads" },
    Fence { name: "eprintln!", only_in: &["src/main.rs"], unit_tests: Free,
        instead: "log it: standard error may be a pipe that nobody reads" },
];

#[test]
fn modules_name_only_what_the_import_matrix_allows() {
    let mut findings = Findings::default();
    for source in src() {
        let module = top_module(source);
        let Some((_, allowed, reason)) = IMPORTS.iter().find(|row| row.0 == module) else {
            continue;
        };
        for path in paths(source).iter().filter(|path| !path.in_test) {
            if let Some(target) = path.in_our_crate()
                && target.first() != Some(&module)
                && !allowed.iter().any(|allowed| covers(allowed, &target))
            {
                let target = target.join("::");
                let what = format!("`{module}` may not name `{target}` ({reason})");
                findings.at(&source.path, path.line, what);
            }
        }
    }
    findings.none_or(
        "turn the dependency around (facts up, orders down), move the item to where both may name \
         it by its module, or change IMPORTS in tests/tidy.rs with a reason",
    );
}

#[test]
fn the_import_matrix_has_a_row_for_each_module_and_no_other() {
    let rows: BTreeSet<&str> = IMPORTS.iter().map(|row| row.0).collect();
    let modules: BTreeSet<&str> = src().map(top_module).collect();
    assert_eq!(rows.len(), IMPORTS.len(), "a module has two rows in IMPORTS of tests/tidy.rs");
    assert_eq!(rows, modules, "rows of IMPORTS in tests/tidy.rs against the modules of src/");
    for name in IMPORTS.iter().flat_map(|row| row.1).filter(|name| **name != "*") {
        assert!(rows.contains(first_segment(name)), "IMPORTS allows `{name}`, no module of ours");
    }
}

#[test]
fn the_import_matrix_has_no_circle() {
    let mut left: Vec<&str> = IMPORTS.iter().map(|row| row.0).collect();
    while !left.is_empty() {
        let names_none_left = |module: &&str| {
            let row = IMPORTS.iter().find(|row| row.0 == *module).expect("taken from IMPORTS");
            row.1.iter().all(|name| !left.contains(&first_segment(name)))
        };
        let free: Vec<&str> = left.iter().copied().filter(names_none_left).collect();
        assert!(!free.is_empty(), "modules that may import each other in a circle: {left:?}");
        left.retain(|module| !free.contains(module));
    }
}

#[test]
fn the_binary_uses_the_library_and_has_no_modules_of_its_own() {
    let main = src().find(|source| source.path == "src/main.rs").expect("there is a binary");
    let mut findings = Findings::default();
    for token in main.tokens.iter().filter(|token| token.is_word("mod") && !token.in_test) {
        findings.at(&main.path, token.line, "the binary declares a module");
    }
    findings.none_or("move the module to the library and name it through `ebbtide`");
}

#[test]
fn fenced_names_stay_behind_their_fences() {
    let mut findings = Findings::default();
    for source in src() {
        let paths = paths(source);
        for fence in FENCES.iter().filter(|fence| !fence.lets(&source.path)) {
            for line in fence.uses(source, &paths) {
                let (name, instead) = (fence.name, fence.instead);
                findings.at(&source.path, line, format!("`{name}` has no place here: {instead}"));
            }
        }
    }
    findings.none_or("or change FENCES in tests/tidy.rs with a reason");
}

#[test]
fn fences_lead_to_places_that_use_what_they_fence() {
    let mut findings = Findings::default();
    for fence in FENCES {
        for place in fence.only_in {
            let mut inside = src().filter(|source| is_in(&source.path, place));
            if !inside.any(|source| !fence.uses(source, &paths(source)).is_empty()) {
                findings.note(format!("`{}` is not used in {place}", fence.name));
            }
        }
    }
    findings.none_or("take the place out of FENCES in tests/tidy.rs");
}

/// The row of [`IMPORTS`] that rules a file.
fn top_module(source: &Source) -> &str {
    match source.path.as_str() {
        "src/lib.rs" => "lib",
        "src/main.rs" => "main",
        _ => source.module()[0],
    }
}

fn first_segment(path: &str) -> &str {
    path.split_once("::").map_or(path, |(first, _)| first)
}

fn covers(allowed: &str, target: &[&str]) -> bool {
    let allowed: Vec<&str> = allowed.split("::").collect();
    allowed == ["*"] || target.starts_with(&allowed)
}

fn is_in(path: &str, place: &str) -> bool {
    path == place || (place.ends_with('/') && path.starts_with(place))
}

impl Fence {
    fn lets(&self, path: &str) -> bool {
        self.only_in.iter().any(|place| is_in(path, place))
    }

    /// The lines that use the name.
    fn uses(&self, source: &Source, paths: &[Path]) -> Vec<usize> {
        let counts = |in_test: bool| !in_test || self.unit_tests == Held;
        if let Some(method) = self.name.strip_prefix('.') {
            let method = method.trim_end_matches('(');
            return self.sequence(source, |three| {
                three[0].is_mark(".") && three[1].is_word(method) && three[2].is_mark("(")
            });
        }
        if let Some(name) = self.name.strip_suffix('!') {
            return self.sequence(source, |three| three[0].is_word(name) && three[1].is_mark("!"));
        }
        if !self.name.contains("::") {
            return self.sequence(source, |three| three[0].is_word(self.name));
        }
        let named = |path: &&Path| match self.name.strip_suffix("::") {
            Some(krate) => path.segments[0] == krate,
            None => path.contains(&self.name.split("::").collect::<Vec<_>>()),
        };
        let uses = paths.iter().filter(|path| counts(path.in_test)).filter(named);
        uses.map(|path| path.line).collect()
    }

    /// The lines where `is_it` holds for a token and the two behind it.
    fn sequence(&self, source: &Source, is_it: impl Fn(&[Token]) -> bool) -> Vec<usize> {
        let counts = |token: &Token| !token.in_test || self.unit_tests == Held;
        let threes = source.tokens.windows(3).filter(|three| is_it(three) && counts(&three[0]));
        threes.map(|three| three[0].line).collect()
    }
}
