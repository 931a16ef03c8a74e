//! Statements and their answers on the wire: types, sizes, and what several share.

use std::time::Duration;

use ebbtide::{DatabaseError, Postgres, PostgresAddress, PostgresOptions, Ticket, params};
use postgres::types::{Field, Kind};

use crate::services::postgres::Database;
use crate::services::{SOON, until};

fn connected(url: &str, pipelined: usize) -> Postgres {
    let options = PostgresOptions { pipelined, exclusive: 1, ..PostgresOptions::default() };
    let address = PostgresAddress::parse(url).unwrap();
    let db = Postgres::start(&address, &options).unwrap();
    until("the client to connect", SOON, || db.usable().ok());
    db
}

fn wait<T: Send + 'static>(ticket: Ticket<T>) -> Result<T, DatabaseError> {
    ticket.wait()
}

fn state(error: &DatabaseError) -> &str {
    match error {
        DatabaseError::Rejected(rejection) => &rejection.code,
        other => panic!("{other}"),
    }
}

/// A quotient, refused by the server when it is one by 0.
const QUOTIENT: &str = "SELECT 1000 / $1::int4";

#[test]
fn reads_that_share_a_transaction_get_their_own_rows_and_their_own_errors() {
    let Some(database) = Database::create("shared_reads") else { return };
    let db = connected(&database.url(), 2);
    for round in 0..50_i32 {
        // One of seven fails, in another place each round.
        let values = (0..100).map(|at| if at % 7 == round % 7 { 0 } else { at + 1 });
        let tickets: Vec<_> =
            values.map(|value| (value, db.read(QUOTIENT, params![value]))).collect();
        for (value, ticket) in tickets {
            match wait(ticket) {
                Ok(rows) => assert_eq!(rows[0].get::<_, i32>(0), 1000 / value),
                Err(error) => assert_eq!((value, state(&error)), (0, "22012")),
            }
        }
    }
    db.close(std::time::Instant::now() + SOON).unwrap();
}

#[test]
fn reads_do_share_transactions() {
    let Some(database) = Database::create("sharing") else { return };
    let db = connected(&database.url(), 1);
    let statement = "SELECT pg_current_xact_id()::text";
    until("two in one transaction", SOON, || {
        let tickets: Vec<_> = (0..16).map(|_| db.read(statement, params![])).collect();
        let mut ids: Vec<String> =
            tickets.into_iter().map(|ticket| wait(ticket).unwrap()[0].get(0)).collect();
        let count = ids.len();
        ids.dedup();
        (ids.len() < count).then_some(())
    });
    let tickets: Vec<_> = (0..16).map(|_| db.query(statement, params![])).collect();
    let mut ids: Vec<String> =
        tickets.into_iter().map(|ticket| wait(ticket).unwrap()[0].get(0)).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 16, "what may write has one of its own");
}

#[test]
fn what_writes_all_the_same_is_done_once() {
    let Some(database) = Database::create("written_reads") else { return };
    let db = connected(&database.url(), 2);
    wait(db.query("CREATE TABLE written (key int4, quotient int4)", params![])).unwrap();
    let insert = "INSERT INTO written VALUES ($1, 1000 / $2::int4) RETURNING key";
    let mut acknowledged = Vec::new();
    for round in 0..30 {
        let tickets: Vec<_> = (0..40)
            .map(|at| {
                let key = round * 100 + at;
                (key, db.read(insert, params![key, at % 9]))
            })
            .collect();
        for (key, ticket) in tickets {
            match wait(ticket) {
                Ok(rows) => {
                    assert_eq!(rows[0].get::<_, i32>(0), key);
                    acknowledged.push(key);
                }
                Err(error) => assert_eq!((key % 100 % 9, state(&error)), (0, "22012")),
            }
        }
    }
    let rows = database.rows("SELECT key FROM written ORDER BY key");
    let written: Vec<i32> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(written, acknowledged);
}

#[test]
fn a_read_that_is_cancelled_by_the_server_costs_its_neighbours_nothing() {
    let Some(database) = Database::create("slow_neighbour") else { return };
    let options = PostgresOptions {
        pipelined: 1,
        exclusive: 1,
        statement_timeout: Duration::from_millis(200),
        ..PostgresOptions::default()
    };
    let address = PostgresAddress::parse(&database.url()).unwrap();
    let db = Postgres::start(&address, &options).unwrap();
    until("the client to connect", SOON, || db.usable().ok());
    let sleep = "SELECT $1::int4 FROM pg_sleep($2)";
    let ask = |value: i32, seconds: f64| db.read(sleep, params![value, seconds]);
    for value in 0..20 {
        wait(ask(value, 0.0)).unwrap();
    }
    let tickets: Vec<_> =
        (0..10).map(|at| (at, ask(at, if at == 5 { 30.0 } else { 0.0 }))).collect();
    for (at, ticket) in tickets {
        match wait(ticket) {
            Ok(rows) => assert_eq!(rows[0].get::<_, i32>(0), at),
            Err(error) => assert_eq!((at, error), (5, DatabaseError::Timeout)),
        }
    }
}

#[test]
fn types_of_the_databases_own_are_known_by_name() {
    let Some(database) = Database::create("own_types") else { return };
    let db = connected(&database.url(), 1);
    for statement in [
        "CREATE TYPE mood AS ENUM ('sad', 'merry')",
        "CREATE DOMAIN positive AS int4 CHECK (VALUE > 0)",
        "CREATE TYPE place AS (name text, size positive, moods mood[])",
        "CREATE TYPE span AS RANGE (subtype = float8)",
    ] {
        wait(db.query(statement, params![])).unwrap();
    }
    let all = "SELECT 'merry'::mood, 7::positive, ROW('a', 7, '{sad}')::place, '[1,2)'::span, \
               ARRAY['sad']::mood[], 1::int4";
    let rows = wait(db.query(all, params![])).unwrap();
    let columns = rows[0].columns();
    let mood = |kind: &Kind| matches!(kind, Kind::Enum(labels) if labels == &["sad", "merry"]);
    assert_eq!((columns[0].ty().name(), columns[0].ty().schema()), ("mood", "public"));
    assert!(mood(columns[0].ty().kind()));
    assert_eq!(columns[1].ty().name(), "int4", "the server says of a domain what it is made of");
    let Kind::Composite(fields) = columns[2].ty().kind() else { panic!("{:?}", columns[2]) };
    let names: Vec<&str> = fields.iter().map(Field::name).collect();
    assert_eq!(names, ["name", "size", "moods"]);
    assert!(matches!(fields[1].type_().kind(), Kind::Domain(of) if of.name() == "int4"));
    assert!(matches!(fields[2].type_().kind(), Kind::Array(of) if mood(of.kind())));
    assert!(matches!(columns[3].ty().kind(), Kind::Range(of) if of.name() == "float8"));
    assert!(matches!(columns[4].ty().kind(), Kind::Array(of) if mood(of.kind())));
    assert_eq!(rows[0].get::<_, i32>(5), 1);
    // As a parameter, which has to be given as what it is.
    let echo = "SELECT $1::mood::text";
    let error = wait(db.query(echo, params!["sad"])).unwrap_err();
    assert!(matches!(&error, DatabaseError::Mismatch(what) if what.contains("mood")), "{error}");
    let rows = wait(db.query("SELECT $1::text::mood::text", params!["sad"])).unwrap();
    assert_eq!(rows[0].get::<_, &str>(0), "sad");
}

#[test]
fn values_and_results_may_be_large() {
    let Some(database) = Database::create("large") else { return };
    let db = connected(&database.url(), 1);
    for length in [0, 1, 16 * 1024, 3 * 1024 * 1024_usize] {
        let text = "x".repeat(length);
        let small = db.query("SELECT 1::int4", params![]);
        let echo = db.query("SELECT $1::text, length($1::text)", params![text.clone()]);
        let rows = wait(echo).unwrap();
        assert!(rows[0].get::<_, &str>(0) == text, "{length} bytes come back as they went");
        assert_eq!(rows[0].get::<_, i32>(1), i32::try_from(length).unwrap());
        assert_eq!(wait(small).unwrap()[0].get::<_, i32>(0), 1);
    }
    let rows = wait(db.query("SELECT n FROM generate_series(1, 50000) AS n", params![])).unwrap();
    assert_eq!((rows.len(), rows[49_999].get::<_, i32>("n")), (50_000, 50_000));
}

#[test]
fn what_is_not_a_statement_of_a_shared_session_is_refused() {
    let Some(database) = Database::create("refused") else { return };
    let db = connected(&database.url(), 1);
    for text in ["COPY t TO STDOUT", "copy t from stdin", "BEGIN", "SET a.b = 1", "SELECT '\0'"] {
        let error = wait(db.query(text, params![])).unwrap_err();
        assert!(matches!(error, DatabaseError::Mismatch(_)), "{text}: {error}");
    }
    let error = wait(db.query("SELECT $1::int4", params![1_i32, 2_i32])).unwrap_err();
    assert_eq!(error.to_string(), "the statement has 1 parameters and was given 2");
    assert_eq!(wait(db.query("", params![])).unwrap().len(), 0);
    let notice = "DO $$ BEGIN RAISE NOTICE 'hello'; END $$";
    assert_eq!(wait(db.query(notice, params![])).unwrap().len(), 0);
    assert_eq!(wait(db.query("SELECT 1::int4", params![])).unwrap()[0].get::<_, i32>(0), 1);
}

#[test]
fn of_several_servers_the_one_that_is_wanted_is_taken() {
    let Some(database) = Database::create("several") else { return };
    let url = database.url();
    let (start, rest) = url.split_once('@').unwrap();
    let (host, name) = rest.split_once('/').unwrap();
    // Nobody listens on the first.
    let both = format!("{start}@127.0.0.1:1,{host}/{name}");
    let db = connected(&both, 1);
    assert_eq!(wait(db.query("SELECT 1::int4", params![])).unwrap()[0].get::<_, i32>(0), 1);

    let between = if url.contains('?') { '&' } else { '?' };
    let standby = format!("{url}{between}target_session_attrs=read-only");
    let address = PostgresAddress::parse(&standby).unwrap();
    let db = Postgres::start(&address, &PostgresOptions::default()).unwrap();
    let why = until("the reason", SOON, || db.usable().err().filter(|why| why != "connecting"));
    assert_eq!(why, "the server is not read-only");
    let primary = format!("{url}{between}target_session_attrs=read-write");
    connected(&primary, 1);
}
