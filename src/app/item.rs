//! An item as clients write it, and the page of a list that they ask for. Pure: text in, values or
//! what is wrong with which field out.

use std::borrow::Cow;
use std::fmt;

use http::StatusCode;
use serde::de::{DeserializeSeed, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::http::message::{IntoResponse, Response};

/// An item without its id: what a client may say of one.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    pub name: String,
    pub quantity: i64,
    /// Whatever the client keeps with it; an object.
    pub details: Value,
}

/// What is wrong with a request, and with which of its fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub status: StatusCode,
    pub field: Option<String>,
    pub what: String,
}

impl Fault {
    /// The request cannot be read, within a field or elsewhere.
    fn unreadable(field: Option<&str>, what: String) -> Fault {
        Fault { status: StatusCode::BAD_REQUEST, field: field.map(shown), what }
    }

    /// A parameter of the target is not what it should be.
    pub fn parameter(field: &str, expected: &str) -> Fault {
        let what = format!("{field} must be {expected}");
        Fault { status: StatusCode::BAD_REQUEST, field: Some(field.to_owned()), what }
    }

    /// The JSON is well-formed and says something else than an item.
    fn unfit(field: &str, what: String) -> Fault {
        let field = Some(shown(field));
        Fault { status: StatusCode::UNPROCESSABLE_ENTITY, field, what }
    }
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        #[derive(Serialize)]
        struct Told {
            error: String,
            #[serde(skip_serializing_if = "Option::is_none")]
            field: Option<String>,
        }
        Response::json(&Told { error: self.what, field: self.field }).with_status(self.status)
    }
}

impl Item {
    /// Reads an item from JSON: `{"name": "rope", "quantity": 3, "details": {"length_m": 20}}`, of
    /// which `details` may be missing.
    ///
    /// # Errors
    /// 400 for what is no JSON or too deep, 422 for a field that is missing, unknown, unfit or
    /// there twice.
    pub fn read(json: &[u8]) -> Result<Item, Fault> {
        let (mut name, mut quantity, mut details) = (None, None, None);
        for (field, value) in read_fields(json)? {
            let was_there = match &*field {
                "name" => name.replace(read_name(value)?).is_some(),
                "quantity" => quantity.replace(read_quantity(&value)?).is_some(),
                "details" => details.replace(read_details(value)?).is_some(),
                _ => {
                    let what = format!("an item has no field {:?}", shown(&field));
                    return Err(Fault::unfit(&field, what));
                }
            };
            if was_there {
                return Err(Fault::unfit(&field, format!("{:?} is there twice", shown(&field))));
            }
        }
        let missing = |field: &str| Fault::unfit(field, format!("{field} is missing"));
        Ok(Item {
            name: name.ok_or_else(|| missing("name"))?,
            quantity: quantity.ok_or_else(|| missing("quantity"))?,
            details: details.unwrap_or_else(|| Value::Object(serde_json::Map::new())),
        })
    }
}

/// The fields of a JSON object in their order, those that are there twice as well.
fn read_fields(json: &[u8]) -> Result<Vec<(Cow<'_, str>, Value)>, Fault> {
    let mut at = None;
    // Deeper than 128 it does not get: the parser's own limit.
    let mut parser = serde_json::Deserializer::from_slice(json);
    let read = Fields { at: &mut at }.deserialize(&mut parser);
    let read = read.and_then(|fields| parser.end().map(|()| fields));
    read.map_err(|error| {
        if error.is_data() && at.is_none() {
            let what = "the body must be a JSON object".to_owned();
            return Fault { status: StatusCode::UNPROCESSABLE_ENTITY, field: None, what };
        }
        let what = format!("the body is no JSON that can be read: {error}");
        Fault::unreadable(at.as_deref(), what)
    })
}

/// Reads an object and remembers which field it is at.
struct Fields<'a, 'de> {
    /// `Some` while the value of this field is read.
    at: &'a mut Option<Cow<'de, str>>,
}

/// A field's name, in its place in the body unless it is written with escapes.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de> DeserializeSeed<'de> for Fields<'_, 'de> {
    type Value = Vec<(Cow<'de, str>, Value)>;

    fn deserialize<D: Deserializer<'de>>(self, parser: D) -> Result<Self::Value, D::Error> {
        parser.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Fields<'_, 'de> {
    type Value = Vec<(Cow<'de, str>, Value)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
        let mut fields = Vec::new();
        while let Some(Name(field)) = map.next_key()? {
            *self.at = Some(field);
            let value = map.next_value()?;
            fields.extend(self.at.take().map(|field| (field, value)));
        }
        Ok(fields)
    }
}

fn read_name(value: Value) -> Result<String, Fault> {
    match value {
        // A database of text takes no NUL.
        Value::String(name)
            if (1..=NAME_CHARS_MAX).contains(&name.chars().count()) && !name.contains('\0') =>
        {
            Ok(name)
        }
        _ => {
            let what =
                format!("name must be text of 1 to {NAME_CHARS_MAX} characters, none of them NUL");
            Err(Fault::unfit("name", what))
        }
    }
}

fn read_quantity(value: &Value) -> Result<i64, Fault> {
    value.as_i64().filter(|number| (0..=QUANTITY_MAX).contains(number)).ok_or_else(|| {
        let what = format!("quantity must be a whole number from 0 to {QUANTITY_MAX}");
        Fault::unfit("quantity", what)
    })
}

fn read_details(value: Value) -> Result<Value, Fault> {
    if !value.is_object() {
        return Err(Fault::unfit("details", "details must be an object".to_owned()));
    }
    if depth(&value) > DETAILS_DEPTH_MAX {
        let what = format!("details must not be deeper than {DETAILS_DEPTH_MAX} levels");
        return Err(Fault::unfit("details", what));
    }
    Ok(value)
}

/// How many objects and arrays are within each other. The parser has limited it, so recursion may
/// follow it.
fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// A field's name as it is told: a client may call it anything.
fn shown(field: &str) -> String {
    field.chars().take(FIELD_CHARS_SHOWN).collect()
}

/// Which part of a list: so many items, those behind an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    pub limit: i64,
    /// Ids are positive: 0 is before all.
    pub after: i64,
}

impl Page {
    /// Reads `limit` (1 to 100, else 20) and `after` (an id) from a query.
    ///
    /// # Errors
    /// 400 when one of them is out of its range or there twice. Other parameters are passed over.
    pub fn read(query: Option<&str>) -> Result<Page, Fault> {
        let (mut limit, mut after) = (None, None);
        for pair in query.unwrap_or_default().split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (slot, range) = match name {
                "limit" => (&mut limit, 1..=LIMIT_MAX),
                "after" => (&mut after, 0..=i64::MAX),
                _ => continue,
            };
            let expected = format!("a whole number from {} to {}", range.start(), range.end());
            let fault = || Fault::parameter(name, &expected);
            let number = whole_number(value).filter(|number| range.contains(number));
            if slot.replace(number.ok_or_else(fault)?).is_some() {
                return Err(Fault::parameter(name, "there once"));
            }
        }
        Ok(Page { limit: limit.unwrap_or(LIMIT_DEFAULT), after: after.unwrap_or(0) })
    }
}

/// Reads the id of an item.
///
/// # Errors
/// 400 when it is none.
pub fn read_id(text: Option<&str>) -> Result<i64, Fault> {
    let id = text.and_then(whole_number).filter(|id| *id > 0);
    id.ok_or_else(|| Fault::parameter("id", &format!("a whole number from 1 to {}", i64::MAX)))
}

/// Digits only: no sign and no blanks.
fn whole_number(text: &str) -> Option<i64> {
    let is_digits = text.bytes().all(|byte| byte.is_ascii_digit());
    if is_digits { text.parse().ok() } else { None }
}

/// The largest body that an item may have, in bytes.
pub const ITEM_BYTES_MAX: u64 = 64 << 10;

/// The longest name, in characters.
const NAME_CHARS_MAX: usize = 200;

/// What every database's integer holds.
const QUANTITY_MAX: i64 = i32::MAX as i64;

/// Objects and arrays within each other, `details` itself counted.
const DETAILS_DEPTH_MAX: usize = 16;

/// Items of a page, at most and by default.
const LIMIT_MAX: i64 = 100;
const LIMIT_DEFAULT: i64 = 20;

/// What is repeated of a field's name.
const FIELD_CHARS_SHOWN: usize = 100;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn fault(json: &str) -> (u16, Option<String>) {
        let fault = Item::read(json.as_bytes()).expect_err(json);
        (fault.status.as_u16(), fault.field)
    }

    #[test]
    fn an_item_is_read() {
        let item = |details| Item { name: "a rope".into(), quantity: 3, details };
        let json = r#"{"quantity": 3, "name": "a rope"}"#;
        assert_eq!(Item::read(json.as_bytes()), Ok(item(json!({}))));
        let json = r#"{"name":"a rope","quantity":3,"details":{"tags":["x",{"y":null}]}}"#;
        assert_eq!(Item::read(json.as_bytes()), Ok(item(json!({"tags": ["x", {"y": null}]}))));
    }

    #[test]
    fn what_cannot_be_read_is_400() {
        let deep = format!("{{\"name\":\"x\",\"quantity\":1,\"details\":{}", "[".repeat(5000));
        for json in ["", "{", "\u{0}", "{} {}", "{'name': 1}", "{\"name\":\"x\",}"] {
            assert_eq!(fault(json), (400, None), "{json}");
        }
        // Within a field, that one is named.
        for (json, field) in [
            ("{\"name\":}", "name"),
            ("{\"name\":\"x\",\"quantity\":1e999}", "quantity"),
            ("{\"name\":\"x\",\"quantity\":", "quantity"),
            (deep.as_str(), "details"),
        ] {
            assert_eq!(fault(json), (400, Some(field.to_owned())), "{json}");
        }
        assert_eq!(Item::read(b"{\"name\":\"\xff\"}").unwrap_err().status, 400);
    }

    #[test]
    fn what_is_no_item_is_422_and_names_the_field() {
        let long = format!(r#"{{"name":"{}","quantity":1}}"#, "é".repeat(NAME_CHARS_MAX + 1));
        let nested = "[".repeat(DETAILS_DEPTH_MAX) + &"]".repeat(DETAILS_DEPTH_MAX);
        let deep = format!(r#"{{"name":"x","quantity":1,"details":{{"a":{nested}}}}}"#);
        for (json, field) in [
            (r#"{"quantity":1}"#, "name"),
            (r#"{"name":"x"}"#, "quantity"),
            (r#"{"name":"","quantity":1}"#, "name"),
            (r#"{"name":7,"quantity":1}"#, "name"),
            (r#"{"name":"a\u0000b","quantity":1}"#, "name"),
            (long.as_str(), "name"),
            (r#"{"name":"x","quantity":"1"}"#, "quantity"),
            (r#"{"name":"x","quantity":1.5}"#, "quantity"),
            (r#"{"name":"x","quantity":-1}"#, "quantity"),
            (r#"{"name":"x","quantity":2147483648}"#, "quantity"),
            (r#"{"name":"x","quantity":99999999999999999999}"#, "quantity"),
            (r#"{"name":"x","quantity":1,"details":[]}"#, "details"),
            (deep.as_str(), "details"),
            (r#"{"name":"x","quantity":1,"id":7}"#, "id"),
            (r#"{"name":"x","quantity":1,"quantity":2}"#, "quantity"),
        ] {
            assert_eq!(fault(json), (422, Some(field.to_owned())), "{json}");
        }
        for json in ["[]", "7", "null", "\"x\""] {
            assert_eq!(fault(json), (422, None), "{json}");
        }
    }

    #[test]
    fn pages() {
        let page = |limit, after| Ok(Page { limit, after });
        for (query, expected) in [
            (None, page(20, 0)),
            (Some(""), page(20, 0)),
            (Some("limit=1"), page(1, 0)),
            (Some("after=17&limit=100&colour=red"), page(100, 17)),
            (Some("after=9223372036854775807"), page(20, i64::MAX)),
        ] {
            assert_eq!(Page::read(query), expected, "{query:?}");
        }
        for (query, field) in [
            ("limit=0", "limit"),
            ("limit=101", "limit"),
            ("limit", "limit"),
            ("limit=+5", "limit"),
            ("after=-1", "after"),
            ("after=9223372036854775808", "after"),
            ("after=1&after=2", "after"),
            ("after=%31", "after"),
        ] {
            let fault = Page::read(Some(query)).expect_err(query);
            assert_eq!((fault.status.as_u16(), fault.field.as_deref()), (400, Some(field)));
        }
        for id in [None, Some(""), Some("0"), Some("-1"), Some("x"), Some("9223372036854775808")] {
            assert_eq!(read_id(id).unwrap_err().status, 400, "{id:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_is_an_item_or_a_fault(bytes in any::<Vec<u8>>(), text in "\\PC*") {
            let object = json!({ (text.as_str()): 1 }).to_string();
            for json in [bytes, text.into_bytes(), object.into_bytes()] {
                if let Err(fault) = Item::read(&json) {
                    prop_assert!(fault.status == 400 || fault.status == 422);
                }
            }
        }

        #[test]
        fn an_item_that_is_written_is_read_back(
            name in "\\PC{1,200}",
            quantity in 0..=QUANTITY_MAX,
        ) {
            let json = json!({ "name": name, "quantity": quantity, "details": { "k": name } });
            let item = Item::read(json.to_string().as_bytes()).expect("it is one");
            prop_assert_eq!((item.name, item.quantity), (name, quantity));
        }
    }
}
