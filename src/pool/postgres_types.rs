//! Types that a database has beyond the built-in ones: enums, domains, composites, ranges, and
//! those of extensions. A statement is prepared with the numbers of its types only; what a number
//! means is in the catalogue, which is asked once per connection.

use std::collections::HashMap;
use std::sync::Arc;

use tokio_postgres::types::{Field, Kind, Oid, Type};

use super::error::DatabaseError;
use super::postgres_row::{PostgresColumn, PostgresRow};

/// What one connection knows.
#[derive(Debug, Default)]
pub struct Types {
    known: HashMap<Oid, Type>,
    /// What the catalogue has said of types that are made of others.
    told: HashMap<Oid, Told>,
}

/// A type of which the catalogue is to be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missing(pub Oid);

#[derive(Debug)]
struct Told {
    name: String,
    schema: String,
    class: String,
    element: Oid,
    base: Oid,
    range_of: Oid,
    labels: Vec<String>,
    fields: Vec<(String, Oid)>,
}

impl Types {
    /// # Errors
    /// Of which type the catalogue has to be asked first: this one, or one that it is made of.
    pub fn find(&mut self, oid: Oid) -> Result<Type, Missing> {
        if let Some(ty) = Type::from_oid(oid).or_else(|| self.known.get(&oid).cloned()) {
            return Ok(ty);
        }
        // Taken out while it is worked on: a catalogue with a type made of itself ends here.
        let told = self.told.remove(&oid).ok_or(Missing(oid))?;
        match self.kind(&told) {
            Ok(kind) => {
                let ty = Type::new(told.name, oid, kind, told.schema);
                self.known.insert(oid, ty.clone());
                Ok(ty)
            }
            Err(missing) => {
                self.told.insert(oid, told);
                Err(missing)
            }
        }
    }

    /// In the order of the client library's own.
    fn kind(&mut self, told: &Told) -> Result<Kind, Missing> {
        Ok(if told.class == "e" {
            Kind::Enum(told.labels.clone())
        } else if told.class == "p" {
            Kind::Pseudo
        } else if told.base != 0 {
            Kind::Domain(self.find(told.base)?)
        } else if told.element != 0 {
            Kind::Array(self.find(told.element)?)
        } else if told.class == "c" {
            let mut fields = Vec::with_capacity(told.fields.len());
            for (name, oid) in &told.fields {
                fields.push(Field::new(name.clone(), self.find(*oid)?));
            }
            Kind::Composite(fields)
        } else if told.range_of != 0 {
            Kind::Range(self.find(told.range_of)?)
        } else {
            Kind::Simple
        })
    }

    /// What the catalogue has said of a type; `row` as of [`columns`].
    ///
    /// # Errors
    /// When it said nothing, or something else.
    pub fn tell(&mut self, oid: Oid, row: Option<&PostgresRow>) -> Result<(), DatabaseError> {
        let Some(row) = row else {
            return Err(DatabaseError::Mismatch(format!("there is no type {oid} any more")));
        };
        let names: Vec<String> = row.try_get(7)?;
        let types: Vec<Oid> = row.try_get(8)?;
        let told = Told {
            name: row.try_get(0)?,
            schema: row.try_get(1)?,
            class: row.try_get(2)?,
            element: row.try_get(3)?,
            base: row.try_get(4)?,
            range_of: row.try_get(5)?,
            labels: row.try_get(6)?,
            fields: names.into_iter().zip(types).collect(),
        };
        self.told.insert(oid, told);
        Ok(())
    }
}

/// The columns of [`LOOKUP`].
pub fn columns() -> Arc<[PostgresColumn]> {
    let types = [
        Type::TEXT,
        Type::TEXT,
        Type::TEXT,
        Type::OID,
        Type::OID,
        Type::OID,
        Type::TEXT_ARRAY,
        Type::TEXT_ARRAY,
        Type::OID_ARRAY,
    ];
    types.into_iter().map(|ty| PostgresColumn { name: String::new(), ty }).collect()
}

/// Asks the catalogue of the type `$1`.
pub const LOOKUP: &str = "\
    SELECT t.typname::text, n.nspname::text, t.typtype::text, t.typelem, t.typbasetype, \
        coalesce(r.rngsubtype, 0)::oid, \
        ARRAY(SELECT e.enumlabel::text FROM pg_catalog.pg_enum e \
            WHERE e.enumtypid = t.oid ORDER BY e.enumsortorder), \
        ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a \
            WHERE a.attrelid = t.typrelid AND t.typrelid <> 0 AND a.attnum > 0 \
                AND NOT a.attisdropped ORDER BY a.attnum), \
        ARRAY(SELECT a.atttypid FROM pg_catalog.pg_attribute a \
            WHERE a.attrelid = t.typrelid AND t.typrelid <> 0 AND a.attnum > 0 \
                AND NOT a.attisdropped ORDER BY a.attnum) \
    FROM pg_catalog.pg_type t \
    JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace \
    LEFT JOIN pg_catalog.pg_range r ON r.rngtypid = t.oid \
    WHERE t.oid = $1";
