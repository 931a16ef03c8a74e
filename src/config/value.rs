//! The kinds of values: how each is read, written, and described in words.
//!
//! A kind is the third column of the table: it holds the range, so that the range check, the error
//! message, the help and the documentation can not come to differ. Everything reaches a kind as an
//! [`Input`]; that environment and command line have only text while TOML has numbers and booleans
//! is settled there, once, by writing the latter out as the text they would be.

use std::time::Duration;

use super::units::{duration, show_duration, show_size, size};

/// A value as it was given.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Input {
    /// Text: an environment value, a flag's value, a TOML string.
    Text(String),
    /// A TOML number or boolean, written in decimal or as `true`, `false`.
    Native(String),
    /// A TOML array of strings.
    List(Vec<String>),
    /// Whatever else TOML has; no kind takes it.
    Other,
}

impl Input {
    /// Text and native scalars alike, without the blanks around them.
    pub(super) fn scalar(&self) -> Option<&str> {
        match self {
            Self::Text(text) | Self::Native(text) => Some(text.trim()),
            Self::List(_) | Self::Other => None,
        }
    }

    pub(super) fn is_blank(&self) -> bool {
        self.scalar().is_some_and(str::is_empty)
    }
}

/// A kind in words. Apart from [`Kind`] so that kinds of different values fit into one list.
pub(super) trait Describe: Sync {
    /// What an error says was expected, without the word.
    fn expected(&self) -> String;

    /// The range or the values, for the documentation.
    fn range(&self) -> String;

    /// What stands for the value in the help: `--key <NAME>`.
    fn value_name(&self) -> &'static str;

    /// The value a flag alone, without one, stands for.
    fn bare_flag(&self) -> Option<&'static str> {
        None
    }

    /// Whether a value is never shown, and may be given as the path of a file.
    fn is_secret(&self) -> bool {
        false
    }
}

/// A kind of values: `read` takes what `write` made back to the same value.
pub(super) trait Kind: Describe {
    type Value;

    /// # Errors
    /// What was expected, as the end of a sentence that has named the value.
    fn read(&self, input: &Input) -> Result<Self::Value, String>;

    /// The value as TOML, on one line.
    fn write(&self, value: &Self::Value) -> String;

    fn refusal(&self) -> String {
        format!("expected {}", self.expected())
    }
}

/// `true` or `false`, in any case.
pub(super) struct Switch;

impl Describe for Switch {
    fn expected(&self) -> String {
        "true or false".to_owned()
    }

    fn range(&self) -> String {
        "`true` or `false`".to_owned()
    }

    fn value_name(&self) -> &'static str {
        "BOOL"
    }

    fn bare_flag(&self) -> Option<&'static str> {
        Some("true")
    }
}

impl Kind for Switch {
    type Value = bool;

    fn read(&self, input: &Input) -> Result<bool, String> {
        let text = input.scalar().unwrap_or_default().to_ascii_lowercase();
        text.parse().map_err(|_| self.refusal())
    }

    fn write(&self, value: &bool) -> String {
        value.to_string()
    }
}

/// A whole number.
pub(super) struct Count {
    pub(super) min: usize,
    pub(super) max: usize,
}

impl Describe for Count {
    fn expected(&self) -> String {
        format!("a whole number from {} to {}", self.min, self.max)
    }

    fn range(&self) -> String {
        format!("{} to {}", self.min, self.max)
    }

    fn value_name(&self) -> &'static str {
        "NUMBER"
    }
}

impl Kind for Count {
    type Value = usize;

    fn read(&self, input: &Input) -> Result<usize, String> {
        let number = input.scalar().and_then(|text| text.parse().ok());
        number.filter(|n| (self.min..=self.max).contains(n)).ok_or_else(|| self.refusal())
    }

    fn write(&self, value: &usize) -> String {
        value.to_string()
    }
}

/// A word that stands for None, or a value of another kind.
pub(super) struct OrWord<K>(pub(super) &'static str, pub(super) K);

impl<K: Describe> Describe for OrWord<K> {
    fn expected(&self) -> String {
        format!("\"{}\" or {}", self.0, self.1.expected())
    }

    fn range(&self) -> String {
        format!("`{}` or {}", self.0, self.1.range())
    }

    fn value_name(&self) -> &'static str {
        self.1.value_name()
    }
}

impl<K: Kind> Kind for OrWord<K> {
    type Value = Option<K::Value>;

    fn read(&self, input: &Input) -> Result<Self::Value, String> {
        if input.scalar().is_some_and(|text| text.eq_ignore_ascii_case(self.0)) {
            return Ok(None);
        }
        let refused = |reason| if reason == self.1.refusal() { self.refusal() } else { reason };
        self.1.read(input).map(Some).map_err(refused)
    }

    fn write(&self, value: &Self::Value) -> String {
        value.as_ref().map_or_else(|| quote(self.0), |value| self.1.write(value))
    }
}

/// A number of bytes.
pub(super) struct Size {
    pub(super) min: u64,
    pub(super) max: u64,
}

impl Describe for Size {
    fn expected(&self) -> String {
        let (min, max) = (show_size(self.min), show_size(self.max));
        format!("a size such as 65536, \"64KiB\" or \"1MiB\", from {min} to {max}")
    }

    fn range(&self) -> String {
        format!("{} to {}", show_size(self.min), show_size(self.max))
    }

    fn value_name(&self) -> &'static str {
        "SIZE"
    }
}

impl Kind for Size {
    type Value = u64;

    fn read(&self, input: &Input) -> Result<u64, String> {
        let bytes = input.scalar().and_then(size);
        bytes.filter(|n| (self.min..=self.max).contains(n)).ok_or_else(|| self.refusal())
    }

    fn write(&self, value: &u64) -> String {
        let text = show_size(*value);
        if text.bytes().all(|byte| byte.is_ascii_digit()) { text } else { quote(&text) }
    }
}

/// A length of time.
pub(super) struct Span {
    pub(super) min: Duration,
    pub(super) max: Duration,
}

impl Describe for Span {
    fn expected(&self) -> String {
        let (min, max) = (show_duration(self.min), show_duration(self.max));
        format!("a duration such as 30, \"500ms\" or \"1m\", from {min} to {max}")
    }

    fn range(&self) -> String {
        format!("{} to {}", show_duration(self.min), show_duration(self.max))
    }

    fn value_name(&self) -> &'static str {
        "DURATION"
    }
}

impl Kind for Span {
    type Value = Duration;

    fn read(&self, input: &Input) -> Result<Duration, String> {
        let span = input.scalar().and_then(duration);
        span.filter(|d| (self.min..=self.max).contains(d)).ok_or_else(|| self.refusal())
    }

    fn write(&self, value: &Duration) -> String {
        quote(&show_duration(*value))
    }
}

/// One of a few words, in any case.
pub(super) struct Choice<T: 'static>(pub(super) &'static [(&'static str, T)]);

impl<T> Choice<T> {
    fn names(&self) -> impl Iterator<Item = &'static str> {
        self.0.iter().map(|(name, _)| *name)
    }
}

impl<T: Sync> Describe for Choice<T> {
    fn expected(&self) -> String {
        format!("one of {}", self.names().collect::<Vec<_>>().join(", "))
    }

    fn range(&self) -> String {
        self.names().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
    }

    fn value_name(&self) -> &'static str {
        "WORD"
    }
}

impl<T: Copy + PartialEq + Sync> Kind for Choice<T> {
    type Value = T;

    fn read(&self, input: &Input) -> Result<T, String> {
        let text = input.scalar().unwrap_or_default();
        let found = self.0.iter().find(|(name, _)| name.eq_ignore_ascii_case(text));
        found.map(|(_, value)| *value).ok_or_else(|| self.refusal())
    }

    fn write(&self, value: &T) -> String {
        let named = self.0.iter().find(|(_, named)| named == value);
        quote(named.expect("the table names every value of the type").0)
    }
}

/// A TOML basic string on one line.
pub(super) fn quote(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => quoted.extend(format!("\\u{:04X}", u32::from(c)).chars()),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}
