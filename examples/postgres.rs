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

use ebbtide::{
    DatabaseError, IntoResponse, Options, Postgres, PostgresAddress, PostgresOptions, Report,
    Request, Response, Router, Server, StatusCode, get, params, post, setup_signal_handlers,
};

/// 503 where it is worth coming back, 500 where it is not.
fn failed(error: &DatabaseError) -> Response {
    match error {
        DatabaseError::Rejected(_) | DatabaseError::Mismatch(_) | DatabaseError::Panicked => {
            // What the database says is for the log.
            eprintln!("{error}");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
        _ => Response::busy(),
    }
}

/// One statement: pipelined with those of other requests.
async fn list(db: Postgres) -> Response {
    let statement = "SELECT name, count FROM visits ORDER BY name LIMIT 100";
    match db.query(statement, params![]).await {
        Ok(rows) => {
            let line = |row: &ebbtide::PostgresRow| {
                let (name, count): (&str, i64) = (row.get(0), row.get(1));
                format!("{name} {count}\n")
            };
            Response::text(rows.iter().map(line).collect::<String>())
        }
        Err(error) => failed(&error),
    }
}

/// Two statements that belong together.
async fn visit(db: Postgres, name: String) -> Response {
    let counted = db.transaction(move |transaction| {
        let insert = "INSERT INTO visits VALUES ($1, 0) ON CONFLICT DO NOTHING";
        transaction.execute(insert, &[&name])?;
        let count = "UPDATE visits SET count = count + 1 WHERE name = $1 RETURNING count";
        transaction.query_one(count, &[&name]).map(|row| row.get::<_, i64>(0))
    });
    match counted.await {
        Ok(count) => Response::text(format!("{count}\n")),
        Err(error) => failed(&error),
    }
}

/// A query that nobody needs any more when its client has gone.
async fn slow(db: Postgres, request: Request) -> Response {
    let ticket = db.query("SELECT pg_sleep(1.5)", params![]);
    match request.cancelled().run_until_cancelled(ticket).await {
        Some(Ok(_)) => Response::text("done\n"),
        Some(Err(error)) => failed(&error),
        None => Response::busy(),
    }
}

fn main() -> Result<Report, Box<dyn Error>> {
    let signals = setup_signal_handlers()?;
    let url = std::env::var("DATABASE_URL")?;
    let db = Postgres::start(&PostgresAddress::parse(&url)?, &PostgresOptions::default())?;
    let make = "CREATE TABLE IF NOT EXISTS visits (name text PRIMARY KEY, count bigint NOT NULL)";
    db.run(move |client| client.batch_execute(make)).wait()?;
    let (listing, visiting, sleeping) = (db.clone(), db.clone(), db.clone());
    let router = Router::new()
        .route("/visits", get(move |_: Request| list(listing.clone())))
        .route(
            "/visits/{name}",
            post(move |request: Request| {
                visit(visiting.clone(), request.param("name").unwrap_or_default().to_owned())
            }),
        )
        .route("/slow", get(move |request: Request| slow(sleeping.clone(), request)));
    let server = Server::bind(Options::default(), router)?.with_database(&db);
    Ok(server.with_signals(signals).run()?)
}
