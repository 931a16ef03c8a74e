//! The kinds of values that name a place: addresses and paths.

use std::path::PathBuf;

use super::source::shown_text;
use super::value::{Describe, Input, Kind, quote};
use crate::server::{Address, AddressError};

/// One address.
pub(super) struct At;

impl Describe for At {
    fn expected(&self) -> String {
        "127.0.0.1:8080, [::]:8080 or unix:/path".to_owned()
    }

    fn range(&self) -> String {
        "an address".to_owned()
    }

    fn value_name(&self) -> &'static str {
        "ADDRESS"
    }
}

impl Kind for At {
    type Value = Address;

    fn read(&self, input: &Input) -> Result<Address, String> {
        let text = input.scalar().ok_or_else(|| self.refusal())?;
        match text.parse().map_err(|error: AddressError| error.to_string())? {
            // They are the public ones.
            Address::Inherited => Err(self.refusal()),
            address => Ok(address),
        }
    }

    fn write(&self, value: &Address) -> String {
        quote(&value.to_string())
    }
}

/// One address or more: separated by commas, or a TOML array.
pub(super) struct Addresses;

impl Describe for Addresses {
    fn expected(&self) -> String {
        format!(
            "1 to {ADDRESSES_MAX} addresses such as 127.0.0.1:8080, [::]:8080, unix:/path or \
             systemd, separated by commas"
        )
    }

    fn range(&self) -> String {
        format!("1 to {ADDRESSES_MAX} addresses, separated by commas")
    }

    fn value_name(&self) -> &'static str {
        "ADDRESSES"
    }
}

impl Kind for Addresses {
    type Value = Vec<Address>;

    fn read(&self, input: &Input) -> Result<Self::Value, String> {
        let items: Vec<&str> = match input {
            Input::List(items) => items.iter().map(String::as_str).collect(),
            _ => input.scalar().unwrap_or_default().split(',').map(str::trim).collect(),
        };
        if !(1..=ADDRESSES_MAX).contains(&items.len()) || items.contains(&"") {
            return Err(self.refusal());
        }
        let names_item = items.len() > 1;
        let read_one = |item: &str| {
            item.parse().map_err(|error: AddressError| {
                if names_item {
                    format!("{}: {error}", shown_text(item))
                } else {
                    error.to_string()
                }
            })
        };
        items.into_iter().map(read_one).collect()
    }

    fn write(&self, value: &Self::Value) -> String {
        quote(&value.iter().map(Address::to_string).collect::<Vec<_>>().join(","))
    }
}

/// A path or, when empty, none.
pub(super) struct OptionalPath;

impl Describe for OptionalPath {
    fn expected(&self) -> String {
        "a path without control bytes, or nothing for none".to_owned()
    }

    fn range(&self) -> String {
        "a path, or nothing".to_owned()
    }

    fn value_name(&self) -> &'static str {
        "PATH"
    }
}

impl Kind for OptionalPath {
    type Value = Option<PathBuf>;

    fn read(&self, input: &Input) -> Result<Self::Value, String> {
        match input {
            Input::Text(text) if text.contains(char::is_control) => Err(self.refusal()),
            Input::Text(text) if text.is_empty() => Ok(None),
            Input::Text(text) => Ok(Some(PathBuf::from(text))),
            Input::Native(_) | Input::List(_) | Input::Other => Err(self.refusal()),
        }
    }

    fn write(&self, value: &Self::Value) -> String {
        quote(&value.as_ref().map(|path| path.display().to_string()).unwrap_or_default())
    }
}

/// Every listener costs a descriptor and an entry in each worker; nobody means more of them.
const ADDRESSES_MAX: usize = 64;
