//! actix-web with tokio-postgres: each worker has clients of its own, which it takes in turn and on
//! which statements are pipelined, as the entries for public benchmarks have it.

use std::cell::Cell;
use std::rc::Rc;

use actix_web::web::{Data, Json};
use actix_web::{App, HttpResponse, HttpServer, error, get, post};
use data_peers::{CREATE, Item, LabRow, NewItem, Options, ROW, random_id};
use tokio_postgres::{Client, NoTls, Statement};

struct Connection {
    client: Client,
    row: Statement,
    create: Statement,
}

/// A worker's connections.
#[derive(Clone)]
struct Connections {
    all: Rc<Vec<Connection>>,
    next: Rc<Cell<usize>>,
}

impl Connections {
    async fn open(options: &Options, count: usize) -> Result<Connections, tokio_postgres::Error> {
        let mut all = Vec::new();
        for _ in 0..count {
            let (client, connection) = options.database.connect(NoTls).await?;
            actix_web::rt::spawn(connection);
            let (row, create) = (client.prepare(ROW).await?, client.prepare(CREATE).await?);
            all.push(Connection { client, row, create });
        }
        Ok(Connections { all: Rc::new(all), next: Rc::default() })
    }

    fn take(&self) -> &Connection {
        let at = self.next.get();
        self.next.set((at + 1) % self.all.len());
        &self.all[at]
    }
}

#[actix_web::main]
async fn main() -> std::io::Result<()> {
    let options = Options::of_process()?;
    let listener = options.listen()?;
    let workers = options.workers;
    let share = (options.connections / workers).max(1);
    let server = HttpServer::new(move || {
        let options = options.clone();
        App::new()
            .data_factory(move || {
                let options = options.clone();
                async move { Connections::open(&options, share).await }
            })
            .service(ready)
            .service(read_row)
            .service(create_item)
    });
    server.workers(workers).listen(listener)?.run().await
}

#[get("/readyz")]
async fn ready() -> HttpResponse {
    HttpResponse::Ok().finish()
}

#[get("/db")]
async fn read_row(connections: Data<Connections>) -> actix_web::Result<Json<LabRow>> {
    let connection = connections.take();
    let row = connection.client.query_one(&connection.row, &[&random_id()]).await;
    Ok(Json(row.map_err(error::ErrorInternalServerError)?.into()))
}

#[post("/items")]
async fn create_item(
    connections: Data<Connections>,
    item: Json<NewItem>,
) -> actix_web::Result<HttpResponse> {
    let connection = connections.take();
    let params: [&(dyn tokio_postgres::types::ToSql + Sync); 2] = [&item.name, &item.quantity];
    let row = connection.client.query_one(&connection.create, &params).await;
    let item: Item = row.map_err(error::ErrorInternalServerError)?.into();
    Ok(HttpResponse::Created().json(item))
}
