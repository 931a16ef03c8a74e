//! What the servers have in common: their command line, their statements, what an item is.
//!
//! `data-NAME ADDRESS`, with `DATABASE_URL`, in `DATABASE_CONNECTIONS` the number of its
//! connections and in `WORKERS` that of its threads. The tables are there: ebbtide makes them.

use std::cell::Cell;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio_postgres::Row;

/// How one of the servers is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its database.
    pub database: tokio_postgres::Config,
    /// How many connections it may have to it.
    pub connections: usize,
    /// How many threads serve clients.
    pub workers: usize,
}

impl Options {
    /// As the process was started.
    ///
    /// # Errors
    /// When something is missing or cannot be read.
    pub fn of_process() -> io::Result<Options> {
        let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, what.to_owned());
        let variable = |name: &str| std::env::var(name).map_err(|_| bad(name));
        let address = std::env::args().nth(1).and_then(|text| text.parse().ok());
        let number = |name: &str| variable(name)?.parse::<usize>().map_err(|_| bad(name));
        Ok(Options {
            address: address.ok_or_else(|| bad("expected an address"))?,
            database: variable("DATABASE_URL")?.parse().map_err(|_| bad("DATABASE_URL"))?,
            connections: number("DATABASE_CONNECTIONS")?,
            workers: number("WORKERS")?,
        })
    }

    /// Binds the address and says so.
    ///
    /// # Errors
    /// When it cannot be bound.
    pub fn listen(&self) -> io::Result<TcpListener> {
        let listener = TcpListener::bind(self.address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let line = format!("{{\"event_type\":\"server_started\",\"listen\":\"{address}\"}}\n");
        io::stderr().write_all(line.as_bytes())?;
        Ok(listener)
    }
}

/// A row of the lab's table.
#[derive(Debug, Serialize)]
pub struct LabRow {
    /// From 1 to 10,000.
    pub id: i64,
    /// What stands there.
    pub number: i64,
}

impl From<Row> for LabRow {
    fn from(row: Row) -> LabRow {
        LabRow { id: row.get(0), number: row.get(1) }
    }
}

/// An item as it is sent.
#[derive(Debug, Serialize)]
pub struct Item {
    id: i64,
    name: String,
    quantity: i64,
    details: Box<RawValue>,
}

impl From<Row> for Item {
    fn from(row: Row) -> Item {
        let details = RawValue::from_string(row.get(3)).expect("JSON was stored");
        Item { id: row.get(0), name: row.get(1), quantity: row.get(2), details }
    }
}

/// An item as it comes.
#[derive(Debug, Deserialize)]
pub struct NewItem {
    /// Its name.
    pub name: String,
    /// How many there are.
    pub quantity: i64,
}

/// A random id of the lab's table.
pub fn random_id() -> i64 {
    thread_local! {
        static STATE: Cell<u64> = Cell::new(RandomState::new().hash_one(0) | 1);
    }
    let mut x = STATE.get();
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    STATE.set(x);
    i64::try_from(1 + x % 10_000).expect("a small number")
}

/// One random row.
pub const ROW: &str = "SELECT id, number FROM lab_rows WHERE id = $1";

/// A new item.
pub const CREATE: &str = "INSERT INTO items (name, quantity, details) VALUES ($1, $2, '{}') \
                          RETURNING id, name, quantity, details";
