//! What goes into a statement and comes out of it.

use std::any::Any;
use std::error::Error;
use std::fmt;

use bytes::BytesMut;
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};

use super::error::DatabaseError;
use super::postgres_row::PostgresRow;
use super::value::{Record, Value};

/// The parameters of a statement, `$1` first. Make them with [`params!`](crate::params).
pub struct Params {
    kept: Kept,
    /// How large they are written, at most; `None` when foreign code writes one of them.
    bytes_max: Option<usize>,
}

impl Default for Params {
    fn default() -> Params {
        Params { kept: Kept::default(), bytes_max: Some(0) }
    }
}

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
        let mut all = match self.kept {
            Kept::Any(all) => all,
            Kept::Values(values) => values.into_iter().map(|value| Box::new(value) as _).collect(),
        };
        let bytes_max = self.bytes_max.zip(written_max(&value)).map(|(all, one)| all + one);
        all.push(Box::new(value));
        Params { kept: Kept::Any(all), bytes_max }
    }

    fn len(&self) -> usize {
        match &self.kept {
            Kept::Values(values) => values.len(),
            Kept::Any(all) => all.len(),
        }
    }

    /// How many bytes they are when they are written, at most; `None` when foreign code writes one
    /// of them.
    pub(super) fn bytes_max(&self) -> Option<usize> {
        self.bytes_max
    }

    /// In their order.
    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = &(dyn ToSql + Sync)> {
        (0..self.len()).map(|at| match &self.kept {
            Kept::Values(values) => &values[at] as &(dyn ToSql + Sync),
            Kept::Any(all) => &*all[at],
        })
    }
}

/// Of the types that most parameters have.
fn written_max(value: &dyn Any) -> Option<usize> {
    if let Some(text) = value.downcast_ref::<String>() {
        return Some(text.len());
    }
    if let Some(text) = value.downcast_ref::<&'static str>() {
        return Some(text.len());
    }
    let is_number = value.is::<i64>() || value.is::<i32>() || value.is::<i16>();
    (is_number || value.is::<bool>() || value.is::<f64>()).then_some(NUMBER_BYTES_MAX)
}

impl From<Vec<Value>> for Params {
    fn from(values: Vec<Value>) -> Params {
        let bytes = values.iter().map(|value| match value {
            Value::Text(text) => text.len(),
            Value::Bytes(bytes) => bytes.len(),
            Value::Null | Value::Bool(_) | Value::Int(_) | Value::Float(_) => NUMBER_BYTES_MAX,
        });
        Params { bytes_max: Some(bytes.sum()), kept: Kept::Values(values) }
    }
}

const NUMBER_BYTES_MAX: usize = size_of::<u64>();

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

/// Rows in values that every database has.
///
/// # Errors
/// [`DatabaseError::Mismatch`] when a column has a type of another kind: cast it.
#[allow(clippy::needless_pass_by_value, reason = "they are not needed any more")]
pub fn records(rows: Vec<PostgresRow>) -> Result<Vec<Record>, DatabaseError> {
    let record = |row: &PostgresRow| (0..row.len()).map(|at| row.try_get(at)).collect();
    rows.iter().map(record).collect()
}
