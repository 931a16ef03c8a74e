//! A server over PostgreSQL: statements that share connections, a transaction that has one to
//! itself, and queries that end with their request.
//!
//! ```text
//! DATABASE_URL=postgres://me:secret@localhost/shop cargo run --example postgres
//! curl -X POST localhost:8080/visits/anna
//! curl localhost:8080/visits
//! curl -m 1 localhost:8080/slow    # its query is cancelled with it
//! ```

use std::error::Error;
use std::future::Future;

use ebbtide::{
    DatabaseError, Options, Postgres, PostgresAddress, PostgresOptions, Report, Request, Response,
    Router, Server, get, params, post, setup_signal_handlers,
};

/// What the database says, as long as the request's client waits for it. An error is answered as it
/// deserves: 503 with `Retry-After` only where nothing has been done.
async fn while_wanted<T>(
    request: &Request,
    work: impl Future<Output = Result<T, DatabaseError>>,
) -> Result<T, DatabaseError> {
    let done = request.cancelled().run_until_cancelled(work).await;
    done.unwrap_or(Err(DatabaseError::Cancelled))
}

/// One statement: pipelined with those of other requests.
async fn list(db: Postgres, request: Request) -> Result<Response, DatabaseError> {
    let statement = "SELECT name, count FROM visits ORDER BY name LIMIT 100";
    let rows = while_wanted(&request, db.query(statement, params![])).await?;
    let line = |row: &ebbtide::PostgresRow| {
        let (name, count): (&str, i64) = (row.get(0), row.get(1));
        format!("{name} {count}\n")
    };
    Ok(Response::text(rows.iter().map(line).collect::<String>()))
}

/// Two statements that belong together.
async fn visit(db: Postgres, request: Request) -> Result<Response, DatabaseError> {
    let name = request.param("name").unwrap_or_default().to_owned();
    let counted = db.transaction(move |transaction| {
        let insert = "INSERT INTO visits VALUES ($1, 0) ON CONFLICT DO NOTHING";
        transaction.execute(insert, &[&name])?;
        let count = "UPDATE visits SET count = count + 1 WHERE name = $1 RETURNING count";
        transaction.query_one(count, &[&name]).map(|row| row.get::<_, i64>(0))
    });
    let count = while_wanted(&request, counted).await?;
    Ok(Response::text(format!("{count}\n")))
}

/// A query that takes its time.
async fn slow(db: Postgres, request: Request) -> Result<Response, DatabaseError> {
    while_wanted(&request, db.query("SELECT pg_sleep(1.5)", params![])).await?;
    Ok(Response::text("done\n"))
}

fn main() -> Result<Report, Box<dyn Error>> {
    let signals = setup_signal_handlers()?;
    let url = std::env::var("DATABASE_URL")?;
    // Done before the first job, whenever the database is there.
    let make = "CREATE TABLE IF NOT EXISTS visits (name text PRIMARY KEY, count bigint NOT NULL)";
    let options = PostgresOptions { schema: Some(make.into()), ..PostgresOptions::default() };
    let db = Postgres::start(&PostgresAddress::parse(&url)?, &options)?;
    let (listing, visiting, sleeping) = (db.clone(), db.clone(), db.clone());
    let router = Router::new()
        .route("/visits", get(move |request: Request| list(listing.clone(), request)))
        .route("/visits/{name}", post(move |request: Request| visit(visiting.clone(), request)))
        .route("/slow", get(move |request: Request| slow(sleeping.clone(), request)));
    let server = Server::bind(Options::default(), router)?.with_database(&db);
    Ok(server.with_signals(signals).run()?)
}
