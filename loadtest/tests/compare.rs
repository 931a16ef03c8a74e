//! `compare` as a process: the real ebbtide beside the floor, each measure once and briefly. What
//! the numbers are is not tested, only that they are there and can be.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Ebbtide's debug build, beside ours.
fn ebbtide() -> PathBuf {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--package", "ebbtide", "--bin", "ebbtide"]);
    cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
    // As the one who runs the tests: with its flags and in its directory.
    assert!(cargo.status().unwrap().success(), "ebbtide does not build");
    let own = Path::new(env!("CARGO_BIN_EXE_loadtest"));
    own.parent().unwrap().parent().unwrap().join("debug/ebbtide")
}

fn compare(name: &str, arguments: &[&str]) -> (Output, PathBuf) {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    // Of an earlier run, when there was one.
    let _removed = fs::remove_dir_all(&out);
    let mut compare = Command::new(env!("CARGO_BIN_EXE_loadtest"));
    compare.args(["compare", "--out"]).arg(&out).args(arguments);
    (compare.output().unwrap(), out)
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

#[test]
fn a_short_run_has_every_number_of_both_servers() {
    let ebbtide = ebbtide();
    let brief = ["--peers", "floor", "--rounds", "1", "--seconds", "1", "--rest", "0.3"];
    let few = ["--connections", "50", "--binary", ebbtide.to_str().unwrap()];
    let (output, out) = compare("compare-both", &[&brief[..], &few].concat());
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));

    let read = |name: &str| fs::read_to_string(out.join(name)).unwrap();
    let csv = read("compare.csv");
    let mut numbers: BTreeMap<&str, Vec<(&str, f64)>> = BTreeMap::new();
    for line in csv.lines().skip(1) {
        let cells: Vec<&str> = line.split(',').collect();
        let [server, metric, _unit, "1", value] = cells[..] else { panic!("{line}") };
        numbers.entry(server).or_default().push((metric, value.parse().unwrap()));
    }
    for server in ["ebbtide", "floor"] {
        // All but the four of two workers, which are measured on demand.
        assert_eq!(numbers[server].len(), 18, "{csv}");
        for (metric, value) in &numbers[server] {
            let may_be_none = ["idle_connection"].contains(metric);
            assert!(*value > 0.0 || may_be_none, "{server} {metric} {value}");
        }
    }
    let markdown = read("compare.md");
    assert!(markdown.contains("| floor | no server"), "{markdown}");
    assert!(!markdown.contains("(unequal)"), "the servers send as many fields: {markdown}");
    assert!(read("compare-keep_alive_cpu.svg").contains(">floor<"));
    assert!(text(&output).contains("| ebbtide over |"), "{}", text(&output));
}

#[test]
fn an_ebbtide_that_does_not_serve_is_a_fault_and_says_what_it_said() {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("compare-broken.sh");
    fs::write(&out, "#!/bin/sh\necho no luck; exit 7\n").unwrap();
    let mut chmod = Command::new("chmod");
    assert!(chmod.arg("+x").arg(&out).status().unwrap().success());
    let arguments = ["--peers", "floor", "--rounds", "1", "--only", "startup,size"];
    let binary = ["--binary", out.to_str().unwrap()];
    let (output, out) = compare("compare-fault", &[&arguments[..], &binary].concat());
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    let said = text(&output);
    assert!(said.contains("FAILED: ebbtide, startup: it ended with exit status: 7"), "{said}");
    assert!(said.contains("no luck"), "{said}");
    let csv = fs::read_to_string(out.join("compare.csv")).unwrap();
    assert!(csv.contains("ebbtide,startup,,,failed") && csv.contains("floor,startup,ms,1,"));
}

#[test]
fn what_cannot_be_is_said_before_anything_is_measured() {
    let (output, _) = compare("compare-unknown", &["--peers", "apache"]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    let most = ["--connections", "100000", "--only", "memory", "--binary", "/bin/sh"];
    let mut limited = Command::new("prlimit");
    limited.arg("--nofile=1000:1000").arg(env!("CARGO_BIN_EXE_loadtest")).arg("compare");
    let output = limited.args(most).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    assert!(text(&output).contains("100000 connections need"), "{}", text(&output));
}
