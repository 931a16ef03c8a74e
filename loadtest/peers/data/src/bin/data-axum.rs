//! axum with deadpool-postgres, as both show it in their examples.

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use data_peers::{CREATE, Item, LabRow, NewItem, Options, ROW, random_id};
use deadpool_postgres::{Manager, ManagerConfig, Pool, PoolError, RecyclingMethod};
use tokio_postgres::NoTls;

fn main() -> std::io::Result<()> {
    let options = Options::of_process()?;
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(options.workers).enable_all().build()?.block_on(serve(options))
}

async fn serve(options: Options) -> std::io::Result<()> {
    let fast = ManagerConfig { recycling_method: RecyclingMethod::Fast };
    let manager = Manager::from_config(options.database.clone(), NoTls, fast);
    let pool = Pool::builder(manager).max_size(options.connections).build();
    let pool = pool.map_err(std::io::Error::other)?;
    let router = Router::new()
        .route("/readyz", get(ready))
        .route("/db", get(row))
        .route("/items", post(create))
        .with_state(pool);
    let listener = tokio::net::TcpListener::from_std(options.listen()?)?;
    axum::serve(listener, router).await
}

async fn ready(State(pool): State<Pool>) -> StatusCode {
    match pool.get().await {
        Ok(_) => StatusCode::OK,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}

async fn row(State(pool): State<Pool>) -> Result<Json<LabRow>, StatusCode> {
    let client = pool.get().await.map_err(unavailable)?;
    let statement = client.prepare_cached(ROW).await.map_err(failed)?;
    let row = client.query_one(&statement, &[&random_id()]).await.map_err(failed)?;
    Ok(Json(row.into()))
}

async fn create(
    State(pool): State<Pool>,
    Json(item): Json<NewItem>,
) -> Result<(StatusCode, Json<Item>), StatusCode> {
    let client = pool.get().await.map_err(unavailable)?;
    let statement = client.prepare_cached(CREATE).await.map_err(failed)?;
    let row = client.query_one(&statement, &[&item.name, &item.quantity]).await;
    Ok((StatusCode::CREATED, Json(row.map_err(failed)?.into())))
}

#[allow(clippy::needless_pass_by_value, reason = "what map_err gives")]
fn failed(_: tokio_postgres::Error) -> StatusCode {
    StatusCode::INTERNAL_SERVER_ERROR
}

#[allow(clippy::needless_pass_by_value, reason = "what map_err gives")]
fn unavailable(_: PoolError) -> StatusCode {
    StatusCode::SERVICE_UNAVAILABLE
}
