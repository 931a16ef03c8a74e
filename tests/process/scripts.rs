//! The scripts of `loadtest/`: each is really run, for a second.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::support::server::Launch;
use crate::support::tools::{run, stdout, tool};
use crate::support::{alone, beside_others};

/// A file of `loadtest/`.
pub fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("loadtest").join(name)
}

/// What a script of `loadtest/wrk` said in wrk's last line.
pub fn summary(said: &str) -> Value {
    serde_json::from_str(said.trim_end().lines().last().unwrap_or_default())
        .unwrap_or_else(|error| panic!("{error}: {said}"))
}

/// Name, path and what stands behind `--`.
const WRK: [(&str, &str, &[&str]); 7] = [
    ("summary", "/plaintext", &[]),
    ("pipelined", "/plaintext", &[]),
    ("pipelined", "/json", &["16"]),
    ("post", "/echo", &[]),
    ("post", "/echo", &["0"]),
    ("post", "/upload", &["100000"]),
    ("mixed", "/", &[]),
];

#[test]
fn each_wrk_script_is_answered_and_sums_up() {
    let _turn = alone();
    for (name, path, args) in WRK {
        let Some(mut wrk) = tool("wrk") else { return };
        let server = Launch::new().start();
        wrk.args(["-t2", "-c8", "-d1s", "-s"]).arg(script(&format!("wrk/{name}.lua")));
        let said = summary(&stdout(wrk.arg(server.url(path)).arg("--").args(args)));
        let requests = said["requests"].as_u64().unwrap();
        assert!(requests > 100, "{name}: {said}");
        for kind in ["connect", "read", "write", "timeout", "status"] {
            assert_eq!(said["errors"][kind], 0, "{name}: {said}");
        }
        let latency = &said["latency_ms"];
        if name == "pipelined" {
            assert!(latency["p50"].is_null(), "{name}: {said}");
        } else {
            let points =
                ["p50", "p90", "p99", "p99_9", "max"].map(|p| latency[p].as_f64().unwrap());
            assert!(points[0] > 0.0 && points.is_sorted(), "{name}: {said}");
        }
        // What wrk counts as answered was answered; some were under way when it ended.
        let report = server.stop();
        assert!(report["requests"]["begun"].as_u64().unwrap() >= requests, "{report:#}");
    }
}

#[test]
fn a_wrk_script_counts_what_went_wrong() {
    let _turn = alone();
    let Some(mut wrk) = tool("wrk") else { return };
    let server = Launch::new().start();
    wrk.args(["-t1", "-c2", "-d1s", "-s"]).arg(script("wrk/post.lua"));
    let said = summary(&stdout(wrk.arg(server.url("/plaintext"))));
    assert!(said["requests"].as_u64().unwrap() > 100, "{said}");
    assert_eq!(said["errors"]["status"], said["requests"], "{said}");
    server.stop();
}

#[test]
fn scripts_that_start_servers_refuse_what_they_do_not_know() {
    let _turn = beside_others();
    let wrong: [(&str, &[&str], &str); 6] = [
        ("peers/run", &[], "expected axum, hyper, actix, nginx or build"),
        ("peers/run", &["apache", "127.0.0.1:1"], "not apache"),
        ("peers/run", &["axum"], "expected an address"),
        ("peers/run", &["nginx", "systemd"], "nginx wants an address"),
        ("proxies/run", &["nginx", "127.0.0.1:1"], "those of the servers behind it"),
        ("proxies/run", &["squid", "127.0.0.1:1", "127.0.0.1:2"], "not squid"),
    ];
    for (name, args, expected) in wrong {
        let output = run(Command::new(script(name)).args(args));
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{name} {args:?}: {said}");
        assert!(said.contains(expected), "{name} {args:?}: {said}");
    }
}
