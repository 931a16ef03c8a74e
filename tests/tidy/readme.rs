//! The README's tables are the code's tables. `UPDATE=1 cargo test --test tidy` writes them.

use std::collections::BTreeSet;
use std::fs;
use std::sync::{Mutex, PoisonError};

use ebbtide::internal::{config, metrics};

use crate::tree::{Findings, read, root};

/// Tests run side by side, and two of them may write the README.
static WRITING: Mutex<()> = Mutex::new(());

#[test]
fn the_configuration_table_is_that_of_the_code() {
    check("config table", &config::markdown_table());
}

#[test]
fn the_metrics_table_is_that_of_the_code() {
    check("metrics table", &metrics::markdown_table());
}

#[test]
fn the_metrics_of_the_readme_are_the_metrics_that_there_are() {
    if is_updating() {
        check("metrics table", &metrics::markdown_table());
    }
    let writing = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
    let readme = read("README.md");
    drop(writing);
    let names: BTreeSet<&str> = metrics::names().iter().map(|row| row.0).collect();
    let (_, table, _) = parts(&readme, "metrics table");
    let rows: BTreeSet<&str> = table.lines().filter_map(|row| code(row).next()).collect();
    let mut findings = Findings::default();
    for missing in names.difference(&rows) {
        findings.note(format!("README.md: no row for `{missing}`"));
    }
    for (line, text) in (1..).zip(readme.lines()) {
        for name in code(text).filter(|name| is_like_a_metric(name) && !OTHERS.contains(name)) {
            let family =
                ["_bucket", "_count", "_sum"].iter().find_map(|end| name.strip_suffix(end));
            if !names.contains(name) && !family.is_some_and(|family| names.contains(family)) {
                findings.at("README.md", line, format!("there is no metric `{name}`"));
            }
        }
    }
    findings.none_or("run `UPDATE=1 cargo test --test tidy`, or name it as src/metrics does");
}

/// Compares the part of the README between `<!-- name -->` and `<!-- /name -->` with `table`.
fn check(name: &str, table: &str) {
    let _alone = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
    let readme = read("README.md");
    let (before, written, after) = parts(&readme, name);
    if written.trim() == table.trim() {
        return;
    }
    assert!(
        is_updating(),
        "the {name} of README.md differs from the code's: run `UPDATE=1 cargo test --test tidy`\n\
         {}",
        first_difference(written.trim(), table.trim())
    );
    let updated = format!("{before}\n\n{}\n\n{after}", table.trim());
    fs::write(root().join("README.md"), updated).expect("README.md can be written");
}

fn is_updating() -> bool {
    std::env::var_os("UPDATE").is_some_and(|value| value == "1")
}

/// What stands before, in and behind a part of the README, the markers outside of it.
fn parts<'a>(readme: &'a str, name: &str) -> (&'a str, &'a str, &'a str) {
    let (open, close) = (format!("<!-- {name} -->"), format!("<!-- /{name} -->"));
    let (Some(begin), Some(end)) = (readme.find(&open), readme.find(&close)) else {
        panic!("README.md has no part between `{open}` and `{close}`: add the two lines");
    };
    let begin = begin + open.len();
    assert!(begin <= end, "README.md: `{close}` comes before `{open}`");
    (&readme[..begin], &readme[begin..end], &readme[end..])
}

fn first_difference(written: &str, table: &str) -> String {
    let mut pairs = written.lines().zip(table.lines());
    match pairs.find(|(written, table)| written != table) {
        Some((written, table)) => format!("README: {written}\ncode:   {table}"),
        None => {
            format!("README: {} lines, code: {}", written.lines().count(), table.lines().count())
        }
    }
}

/// What a line has in backticks; of `name{labels}` the name.
fn code(line: &str) -> impl Iterator<Item = &str> {
    let inside = line.split('`').skip(1).step_by(2);
    inside.map(|text| text.split_once('{').map_or(text, |(name, _)| name))
}

/// Names that nothing but a metric has here. (A setting may end in `_seconds`.)
fn is_like_a_metric(name: &str) -> bool {
    let is_name = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    is_name && (name.ends_with("_total") || name.starts_with("http_"))
}

/// Names of the same form that are none: a stage of clean-up hooks.
const OTHERS: [&str; 1] = ["http_drained"];
