//! The sample API: items in a database, PostgreSQL or SQLite.
//!
//! | | |
//! |---|---|
//! | `GET /items?limit=20&after=0` | `{"items": [...], "next": id or null}`, by id |
//! | `POST /items` | 201, the item with its id, and `Location` |
//! | `GET /items/{id}` | the item, or 404 |
//! | `PUT /items/{id}` | the item, replaced as a whole, or 404 |
//! | `DELETE /items/{id}` | 204, or 404 |
//!
//! And for measuring, with the lab: `/db`, one random row of a table of 10,000, and
//! `/db/sleep/{ms}`, which holds a connection.
//!
//! A request whose client is gone, or that the shutdown cancels, takes its statement with it. No
//! statement is repeated: a write that failed with `Lost` or `Timeout` may have been done.

use std::cell::Cell;
use std::time::Duration;

use http::header::{CONTENT_TYPE, LOCATION};
use http::{HeaderValue, StatusCode};
use serde::Serialize;
use serde_json::value::RawValue;

use super::item::{Fault, ITEM_BYTES_MAX, Item, Page, read_id};
use super::lab::MILLISECONDS_MAX;
use super::router::{Router, get};
use crate::http::body::BodyError;
use crate::http::message::{IntoResponse, Request, Response};
use crate::pool::{Database, DatabaseError, Record, Ticket, Value};

/// Adds the routes of the API. Without a database they answer 503.
pub fn add(router: Router, database: Option<Database>) -> Router {
    router
        .with_state(database)
        .route("/items", get(list).post(create).body_bytes_max(ITEM_BYTES_MAX))
        .route("/items/{id}", get(read).put(replace).delete(delete).body_bytes_max(ITEM_BYTES_MAX))
}

/// Adds the routes for measuring.
pub fn add_lab(router: Router) -> Router {
    router.route("/db", get(row)).route("/db/sleep/{ms}", get(hold))
}

/// The tables, for PostgreSQL. Done in one transaction that no other replica is in.
pub const POSTGRES_SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS items (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL,
    quantity bigint NOT NULL,
    details text NOT NULL
);
CREATE TABLE IF NOT EXISTS lab_rows (
    id bigint PRIMARY KEY,
    number bigint NOT NULL
);
INSERT INTO lab_rows (id, number)
    SELECT n, 1 + n * 7919 % 10000 FROM generate_series(1, 10000) AS n
    WHERE NOT EXISTS (SELECT 1 FROM lab_rows);
";

/// The tables, for SQLite. An id is not given twice, not even when the last item was deleted.
pub const SQLITE_SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS items (
    id integer PRIMARY KEY AUTOINCREMENT,
    name text NOT NULL,
    quantity integer NOT NULL,
    details text NOT NULL
);
CREATE TABLE IF NOT EXISTS lab_rows (
    id integer PRIMARY KEY,
    number integer NOT NULL
);
INSERT INTO lab_rows (id, number)
    WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 10000)
    SELECT n, 1 + n * 7919 % 10000 FROM numbers
    WHERE NOT EXISTS (SELECT 1 FROM lab_rows);
";

/// An item as clients see it.
#[derive(Serialize)]
struct Shown {
    id: i64,
    name: String,
    quantity: i64,
    /// As it was stored: JSON.
    details: Box<RawValue>,
}

impl Shown {
    /// Of a row of `id, name, quantity, details`.
    fn of(record: Record) -> Result<Shown, Refusal> {
        let Ok([Value::Int(id), Value::Text(name), Value::Int(quantity), Value::Text(details)]) =
            <[Value; 4]>::try_from(record)
        else {
            return Err(mismatch("an item's row is not what the table says"));
        };
        let details = RawValue::from_string(details)
            .map_err(|_| mismatch("an item's details are no JSON in the database"))?;
        Ok(Shown { id, name, quantity, details })
    }
}

async fn list(request: Request) -> Result<Response, Refusal> {
    #[derive(Serialize)]
    struct List {
        items: Vec<Shown>,
        next: Option<i64>,
    }
    let page = Page::read(request.query())?;
    // One more than asked for tells whether there are more.
    let params = vec![page.after.into(), (page.limit + 1).into()];
    let mut records = ask(&request, LIST, params).await?;
    let limit = usize::try_from(page.limit).unwrap_or(usize::MAX);
    let has_more = records.len() > limit;
    records.truncate(limit);
    let items: Vec<Shown> = records.into_iter().map(Shown::of).collect::<Result<_, _>>()?;
    let next = items.last().map(|item| item.id).filter(|_| has_more);
    Ok(Response::json(&List { items, next }))
}

async fn create(mut request: Request) -> Result<Response, Refusal> {
    let item = body(&mut request).await?;
    let records = ask(&request, CREATE, params(item)).await?;
    let shown = Shown::of(one(records)?)?;
    let location = HeaderValue::from_str(&format!("/items/{}", shown.id)).expect("it is ASCII");
    let response = Response::json(&shown).with_status(StatusCode::CREATED);
    Ok(response.with_header(LOCATION, location))
}

async fn read(request: Request) -> Result<Response, Refusal> {
    let id = read_id(request.param("id"))?;
    Ok(Response::json(&Shown::of(look_up(&request, READ, id).await?)?))
}

async fn replace(mut request: Request) -> Result<Response, Refusal> {
    let id = read_id(request.param("id"))?;
    let mut params = params(body(&mut request).await?);
    params.push(id.into());
    let records = ask(&request, REPLACE, params).await?;
    Ok(Response::json(&Shown::of(one(records)?)?))
}

async fn delete(request: Request) -> Result<StatusCode, Refusal> {
    let id = read_id(request.param("id"))?;
    let records = ask(&request, DELETE, vec![id.into()]).await?;
    one(records)?;
    Ok(StatusCode::NO_CONTENT)
}

/// A random row.
async fn row(request: Request) -> Result<Response, Refusal> {
    #[derive(Serialize)]
    struct Row {
        id: i64,
        number: i64,
    }
    match look_up(&request, ROW, random(LAB_ROWS)).await?.as_slice() {
        [Value::Int(id), Value::Int(number)] => {
            Ok(Response::json(&Row { id: *id, number: *number }))
        }
        _ => Err(mismatch("a row of the lab is not what the table says")),
    }
}

async fn hold(request: Request) -> Result<Response, Refusal> {
    let ms = request.param("ms").and_then(|text| text.parse().ok());
    let expected = format!("a whole number from 0 to {MILLISECONDS_MAX}");
    let ms = ms.filter(|ms| *ms <= MILLISECONDS_MAX);
    let ms = ms.ok_or_else(|| Fault::parameter("ms", &expected))?;
    until_cancelled(&request, database(&request)?.sleep(Duration::from_millis(ms))).await?;
    Ok(Response::text(format!("slept {ms} ms in the database\n")))
}

/// Does one statement, as long as somebody waits for the response.
async fn ask(
    request: &Request,
    statement: &'static str,
    params: Vec<Value>,
) -> Result<Vec<Record>, Refusal> {
    until_cancelled(request, database(request)?.records(statement, params)).await
}

/// As [`ask`], of a row by its key: those that are asked for together share what they cost.
async fn look_up(request: &Request, statement: &'static str, key: i64) -> Result<Record, Refusal> {
    let ticket = database(request)?.read_records(statement, vec![key.into()]);
    one(until_cancelled(request, ticket).await?)
}

fn database(request: &Request) -> Result<&Database, Refusal> {
    request.state::<Option<Database>>().as_ref().ok_or(Refusal::NoDatabase)
}

async fn until_cancelled<T>(request: &Request, ticket: Ticket<T>) -> Result<T, Refusal> {
    // A ticket that is dropped cancels its job.
    let done = request.cancelled().run_until_cancelled(ticket).await;
    Ok(done.unwrap_or(Err(DatabaseError::Cancelled))?)
}

/// The row that was asked for.
fn one(mut records: Vec<Record>) -> Result<Record, Refusal> {
    records.pop().ok_or(Refusal::NotFound)
}

/// The item in a request's body.
async fn body(request: &mut Request) -> Result<Item, Refusal> {
    let content_type = request.header(CONTENT_TYPE).unwrap_or(JSON);
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case(JSON) {
        return Err(Refusal::NoJson);
    }
    Ok(Item::read(&request.bytes().await?)?)
}

fn params(item: Item) -> Vec<Value> {
    vec![item.name.into(), item.quantity.into(), text_of(&item.details).into()]
}

/// As JSON. (`to_string` writes it through `fmt`, which takes three times as long.)
fn text_of(details: &serde_json::Value) -> String {
    serde_json::to_string(details).expect("its keys are strings")
}

/// Why a request gets no item.
enum Refusal {
    Fault(Fault),
    Body(BodyError),
    Database(DatabaseError),
    NoDatabase,
    NoJson,
    NotFound,
}

fn mismatch(what: &str) -> Refusal {
    Refusal::Database(DatabaseError::Mismatch(what.to_owned()))
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let told = |status: StatusCode, what: &str| {
            Response::json(&serde_json::json!({ "error": what })).with_status(status)
        };
        match self {
            Refusal::Fault(fault) => fault.into_response(),
            Refusal::Body(error) => error.into_response(),
            Refusal::Database(error) => error.into_response(),
            Refusal::NoDatabase => {
                told(StatusCode::SERVICE_UNAVAILABLE, "this server has no database")
            }
            Refusal::NoJson => {
                told(StatusCode::UNSUPPORTED_MEDIA_TYPE, "the body must be application/json")
            }
            Refusal::NotFound => told(StatusCode::NOT_FOUND, "there is no such item"),
        }
    }
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Refusal {
        Refusal::Fault(fault)
    }
}

impl From<BodyError> for Refusal {
    fn from(error: BodyError) -> Refusal {
        Refusal::Body(error)
    }
}

impl From<DatabaseError> for Refusal {
    fn from(error: DatabaseError) -> Refusal {
        Refusal::Database(error)
    }
}

/// A number from 1 to `max`, different in each call: xorshift, seeded by thread from the standard
/// library's randomness. For spreading load, not for secrets.
fn random(max: u64) -> i64 {
    use std::hash::{BuildHasher, RandomState};
    thread_local! {
        static STATE: Cell<u64> = Cell::new(RandomState::new().hash_one(0) | 1);
    }
    let mut x = STATE.get();
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    STATE.set(x);
    i64::try_from(1 + x % max).expect("max is small")
}

const LIST: &str =
    "SELECT id, name, quantity, details FROM items WHERE id > $1 ORDER BY id LIMIT $2";
const CREATE: &str = "INSERT INTO items (name, quantity, details) VALUES ($1, $2, $3) \
                      RETURNING id, name, quantity, details";
const READ: &str = "SELECT id, name, quantity, details FROM items WHERE id = $1";
const REPLACE: &str = "UPDATE items SET name = $1, quantity = $2, details = $3 WHERE id = $4 \
                       RETURNING id, name, quantity, details";
const DELETE: &str = "DELETE FROM items WHERE id = $1 RETURNING id";
const ROW: &str = "SELECT id, number FROM lab_rows WHERE id = $1";

const JSON: &str = "application/json";

/// Rows of the lab's table, from 1 on.
const LAB_ROWS: u64 = 10_000;
