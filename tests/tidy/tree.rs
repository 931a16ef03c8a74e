//! The repository's files, read once, and how a check says what it found.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use crate::source::Source;

/// Every text file, by its path from the root: not what is ignored, built or locked.
pub(crate) static FILES: LazyLock<Vec<(String, String)>> = LazyLock::new(|| {
    let mut files = Vec::new();
    collect(&root(), "", &mut files);
    files.sort();
    files
});

/// Every `.rs` file.
pub(crate) static SOURCES: LazyLock<Vec<Source>> = LazyLock::new(|| {
    let is_rust = |path: &str| Path::new(path).extension().is_some_and(|end| end == "rs");
    let rust = FILES.iter().filter(|(path, _)| is_rust(path));
    rust.map(|(path, text)| Source::new(path.clone(), text.clone())).collect()
});

/// The files of the crate itself.
pub(crate) fn src() -> impl Iterator<Item = &'static Source> {
    SOURCES.iter().filter(|source| source.path.starts_with("src/"))
}

/// The files of the crate and of the load generator: what is no test.
pub(crate) fn programs() -> impl Iterator<Item = &'static Source> {
    let places = ["src/", "loadtest/src/"];
    SOURCES.iter().filter(move |source| places.iter().any(|place| source.path.starts_with(place)))
}

pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// A file that is there to be read.
pub(crate) fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn collect(folder: &Path, inside: &str, files: &mut Vec<(String, String)>) {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{inside}: {error}"));
    for entry in entries {
        let entry = entry.expect("the entries of a folder can be read");
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = if inside.is_empty() { name.clone() } else { format!("{inside}/{name}") };
        let kind = entry.file_type().expect("an entry has a type");
        let is_ours = ![".git", "target"].contains(&name.as_str()) && path != "loadtest/results";
        if kind.is_dir() && is_ours {
            collect(&entry.path(), &path, files);
        } else if kind.is_file()
            && name != "Cargo.lock"
            && let Ok(text) = fs::read_to_string(entry.path())
        {
            files.push((path, text));
        }
    }
}

/// Findings of one check.
#[derive(Default)]
pub(crate) struct Findings(Vec<String>);

impl Findings {
    /// Notes what is wrong at a line.
    pub(crate) fn at(&mut self, path: &str, line: usize, what: impl AsRef<str>) {
        self.0.push(format!("{path}:{line}: {}", what.as_ref()));
    }

    /// Notes what is wrong with a whole file, or with the tree.
    pub(crate) fn note(&mut self, what: impl Into<String>) {
        self.0.push(what.into());
    }

    /// Fails the check when there is something; `instead` says what to do about it.
    pub(crate) fn none_or(self, instead: &str) {
        let count = self.0.len();
        assert!(count == 0, "{count} found\n{}\n=> {instead}", self.0.join("\n"));
    }
}
