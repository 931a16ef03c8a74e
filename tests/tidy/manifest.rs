//! What the manifest promises: language, licences, the oldest compiler; and what is committed.

use std::path::Path;
use std::process::{Command, Output};
use std::sync::LazyLock;

use serde_json::Value;

use crate::tree::{FILES, Findings, read, root};

/// What may stand at the top of the repository: the layout, what cargo and a reader expect, and
/// settings of tools.
const TOP_LEVEL: [&str; 21] = [
    ".ci",
    ".cargo",
    ".clippy.toml",
    ".config",
    ".gitignore",
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "benches",
    "config",
    "deny.toml",
    "deploy",
    // The README's pictures.
    "docs",
    "examples",
    "loadtest",
    "rustfmt.toml",
    "src",
    "tests",
];

/// `cargo metadata` for the machine at hand: other platforms' crates may not have been fetched.
static METADATA: LazyLock<Value> = LazyLock::new(|| {
    let version = stdout(&cargo(&["-vV"]), "cargo -vV");
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    let host = host.expect("cargo says what it runs on");
    let arguments = ["metadata", "--format-version=1", "--locked", "--filter-platform", host];
    let mut output = cargo(&[&arguments[..], &["--offline"]].concat());
    if !output.status.success() {
        // A fresh clone that has built one package of the workspace lacks those of the others.
        output = cargo(&arguments);
    }
    serde_json::from_str(&stdout(&output, "cargo metadata")).expect("cargo writes JSON")
});

#[test]
fn our_packages_say_language_compiler_and_licence() {
    let mut findings = Findings::default();
    let rust_version = our_rust_version();
    for package in ours() {
        let name = text(package, "name");
        for (key, expected) in
            [("edition", "2024"), ("license", "MIT OR Apache-2.0"), ("rust_version", rust_version)]
        {
            if package[key].as_str() != Some(expected) {
                findings.note(format!("{name}: {key} = {}, not \"{expected}\"", package[key]));
            }
        }
    }
    findings.none_or("write it into the package's Cargo.toml");
}

#[test]
fn no_dependency_needs_a_newer_compiler_than_we_promise() {
    let ours = our_rust_version();
    let mut findings = Findings::default();
    for package in packages() {
        if let Some(theirs) = package["rust_version"].as_str()
            && version(theirs) > version(ours)
        {
            let (name, at) = (text(package, "name"), text(package, "version"));
            findings.note(format!("{name} {at} needs Rust {theirs}, we promise {ours}"));
        }
    }
    findings.none_or("hold the dependency back, or raise rust-version and say so in CHANGELOG.md");
}

#[test]
fn the_licences_of_all_dependencies_are_allowed() {
    let deny = read("deny.toml");
    let allowed = list(&deny, "allow");
    assert!(!allowed.is_empty(), "deny.toml has no list `allow`");
    let mut findings = Findings::default();
    for package in packages() {
        let licence = package["license"].as_str().unwrap_or("none");
        if !is_allowed(licence, &allowed) {
            let (name, at) = (text(package, "name"), text(package, "version"));
            findings.note(format!("{name} {at} is under {licence}"));
        }
    }
    findings.none_or("do without it, or allow its licence in deny.toml");
}

#[test]
fn licence_expressions_are_read_as_spdx_has_them() {
    let allowed = ["MIT", "ISC"];
    for good in ["MIT", "MIT OR GPL-3.0", "GPL-3.0/MIT", "(GPL-3.0 OR MIT) AND ISC"] {
        assert!(is_allowed(good, &allowed), "{good}");
    }
    for bad in ["GPL-3.0", "none", "MIT AND GPL-3.0", "MIT WITH Some-exception", "ISC AND (A OR B)"]
    {
        assert!(!is_allowed(bad, &allowed), "{bad}");
    }
}

#[test]
fn every_lint_that_is_set_says_why() {
    let mut findings = Findings::default();
    let mut is_lints = false;
    for (number, line) in (1..).zip(read("Cargo.toml").lines()) {
        if line.starts_with('[') {
            is_lints = line.contains("lints");
        } else if is_lints && line.contains('=') && !line.contains(" # ") {
            findings.at("Cargo.toml", number, line);
        }
    }
    findings.none_or("write the reason behind it: `lint = \"level\" # reason`");
}

#[test]
fn the_lock_file_is_committed_and_the_top_level_is_that_of_the_layout() {
    if !root().join(".git").exists() {
        assert!(root().join("Cargo.lock").exists(), "a release without its Cargo.lock");
        return;
    }
    let committed = git_files(&["--cached"]);
    assert!(committed.iter().any(|path| path == "Cargo.lock"), "commit Cargo.lock");
    let mut findings = Findings::default();
    for path in git_files(&["--cached", "--others", "--exclude-standard"]) {
        let top = path.split('/').next().unwrap_or_default();
        if !TOP_LEVEL.contains(&top) {
            findings.note(path);
        }
    }
    findings.none_or("move it to where it belongs, or add it to TOP_LEVEL in tests/tidy");
}

/// The files that targets begin with, from the repository's root: those of the workspace, and of
/// the other servers in `loadtest/peers`, whose workspace is not looked at here, by cargo's rule.
pub(crate) fn target_roots() -> Vec<String> {
    let peers = FILES.iter().filter_map(|(path, _)| {
        let inside = path.strip_prefix("loadtest/peers/")?;
        let (folder, file) = inside.rsplit_once('/')?;
        let is_root = file == "lib.rs" || folder.ends_with("src/bin") || folder == "tests";
        is_root.then(|| path.clone())
    });
    let targets = ours().flat_map(|package| package["targets"].as_array().into_iter().flatten());
    let inside = |target: &Value| {
        let path = Path::new(text(target, "src_path")).strip_prefix(root());
        path.expect("the workspace's targets are in it").to_string_lossy().into_owned()
    };
    targets.map(inside).chain(peers).collect()
}

fn packages() -> impl Iterator<Item = &'static Value> {
    METADATA["packages"].as_array().expect("metadata lists packages").iter()
}

/// The packages of the workspace.
fn ours() -> impl Iterator<Item = &'static Value> {
    packages().filter(|package| package["source"].is_null())
}

fn our_rust_version() -> &'static str {
    let us = packages().find(|package| package["name"] == env!("CARGO_PKG_NAME"));
    us.and_then(|us| us["rust_version"].as_str()).expect("Cargo.toml declares rust-version")
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().expect("metadata has the key as text")
}

/// `1.89` and `1.89.0` alike.
fn version(text: &str) -> (u32, u32, u32) {
    let mut parts = text.split('.').map(|part| part.parse().expect("versions are numbers"));
    let mut next = || parts.next().unwrap_or(0);
    (next(), next(), next())
}

/// The strings of `key = [...]` in a TOML file.
fn list<'a>(toml: &'a str, key: &str) -> Vec<&'a str> {
    let start = toml.lines().find(|line| line.starts_with(&format!("{key} = [")));
    let Some(start) = start.and_then(|line| toml.split_once(line)) else { return Vec::new() };
    let lines = start.1.lines().take_while(|line| !line.starts_with(']'));
    lines.filter_map(|line| line.split('"').nth(1)).collect()
}

/// Whether an SPDX expression can be satisfied with the licences allowed. `/` is an old `OR`.
fn is_allowed(expression: &str, allowed: &[&str]) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = words.as_slice();
    let satisfied = any_of(&mut rest, allowed);
    satisfied && rest.is_empty()
}

fn any_of(rest: &mut &[&str], allowed: &[&str]) -> bool {
    let mut satisfied = all_of(rest, allowed);
    while rest.first() == Some(&"OR") {
        *rest = &rest[1..];
        satisfied |= all_of(rest, allowed);
    }
    satisfied
}

fn all_of(rest: &mut &[&str], allowed: &[&str]) -> bool {
    let mut satisfied = one(rest, allowed);
    while rest.first() == Some(&"AND") {
        *rest = &rest[1..];
        satisfied &= one(rest, allowed);
    }
    satisfied
}

fn one(rest: &mut &[&str], allowed: &[&str]) -> bool {
    let Some((first, behind)) = rest.split_first() else { return false };
    *rest = behind;
    if *first == "(" {
        let satisfied = any_of(rest, allowed);
        *rest = rest.get(1..).unwrap_or_default();
        return satisfied;
    }
    if let ["WITH", exception, behind @ ..] = *rest {
        *rest = behind;
        return allowed.contains(&format!("{first} WITH {exception}").as_str());
    }
    allowed.contains(first)
}

fn cargo(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO"));
    command.current_dir(root()).args(arguments).output().expect("cargo can be run")
}

fn git_files(which: &[&str]) -> Vec<String> {
    let mut command = Command::new("git");
    // The tree may belong to another user, as in a container.
    command.current_dir(root()).args(["-c", "safe.directory=*", "ls-files"]).args(which);
    let output = command.output().expect("git can be run");
    stdout(&output, "git ls-files").lines().map(str::to_owned).collect()
}

fn stdout(output: &Output, what: &str) -> String {
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{what} failed: {complaint}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
