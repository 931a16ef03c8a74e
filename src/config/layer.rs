//! The layers a value can come from, later ones over earlier ones: default < file < environment <
//! flag.
//!
//! Every value given is read, also one that a later layer covers: a file that is good only as long
//! as somebody sets a flag over its mistake is not good.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use super::secret::HIDDEN;
use super::source::{ConfigError, Source, Sources, shown_text};
use super::table::KEYS;
use super::value::{Input, Kind};

/// A value as one layer gave it.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) input: Input,
    /// The value ready to be displayed, as it looks at its source.
    pub(super) shown: String,
    pub(super) source: Source,
}

impl Entry {
    /// An environment value or a flag's.
    ///
    /// # Errors
    /// When the text is not UTF-8.
    pub(super) fn from_os(
        key: &'static str,
        source: Source,
        text: &OsStr,
    ) -> Result<Self, ConfigError> {
        let shown =
            if is_secret(key) { HIDDEN.to_owned() } else { shown_text(&text.to_string_lossy()) };
        let Some(text) = text.to_str() else {
            let expected = "expected UTF-8 text".to_owned();
            return Err(ConfigError::Value { source, key, value: shown, expected });
        };
        Ok(Self { input: Input::Text(text.to_owned()), shown, source })
    }

    /// The error for a value that can not be read; `expected` ends its sentence.
    pub(super) fn refuse(self, key: &'static str, mut expected: String) -> ConfigError {
        if self.input.is_blank() {
            expected.insert_str(0, "set but empty: ");
        }
        ConfigError::Value { source: self.source, key, value: self.shown, expected }
    }
}

/// Whether the key of this name holds what is never shown.
pub(super) fn is_secret(name: &str) -> bool {
    KEYS.iter().any(|key| key.name == name && key.kind.is_secret())
}

/// What one source gave, by key.
pub(super) type Layer = BTreeMap<&'static str, Entry>;

/// The environment's layer. A secret may be in a file that a variable names, as a path that starts
/// at `cwd`.
///
/// # Errors
/// When a variable of ours is not UTF-8, when a file can not be read, when a secret is given twice.
pub(super) fn environment(
    env: &dyn Fn(&str) -> Option<OsString>,
    cwd: &Path,
) -> Result<Layer, ConfigError> {
    let mut layer = Layer::new();
    for key in KEYS {
        let variable = key.variable();
        if let Some(text) = env(&variable) {
            let source = Source::Environment(variable);
            layer.insert(key.name, Entry::from_os(key.name, source, &text)?);
        }
        let Some(variable) = key.file_variable() else { continue };
        if let Some(path) = env(&variable).filter(|path| !path.is_empty()) {
            let entry = secret_file(key.name, variable, &path, cwd)?;
            if layer.insert(key.name, entry).is_some() {
                let expected = format!("expected it without {} beside it", key.variable());
                let source = Source::Environment(format!("{}_FILE", key.variable()));
                let value = shown_text(&path.to_string_lossy());
                return Err(ConfigError::Value { source, key: key.name, value, expected });
            }
        }
    }
    Ok(layer)
}

/// A secret from the file that `variable` names.
///
/// # Errors
/// When the file cannot be read, or has nothing in it.
fn secret_file(
    key: &'static str,
    variable: String,
    path: &OsStr,
    cwd: &Path,
) -> Result<Entry, ConfigError> {
    let source = Source::Environment(variable);
    let read = super::file::bytes_of(&cwd.join(path)).and_then(|bytes| {
        // A secret that nobody has filled in yet, which is another thing than none.
        let is_blank = bytes.trim_ascii().is_empty();
        if is_blank { Err(io::Error::other("it is empty")) } else { Ok(bytes) }
    });
    match read {
        Ok(bytes) => Entry::from_os(key, source, &OsString::from_vec(bytes)),
        Err(error) => Err(ConfigError::Unreadable {
            path: path.to_string_lossy().into_owned(),
            named_by: Some(source),
            reason: error.to_string(),
        }),
    }
}

/// All that was given.
#[derive(Debug, Default)]
pub(super) struct Layers {
    pub(super) file: Layer,
    pub(super) environment: Layer,
    pub(super) flags: Layer,
}

impl Layers {
    /// The value of one key, and its source noted.
    ///
    /// # Errors
    /// The first value given, in the order of the layers, that the kind does not take.
    pub(super) fn read<K: Kind>(
        &self,
        key: &'static str,
        default: &str,
        kind: &K,
        sources: &mut Sources,
    ) -> Result<K::Value, ConfigError> {
        let read = |entry: &Entry| {
            kind.read(&entry.input).map_err(|expected| entry.clone().refuse(key, expected))
        };
        let default = Entry {
            input: Input::Text(default.to_owned()),
            shown: shown_text(default),
            source: Source::Default,
        };
        let mut value = read(&default)?;
        for layer in [&self.file, &self.environment, &self.flags] {
            if let Some(entry) = layer.get(key) {
                value = read(entry)?;
                sources.set(key, entry.source.clone());
            }
        }
        Ok(value)
    }
}
