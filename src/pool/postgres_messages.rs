//! The messages of PostgreSQL's protocol (its documentation, Message Formats): how those of the
//! server are read, and how a statement is asked for. Pure.

use bytes::BytesMut;
use postgres_protocol::message::frontend::{self, BindError};
use tokio_postgres::types::{Format, IsNull, ToSql, Type};

use super::error::{DatabaseError, Rejection};
use super::postgres_errors::of_state;
use super::postgres_params::Params;
use super::postgres_statements::Prepared;

/// What is left of a message's body. Each call takes the next field: `None` when it is not there.
pub struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    pub fn of(body: &'a [u8]) -> Fields<'a> {
        Fields(body)
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*taken)
    }

    pub fn u8(&mut self) -> Option<u8> {
        self.take().map(u8::from_be_bytes)
    }

    pub fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_be_bytes)
    }

    pub fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_be_bytes)
    }

    /// Up to the next zero byte.
    pub fn text(&mut self) -> Option<&'a [u8]> {
        let end = memchr::memchr(0, self.0)?;
        let text = &self.0[..end];
        self.0 = &self.0[end + 1..];
        Some(text)
    }

    /// A length and so many bytes; the length -1 is that of no value.
    pub fn value(&mut self) -> Option<Value<'a>> {
        let length = self.u32()?;
        if length == u32::MAX {
            return Some(Value::Null);
        }
        let (value, rest) = self.0.split_at_checked(usize::try_from(length).ok()?)?;
        self.0 = rest;
        Some(Value::Bytes(value))
    }

    pub fn rest(&self) -> &'a [u8] {
        self.0
    }
}

/// The value of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    Null,
    Bytes(&'a [u8]),
}

/// What a server says when it refuses something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub error: DatabaseError,
    /// It ends the session with it.
    pub is_fatal: bool,
}

impl Refusal {
    /// The body of an `ErrorResponse`: `None` when it has no SQLSTATE.
    pub fn read(body: &[u8]) -> Option<Refusal> {
        let mut fields = Fields::of(body);
        let (mut code, mut message, mut constraint) = (None, String::new(), None);
        let mut is_fatal = false;
        loop {
            let kind = fields.u8()?;
            if kind == 0 {
                break;
            }
            let text = fields.text()?;
            let owned = || String::from_utf8_lossy(text).into_owned();
            match kind {
                b'C' => code = Some(owned()),
                b'M' => message = owned(),
                b'n' => constraint = Some(owned()),
                // Not translated, unlike `S`.
                b'V' => is_fatal = matches!(text, b"FATAL" | b"PANIC"),
                _ => {}
            }
        }
        let error = of_state(Rejection { code: code?, message, constraint });
        Some(Refusal { error, is_fatal })
    }
}

/// Writes a statement with its values.
///
/// # Errors
/// When a value does not fit: what was written of it is to be taken back.
pub fn bind(prepared: &Prepared, params: &Params, out: &mut BytesMut) -> Result<(), DatabaseError> {
    let (expected, found) = (prepared.params.len(), params.iter().len());
    if expected != found {
        return Err(DatabaseError::Mismatch(format!(
            "the statement has {expected} parameters and was given {found}"
        )));
    }
    let formats =
        params.iter().zip(&prepared.params).map(|(value, ty)| match value.encode_format(ty) {
            Format::Text => 0,
            Format::Binary => 1,
        });
    let mut at = 0;
    let values = params.iter().zip(&prepared.params);
    let value = |(value, ty): (&(dyn ToSql + Sync), &Type), out: &mut BytesMut| {
        at += 1;
        value.to_sql_checked(ty, out).map(|is_null| null(&is_null))
    };
    let bound = frontend::bind("", &prepared.name, formats, values, value, [1], out);
    let written = match bound {
        Ok(()) => frontend::execute("", 0, out).map_err(|error| error.to_string()),
        Err(BindError::Conversion(error)) => Err(format!("parameter ${at}: {error}")),
        Err(BindError::Serialization(error)) => Err(error.to_string()),
    };
    written.map_err(DatabaseError::Mismatch)
}

/// The client library and its protocol have a word each for it.
pub fn null(is_null: &IsNull) -> postgres_protocol::IsNull {
    match is_null {
        IsNull::Yes => postgres_protocol::IsNull::Yes,
        IsNull::No => postgres_protocol::IsNull::No,
    }
}

// The messages of a server, by their first byte.
pub const PARSE_COMPLETE: u8 = b'1';
pub const BIND_COMPLETE: u8 = b'2';
pub const CLOSE_COMPLETE: u8 = b'3';
pub const NOTIFICATION_RESPONSE: u8 = b'A';
pub const COMMAND_COMPLETE: u8 = b'C';
pub const DATA_ROW: u8 = b'D';
pub const ERROR_RESPONSE: u8 = b'E';
pub const EMPTY_QUERY: u8 = b'I';
pub const NOTICE_RESPONSE: u8 = b'N';
pub const PARAMETER_STATUS: u8 = b'S';
pub const ROW_DESCRIPTION: u8 = b'T';
pub const READY_FOR_QUERY: u8 = b'Z';
pub const NO_DATA: u8 = b'n';
pub const PARAMETER_DESCRIPTION: u8 = b't';

/// In `ReadyForQuery`: the session is in no transaction.
pub const IDLE: u8 = b'I';

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_read_field_by_field() {
        let body = b"SFEHLER\0VERROR\0C23505\0Mduplicate key\0nitems_pkey\0Fx.c\0\0";
        let rejection = Rejection {
            code: "23505".to_owned(),
            message: "duplicate key".to_owned(),
            constraint: Some("items_pkey".to_owned()),
        };
        let expected = Refusal { error: DatabaseError::Rejected(rejection), is_fatal: false };
        assert_eq!(Refusal::read(body), Some(expected));
        let fatal = Refusal::read(b"VFATAL\0C57P01\0Mgo\0\0").expect("whole");
        assert_eq!((fatal.error, fatal.is_fatal), (DatabaseError::Lost, true));
        for torn in [&b""[..], b"\0", b"C23505\0", b"C23505", b"Mno state\0\0"] {
            assert_eq!(Refusal::read(torn), None, "{torn:?}");
        }
    }
}
