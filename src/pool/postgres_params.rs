//! What goes into a statement and comes out of it.

use std::error::Error;
use std::fmt;

use bytes::BytesMut;
use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};

use super::error::DatabaseError;
use super::value::{Record, Value};

/// The parameters of a statement, `$1` first. Make them with [`params!`](crate::params).
#[derive(Default)]
pub struct Params(Kept);

/// Values are kept as they are, without a box for each.
enum Kept {
    Values(Vec<Value>),
    Any(Vec<Box<dyn ToSql + Send + Sync>>),
}

impl Default for Kept {
    fn default() -> Kept {
        Kept::Any(Vec::new())
    }
}

impl Params {
    /// Adds one.
    #[must_use]
    pub fn and(self, value: impl ToSql + Send + Sync + 'static) -> Params {
        let mut all = match self.0 {
            Kept::Any(all) => all,
            Kept::Values(values) => values.into_iter().map(|value| Box::new(value) as _).collect(),
        };
        all.push(Box::new(value));
        Params(Kept::Any(all))
    }

    fn len(&self) -> usize {
        match &self.0 {
            Kept::Values(values) => values.len(),
            Kept::Any(all) => all.len(),
        }
    }

    /// In their order.
    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = &(dyn ToSql + Sync)> {
        (0..self.len()).map(|at| match &self.0 {
            Kept::Values(values) => &values[at] as &(dyn ToSql + Sync),
            Kept::Any(all) => &*all[at],
        })
    }
}

impl From<Vec<Value>> for Params {
    fn from(values: Vec<Value>) -> Params {
        Params(Kept::Values(values))
    }
}

impl fmt::Debug for Params {
    /// Without the values: they may be secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Params({})", self.len())
    }
}

impl ToSql for Value {
    fn to_sql(
        &self,
        ty: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        match self {
            Value::Null => Ok(IsNull::Yes),
            Value::Bool(value) => value.to_sql_checked(ty, out),
            Value::Int(value) => match *ty {
                Type::INT2 => i16::try_from(*value)?.to_sql(ty, out),
                Type::INT4 => i32::try_from(*value)?.to_sql(ty, out),
                _ => value.to_sql_checked(ty, out),
            },
            Value::Float(value) => match *ty {
                #[allow(clippy::cast_possible_truncation, reason = "the column is that small")]
                Type::FLOAT4 => (*value as f32).to_sql(ty, out),
                _ => value.to_sql_checked(ty, out),
            },
            Value::Text(value) => value.to_sql_checked(ty, out),
            Value::Bytes(value) => value.to_sql_checked(ty, out),
        }
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

impl<'a> FromSql<'a> for Value {
    fn from_sql(ty: &Type, raw: &'a [u8]) -> Result<Value, Box<dyn Error + Sync + Send>> {
        Ok(match *ty {
            Type::BOOL => Value::Bool(bool::from_sql(ty, raw)?),
            Type::INT2 => Value::Int(i16::from_sql(ty, raw)?.into()),
            Type::INT4 => Value::Int(i32::from_sql(ty, raw)?.into()),
            Type::INT8 => Value::Int(i64::from_sql(ty, raw)?),
            Type::FLOAT4 => Value::Float(f32::from_sql(ty, raw)?.into()),
            Type::FLOAT8 => Value::Float(f64::from_sql(ty, raw)?),
            Type::BYTEA => Value::Bytes(raw.to_vec()),
            _ => Value::Text(String::from_sql(ty, raw)?),
        })
    }

    fn from_sql_null(_: &Type) -> Result<Value, Box<dyn Error + Sync + Send>> {
        Ok(Value::Null)
    }

    fn accepts(ty: &Type) -> bool {
        let has_value = [
            Type::BOOL,
            Type::INT2,
            Type::INT4,
            Type::INT8,
            Type::FLOAT4,
            Type::FLOAT8,
            Type::BYTEA,
        ];
        has_value.contains(ty) || <String as FromSql>::accepts(ty)
    }
}

/// A row in values that every database has.
///
/// # Errors
/// [`DatabaseError::Mismatch`] when a column has a type of another kind: cast it.
pub fn record(row: &Row) -> Result<Record, DatabaseError> {
    (0..row.len()).map(|at| row.try_get(at).map_err(DatabaseError::from)).collect()
}
