//! The kind of values that nobody may read over a shoulder: an address with a password in it.
//!
//! Such a value is never shown: not in errors, not by `print-config`, not in a log. What is shown
//! is its address without what stands before the host, which is enough to see which one it is. A
//! secret may also come from a file: `DATABASE_URL_FILE` names one for `DATABASE_URL`, as container
//! platforms and systemd's credentials have it.

use std::fmt;

use super::value::{Describe, Input, Kind, quote};

/// An address with its password. Displays without it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The whole value, for whoever connects with it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&masked(&self.0))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({self})")
    }
}

/// An address without what stands before its host and without its parameters, which may hold a
/// password as well. What is no address is not shown, unless it can hold none: the
/// word for no database, or the path of one of SQLite.
fn masked(text: &str) -> String {
    if text.starts_with("sqlite:") || ["", "off"].contains(&text) {
        return text.to_owned();
    }
    let Some((scheme, rest)) = text.split_once("://") else { return HIDDEN.to_owned() };
    let is_scheme = scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'+');
    if !is_scheme {
        return HIDDEN.to_owned();
    }
    let (address, parameters) = match rest.split_once('?') {
        Some((address, _)) => (address, "?***"),
        None => (rest, ""),
    };
    // The last one: a password may hold an unescaped `@`.
    match address.rsplit_once('@') {
        Some((_, host)) => format!("{scheme}://***@{host}{parameters}"),
        None => format!("{scheme}://{address}{parameters}"),
    }
}

/// What stands for a secret where it would be shown.
pub(super) const HIDDEN: &str = "***";

/// A secret or, when empty, none.
pub(super) struct OptionalSecret(pub(super) &'static str);

impl Describe for OptionalSecret {
    fn expected(&self) -> String {
        format!("{}, or nothing, without blanks and control bytes", self.0)
    }

    fn range(&self) -> String {
        format!("{}, or nothing", self.0)
    }

    fn value_name(&self) -> &'static str {
        "URL"
    }

    fn is_secret(&self) -> bool {
        true
    }
}

impl Kind for OptionalSecret {
    type Value = Option<Secret>;

    fn read(&self, input: &Input) -> Result<Self::Value, String> {
        match input {
            Input::Text(text) if text.trim().contains(|c: char| c.is_control()) => {
                Err(self.refusal())
            }
            Input::Text(text) if text.trim().is_empty() => Ok(None),
            Input::Text(text) => Ok(Some(Secret(text.trim().to_owned()))),
            Input::Native(_) | Input::List(_) | Input::Other => Err(self.refusal()),
        }
    }

    fn write(&self, value: &Self::Value) -> String {
        quote(&value.as_ref().map(Secret::to_string).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_holds_no_password() {
        for (text, shown) in [
            ("postgres://me:pa@ss@db:5432/items?sslmode=x", "postgres://***@db:5432/items?***"),
            ("postgres://db/items?password=pass", "postgres://db/items?***"),
            ("host=db user=me password=pass", "***"),
            ("https://key@sentry.example/1", "https://***@sentry.example/1"),
            ("redis://:pass@db/0", "redis://***@db/0"),
            ("redis://db:6379", "redis://db:6379"),
            ("pass://", "pass://"),
            ("sqlite:items.db", "sqlite:items.db"),
            ("off", "off"),
            ("Pa55", "***"),
            ("password", "***"),
            ("me:pass@db", "***"),
            ("me:pass @db://x", "***"),
        ] {
            assert_eq!(masked(text), shown, "{text}");
        }
    }
}
