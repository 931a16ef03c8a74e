//! TLS to PostgreSQL, as far as the `sslmode` of the address asks for it.

use std::path::{Path, PathBuf};

use ebbtide::{Postgres, PostgresAddress, PostgresOptions, params};

use crate::services::keeper::{as_user, directory};
use crate::services::postgres::{Cluster, Database};
use crate::services::{SOON, program, until};

/// The certificates of a server called `localhost`, and of who signed it.
struct Certificates {
    folder: PathBuf,
}

impl Certificates {
    fn make() -> Option<Certificates> {
        let openssl = program("openssl")?;
        let folder = directory("tls");
        let run = |line: &str| {
            let mut command = as_user(&openssl);
            let done = command.current_dir(&folder).args(line.split(' ')).output().unwrap();
            assert!(done.status.success(), "{line}: {}", String::from_utf8_lossy(&done.stderr));
        };
        std::fs::write(folder.join("names"), "subjectAltName=DNS:localhost").unwrap();
        run("req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=ca -keyout ca.key -out ca.pem");
        run("req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout key.pem -out request.pem");
        run("x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \
             -extfile names -out cert.pem");
        Some(Certificates { folder })
    }

    fn path(&self, name: &str) -> String {
        Path::new(&self.folder).join(name).display().to_string()
    }
}

/// Whether the session is encrypted, or why there is none.
fn encrypted(url: &str) -> Result<bool, String> {
    let options = PostgresOptions { pipelined: 1, exclusive: 1, ..PostgresOptions::default() };
    let db = Postgres::start(&PostgresAddress::parse(url).unwrap(), &options).unwrap();
    let usable = until("a connection or a reason", SOON, || match db.usable() {
        Err(reason) if reason == "connecting" => None,
        other => Some(other),
    });
    usable?;
    let own = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    let statement = db.query(own, params![]).wait().unwrap()[0].get::<_, bool>(0);
    let closure = db.run(move |client| client.query_one(own, &[]).map(|row| row.get(0))).wait();
    assert_eq!(closure, Ok(statement));
    // Cancelling goes its own way to the server.
    drop(db.run(|client| client.execute("SELECT pg_sleep(60)", &[])));
    db.close(std::time::Instant::now() + SOON).unwrap();
    Ok(statement)
}

#[test]
fn sslmode_says_whether_and_whom_to_believe() {
    let Some(certificates) = Certificates::make() else { return };
    let settings = [
        "ssl=on".to_owned(),
        format!("ssl_cert_file={}", certificates.path("cert.pem")),
        format!("ssl_key_file={}", certificates.path("key.pem")),
    ];
    let Some(cluster) = Cluster::start_with(&settings.each_ref().map(String::as_str)) else {
        return;
    };
    let database: Database<'_> = cluster.database("tls");
    let root = certificates.path("ca.pem");
    let by_address = |parameters: &str| encrypted(&format!("{}?{parameters}", database.url()));
    let by_name = |parameters: &str| {
        let url = database.url().replace("127.0.0.1", "localhost");
        encrypted(&format!("{url}?{parameters}"))
    };
    assert_eq!(by_address("sslmode=disable"), Ok(false));
    assert_eq!(by_address("sslmode=prefer"), Ok(true));
    assert_eq!(by_address("sslmode=require"), Ok(true));
    assert_eq!(by_address(&format!("sslmode=verify-ca&sslrootcert={root}")), Ok(true));
    assert_eq!(by_name(&format!("sslmode=verify-full&sslrootcert={root}")), Ok(true));
    for refused in [
        by_address(&format!("sslmode=verify-full&sslrootcert={root}")),
        by_name("sslmode=verify-full"),
        by_name(&format!("sslmode=verify-ca&sslrootcert={}", certificates.path("nothing"))),
    ] {
        let why = refused.expect_err("a server that is not to be believed");
        assert!(why.contains("cert"), "{why}");
    }
}

#[test]
fn a_server_without_tls_is_refused_where_it_is_required() {
    let Some(database) = Database::create("no_tls") else { return };
    let why = encrypted(&format!("{}?sslmode=require", database.url())).expect_err("no TLS");
    assert!(why.contains("TLS"), "{why}");
    assert_eq!(encrypted(&format!("{}?sslmode=prefer", database.url())), Ok(false));
}
