//! Rows as the server sent them, and what their columns are.

use std::any::type_name;
use std::error::Error;
use std::fmt;
use std::sync::Arc;

use tokio_postgres::types::{FromSql, Type, WrongType};

use super::error::DatabaseError;
use super::postgres_messages::{Fields, Value};

/// One row of what a statement has found.
#[derive(Clone)]
pub struct PostgresRow {
    columns: Arc<[PostgresColumn]>,
    /// Of each column its length (-1: no value) and so many bytes, as in the message.
    values: Box<[u8]>,
}

/// A column of a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PostgresColumn {
    pub(super) name: String,
    pub(super) ty: Type,
}

impl PostgresColumn {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The type of its values.
    #[must_use]
    pub fn ty(&self) -> &Type {
        &self.ty
    }
}

/// What names a column: its position from 0 on, or its name.
pub trait ColumnIndex: fmt::Display {
    /// Its position, if there is such a column; of several of one name the first.
    fn position(&self, columns: &[PostgresColumn]) -> Option<usize>;
}

impl ColumnIndex for usize {
    fn position(&self, columns: &[PostgresColumn]) -> Option<usize> {
        (*self < columns.len()).then_some(*self)
    }
}

impl ColumnIndex for str {
    fn position(&self, columns: &[PostgresColumn]) -> Option<usize> {
        columns.iter().position(|column| column.name == *self)
    }
}

impl<I: ColumnIndex + ?Sized> ColumnIndex for &I {
    fn position(&self, columns: &[PostgresColumn]) -> Option<usize> {
        (**self).position(columns)
    }
}

impl PostgresRow {
    /// The body of a `DataRow`: `None` when it is not one of these columns.
    pub(super) fn read(columns: &Arc<[PostgresColumn]>, body: &[u8]) -> Option<PostgresRow> {
        let mut fields = Fields::of(body);
        if usize::from(fields.u16()?) != columns.len() {
            return None;
        }
        let values = Box::from(fields.rest());
        for _ in 0..columns.len() {
            fields.value()?;
        }
        fields.rest().is_empty().then(|| PostgresRow { columns: Arc::clone(columns), values })
    }

    /// Its columns, in their order.
    #[must_use]
    pub fn columns(&self) -> &[PostgresColumn] {
        &self.columns
    }

    /// How many columns it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.columns.len()
    }

    /// Whether it has no columns.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.columns.is_empty()
    }

    /// The value of a column, by position or by name.
    ///
    /// # Panics
    /// When there is no such column, or `T` cannot have its value: `NULL` is for an `Option`.
    #[must_use]
    pub fn get<'a, I: ColumnIndex, T: FromSql<'a>>(&'a self, column: I) -> T {
        match self.try_get(column) {
            Ok(value) => value,
            Err(error) => panic!("{error}"),
        }
    }

    /// The value of a column, by position or by name.
    ///
    /// # Errors
    /// [`DatabaseError::Mismatch`] when there is no such column, or `T` cannot have its value.
    pub fn try_get<'a, I, T>(&'a self, column: I) -> Result<T, DatabaseError>
    where
        I: ColumnIndex,
        T: FromSql<'a>,
    {
        let Some(at) = column.position(&self.columns) else {
            return Err(DatabaseError::Mismatch(format!("there is no column {column}")));
        };
        let ty = &self.columns[at].ty;
        let read = if T::accepts(ty) {
            T::from_sql_nullable(ty, self.value(at))
        } else {
            Err(Box::new(WrongType::new::<T>(ty.clone())) as Box<dyn Error + Sync + Send>)
        };
        read.map_err(|error| {
            DatabaseError::Mismatch(format!(
                "column {column} cannot be read as {}: {error}",
                type_name::<T>()
            ))
        })
    }

    /// The bytes of a column; `None` is `NULL`.
    fn value(&self, at: usize) -> Option<&[u8]> {
        let mut fields = Fields::of(&self.values);
        for _ in 0..at {
            fields.value();
        }
        match fields.value() {
            Some(Value::Bytes(bytes)) => Some(bytes),
            // Each was read when the row came: there is none that is not there.
            Some(Value::Null) | None => None,
        }
    }
}

impl fmt::Debug for PostgresRow {
    /// Without the values: they may be secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresRow").field("columns", &self.columns).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns(all: &[(&str, Type)]) -> Arc<[PostgresColumn]> {
        let column =
            |(name, ty): &(&str, Type)| PostgresColumn { name: (*name).to_owned(), ty: ty.clone() };
        all.iter().map(column).collect()
    }

    #[test]
    fn a_row_is_read_by_position_and_by_name() {
        let columns = columns(&[("id", Type::INT4), ("name", Type::TEXT), ("none", Type::INT8)]);
        let body = b"\0\x03\0\0\0\x04\0\0\0\x2a\0\0\0\x02ab\xff\xff\xff\xff";
        let row = PostgresRow::read(&columns, body).expect("a row");
        assert_eq!((row.len(), row.is_empty(), row.columns()[1].name()), (3, false, "name"));
        assert_eq!((row.get::<_, i32>(0), row.get::<_, &str>("name")), (42, "ab"));
        assert_eq!(row.get::<_, Option<i64>>("none"), None);
        for (error, what) in [
            (row.try_get::<_, i64>(0).map(drop), "column 0 cannot be read as i64"),
            (row.try_get::<_, i64>("none").map(drop), "column none cannot be read as i64"),
            (row.try_get::<_, i64>(3).map(drop), "there is no column 3"),
            (row.try_get::<_, i64>("x").map(drop), "there is no column x"),
        ] {
            let error = error.expect_err(what).to_string();
            assert!(error.starts_with(what), "{error}");
        }
    }

    #[test]
    fn what_is_no_row_of_these_columns_is_none() {
        let columns = columns(&[("id", Type::INT4)]);
        for body in [
            &b""[..],
            b"\0\x02\0\0\0\x01a\0\0\0\x01b",
            b"\0\x01\0\0\0\x05abcd",
            b"\0\x01\0\0\0\x01ab",
            b"\0\x01\xff\xff\xff\xfe",
            b"\0\x01",
        ] {
            assert!(PostgresRow::read(&columns, body).is_none(), "{body:?}");
        }
    }
}
