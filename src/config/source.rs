//! Where a value came from, and what is said when it can not be used.
//!
//! Every message is one line that can go to a terminal or a log: values are shown escaped and cut,
//! since a configuration may hold any byte and any length.

use std::collections::BTreeMap;
use std::fmt;

/// Where a value came from. Displays as it is named in errors and by `print-config`.
#[allow(missing_docs, reason = "a variant's sentence explains its fields")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Nothing gave the key a value.
    Default,
    /// A line of the configuration file, counted from 1. The path is as the operator wrote it.
    File { path: String, line: usize },
    /// The environment variable of this name: the key's own, or `PORT`.
    Environment(String),
    /// The flag of this name, without its dashes.
    Flag(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{} line {line}", shown_raw(path)),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::Flag(name) => write!(f, "flag --{name}"),
        }
    }
}

/// The source of every key's value.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sources {
    /// Only keys whose value is not from [`Source::Default`].
    given: BTreeMap<&'static str, Source>,
}

impl Sources {
    /// Where the value of `key` came from; [`Source::Default`] for a name that is no key.
    pub fn of(&self, key: &str) -> &Source {
        self.given.get(key).unwrap_or(&Source::Default)
    }

    pub(super) fn set(&mut self, key: &'static str, source: Source) {
        self.given.insert(key, source);
    }
}

/// A key with its value in force, as one side of a contradiction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Its name in the table.
    pub key: &'static str,
    /// The value as TOML.
    pub value: String,
    /// What gave it the value.
    pub source: Source,
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {} ({})", self.key, shown_raw(&self.value), self.source)
    }
}

/// Why there is no configuration. Displays as one line that names the source, the value and what
/// was expected.
#[allow(missing_docs, reason = "a variant's sentence explains its fields")]
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file can not be read, or is larger than any configuration.
    Unreadable {
        path: String,
        /// What named the file; None for the default path.
        named_by: Option<Source>,
        reason: String,
    },
    /// The file is not TOML. `text` is its line, ready to be displayed.
    Syntax { source: Source, text: String, reason: String },
    /// A table in the file, whose keys are one flat list.
    Table { source: Source, name: String },
    /// A key of the file that the table does not have, with the nearest one that it has.
    UnknownKey { source: Source, key: String, nearest: Option<&'static str> },
    /// A value that its key does not take. `value` is ready to be displayed; `expected` ends the
    /// sentence.
    Value { source: Source, key: &'static str, value: String, expected: String },
    /// Two values, each good by itself, that can not both hold.
    Contradiction { first: Box<Setting>, second: Box<Setting>, rule: &'static str },
    /// An address that a list holds twice.
    Repeated { setting: Box<Setting>, item: String },
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { path, named_by: None, reason } => {
                write!(f, "{}: can not be read: {}", shown_raw(path), shown_raw(reason))
            }
            Self::Unreadable { path, named_by: Some(source), reason } => {
                let (path, reason) = (shown_raw(path), shown_raw(reason));
                write!(f, "{path} (named by {source}): can not be read: {reason}")
            }
            Self::Syntax { source, text, reason } => {
                write!(f, "{source}: {text}: not TOML: {}", shown_raw(reason))
            }
            Self::Table { source, name } => write!(
                f,
                "{source}: {} is a table: expected one flat list of keys without [headings]",
                shown_text(name)
            ),
            Self::UnknownKey { source, key, nearest } => {
                write!(f, "{source}: unknown key {}: ", shown_text(key))?;
                match nearest {
                    Some(nearest) => write!(f, "did you mean \"{nearest}\"?"),
                    None => f.write_str("expected a key that `ebbtide print-config` lists"),
                }
            }
            Self::Value { source: source @ Source::File { .. }, key, value, expected } => {
                write!(f, "{source}: {key} = {value}: {expected}")
            }
            Self::Value { source, key: _, value, expected } => {
                write!(f, "{source} = {value}: {expected}")
            }
            Self::Contradiction { first, second, rule } => {
                write!(f, "{first} contradicts {second}: {rule}")
            }
            Self::Repeated { setting, item } => {
                write!(f, "{setting}: {} is there twice: expected it once", shown_raw(item))
            }
        }
    }
}

impl std::error::Error for ConfigError {}

/// A text in quotes, escaped and cut.
pub(super) fn shown_text(text: &str) -> String {
    let (head, rest) = cut(text);
    format!("{head:?}{rest}")
}

/// A text that has its own quotes or needs none: only what would break the line or drive the
/// terminal is escaped. Cut like [`shown_text`].
pub(super) fn shown_raw(text: &str) -> String {
    let (head, rest) = cut(text);
    let mut shown = String::new();
    for c in head.chars() {
        match c {
            '"' | '\'' | '\\' => shown.push(c),
            _ => shown.extend(c.escape_debug()),
        }
    }
    shown + &rest
}

/// The part of `text` to show, and what to say of the rest.
fn cut(text: &str) -> (&str, String) {
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => (&text[..end], format!("... ({} bytes)", text.len())),
        None => (text, String::new()),
    }
}

/// A value is shown so that it is recognised, not in full. Long enough for paths and addresses.
const SHOWN_CHARS_MAX: usize = 120;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_break_the_line_is_escaped() {
        assert_eq!(shown_text("a\nb\u{1b}[31m\"c\""), r#""a\nb\u{1b}[31m\"c\"""#);
        assert_eq!(shown_raw("\"a\"\r\n\u{202e}b"), r#""a"\r\n\u{202e}b"#);
    }

    #[test]
    fn what_is_long_is_cut_between_characters() {
        let long = "é".repeat(5_000);
        let shown = shown_text(&long);
        assert_eq!(shown, format!("\"{}\"... (10000 bytes)", "é".repeat(SHOWN_CHARS_MAX)));
        assert_eq!(shown_raw(&"x".repeat(SHOWN_CHARS_MAX)), "x".repeat(SHOWN_CHARS_MAX));
    }
}
