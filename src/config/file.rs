//! The configuration file: found, read, and taken apart into entries that know their line.
//!
//! The document is walked with its spans rather than deserialized, since an error has to name the
//! line of a value that is well-formed TOML and yet out of its range.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeInteger, DeTable, DeValue};

use super::layer::{Entry, Layer, is_secret};
use super::secret::HIDDEN;
use super::source::{ConfigError, Source, shown_raw};
use super::table::KEYS;
use super::value::Input;

/// Reads the file `named` by the operator and by what, or the default one in `cwd`, which need not
/// be there.
///
/// # Errors
/// An unreadable file, a file that is not TOML, a table, a key that the table does not have.
pub(super) fn read(named: Option<(String, Source)>, cwd: &Path) -> Result<Layer, ConfigError> {
    let (path, named_by) = match named {
        Some((path, source)) => (path, Some(source)),
        None => (DEFAULT_PATH.to_owned(), None),
    };
    let bytes = match bytes_of(&cwd.join(&path)) {
        Ok(bytes) => bytes,
        Err(error) if named_by.is_none() && is_absent(&error) => return Ok(Layer::new()),
        Err(error) => {
            return Err(ConfigError::Unreadable { path, named_by, reason: error.to_string() });
        }
    };
    let lines = Lines { path: &path, bytes: &bytes };
    let text = str::from_utf8(&bytes)
        .map_err(|error| lines.syntax(error.valid_up_to(), "expected UTF-8 text".to_owned()))?;
    let table = DeTable::parse(text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start);
        lines.syntax(start, error.message().to_owned())
    })?;
    entries(table.into_inner(), text, &lines)
}

/// Whether there is no file, or no folder for it to be in.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

pub(super) fn bytes_of(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other(format!("it is larger than {FILE_BYTES_MAX} bytes")));
    }
    Ok(bytes)
}

/// The file as errors speak of it.
struct Lines<'a> {
    path: &'a str,
    bytes: &'a [u8],
}

impl Lines<'_> {
    fn source(&self, offset: usize) -> Source {
        let before = &self.bytes[..offset.min(self.bytes.len())];
        let line = before.split(|byte| *byte == b'\n').count();
        Source::File { path: self.path.to_owned(), line }
    }

    fn syntax(&self, offset: usize, reason: String) -> ConfigError {
        let offset = offset.min(self.bytes.len());
        let start =
            self.bytes[..offset].iter().rposition(|byte| *byte == b'\n').map_or(0, |n| n + 1);
        let line = self.bytes[start..].split(|byte| *byte == b'\n').next().unwrap_or_default();
        let line = String::from_utf8_lossy(line);
        let text = match line.split_once('=') {
            Some((name, _)) if is_secret(name.trim()) => format!("{} = {HIDDEN}", name.trim()),
            _ => shown_raw(line.trim()),
        };
        ConfigError::Syntax { source: self.source(offset), text, reason }
    }
}

/// Checks names in the order of the lines, so that the first mistake is the one that is reported.
fn entries(table: DeTable<'_>, text: &str, lines: &Lines<'_>) -> Result<Layer, ConfigError> {
    let mut pairs: Vec<(Spanned<_>, Spanned<DeValue<'_>>)> = table.into_iter().collect();
    pairs.sort_by_key(|(key, _)| key.span().start);
    let mut layer = Layer::new();
    for (name, value) in pairs {
        let source = lines.source(name.span().start);
        let name = name.into_inner();
        if matches!(value.get_ref(), DeValue::Table(_)) {
            return Err(ConfigError::Table { source, name: name.into_owned() });
        }
        let Some(key) = KEYS.iter().find(|key| key.name == name) else {
            let nearest = nearest(&name);
            return Err(ConfigError::UnknownKey { source, key: name.into_owned(), nearest });
        };
        let shown =
            if key.kind.is_secret() { HIDDEN.to_owned() } else { shown_value(text, value.span()) };
        layer.insert(key.name, Entry { input: input(value.into_inner()), shown, source });
    }
    Ok(layer)
}

/// The value as it is written in the file.
fn shown_value(text: &str, span: Range<usize>) -> String {
    shown_raw(text.get(span).unwrap_or_default())
}

fn input(value: DeValue<'_>) -> Input {
    match value {
        DeValue::String(text) => Input::Text(text.into_owned()),
        DeValue::Integer(number) => decimal(&number).map_or(Input::Other, Input::Native),
        DeValue::Float(number) => Input::Native(number.as_str().to_owned()),
        DeValue::Boolean(value) => Input::Native(value.to_string()),
        DeValue::Array(items) => {
            let texts = items.into_iter().map(|item| match item.into_inner() {
                DeValue::String(text) => Some(text.into_owned()),
                _ => None,
            });
            texts.collect::<Option<_>>().map_or(Input::Other, Input::List)
        }
        DeValue::Datetime(_) | DeValue::Table(_) => Input::Other,
    }
}

/// TOML integers may be hexadecimal, octal or binary.
fn decimal(number: &DeInteger<'_>) -> Option<String> {
    let number = i128::from_str_radix(number.as_str(), number.radix()).ok()?;
    Some(number.to_string())
}

/// The key that `name` most likely was meant to be, if one is near enough to be worth naming.
fn nearest(name: &str) -> Option<&'static str> {
    let name: String = name.chars().take(NAME_CHARS_MAX).collect();
    let name = name.to_ascii_lowercase().replace('-', "_");
    let (distance, key) = KEYS.iter().map(|key| (distance(&name, key.name), key.name)).min()?;
    (distance <= 1 + name.len() / 4).then_some(key)
}

/// Insertions, removals, replacements and swaps of neighbours that turn `a` into `b` (optimal
/// string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut above_last: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = above[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(above[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(above_last[j - 2] + 1);
            }
            row.push(best);
        }
        above_last = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}

/// Where the file is looked for, in the working directory, when nothing names one.
pub(super) const DEFAULT_PATH: &str = "config/settings.toml";

/// Room for every key with an essay beside it; what is larger is some other file.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// No key is as long; the distance to a longer name need not be known.
const NAME_CHARS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (a, b, expected) in [
            ("", "", 0),
            ("", "abc", 3),
            ("workers", "worker", 1),
            ("workres", "workers", 1),
            ("listen", "silent", 4),
        ] {
            assert_eq!(distance(a, b), expected, "{a} {b}");
            assert_eq!(distance(b, a), expected, "{b} {a}");
        }
    }

    #[test]
    fn a_slip_finds_its_key_and_a_stranger_none() {
        assert_eq!(nearest("shutdown_timout"), Some("shutdown_timeout"));
        assert_eq!(nearest("Shutdown-Timeout"), Some("shutdown_timeout"));
        assert_eq!(nearest("listne"), Some("listen"));
        assert_eq!(nearest("colour"), None);
        assert_eq!(nearest(""), None);
    }
}
