//! `loadtest data`: servers with one PostgreSQL database, side by side.
//!
//! Each server gets the same number of connections to a cluster that the run starts for itself (not
//! synced to disk: the database is not what is measured). Servers take turns within a round, and
//! each round begins with another, so what else the machine does meets all. A server's CPU time is
//! the kernel's count of its process, without PostgreSQL's and without the load's.
//!
//! How many workers are best depends on the server and on what shares its cores, so each is
//! measured with several numbers of them, and compared as it was fastest.
//!
//! Two scenarios: `db`, one row by its key, and `items`, one row inserted and committed.

mod cluster;
mod server;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use self::cluster::Cluster;
pub use self::server::Contender;
use self::server::{Means, Server};
use crate::ebbtide::Ebbtide;
use crate::results;
use crate::root;
use crate::target::Fault;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Order {
    /// What is asked of the servers.
    pub scenarios: Vec<Scenario>,
    /// Connections of the load, one measure each.
    pub clients: Vec<u32>,
    /// Connections of each server to the database.
    pub connections: u32,
    /// Threads of each server for clients, one measure each.
    pub workers: Vec<u32>,
    /// How often everything is measured.
    pub rounds: u32,
    /// How long each measure takes.
    pub seconds: u32,
    /// ebbtide's program; `None` to have it built.
    pub binary: Option<PathBuf>,
    /// Where results go.
    pub out: PathBuf,
}

/// What is asked of the servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scenario {
    /// `GET /db`: one row by its key.
    Db,
    /// `POST /items`: one row inserted.
    Items,
}

impl Scenario {
    /// All of them.
    pub const ALL: [Scenario; 2] = [Scenario::Db, Scenario::Items];

    /// Its name on the command line and in results.
    pub fn name(self) -> &'static str {
        match self {
            Scenario::Db => "db",
            Scenario::Items => "items",
        }
    }

    fn path(self) -> &'static str {
        match self {
            Scenario::Db => "/db",
            Scenario::Items => "/items",
        }
    }

    fn script(self) -> &'static str {
        match self {
            Scenario::Db => "summary.lua",
            Scenario::Items => "items.lua",
        }
    }
}

/// What one measure found.
#[derive(Clone, Debug)]
struct Measured {
    scenario: Scenario,
    clients: u32,
    contender: Contender,
    workers: u32,
    per_second: f64,
    /// Of the server's process, for each request.
    cpu_us: f64,
    /// wrk's own words.
    summary: Value,
}

/// A run of the command.
///
/// # Errors
/// When a program is missing, a server does not start or answers with errors.
pub fn run(order: &Order) -> Result<(), Fault> {
    std::fs::create_dir_all(&order.out).map_err(Fault::of("make the directory of results"))?;
    let binary = match &order.binary {
        // It is not started in this directory.
        Some(binary) => std::path::absolute(binary).map_err(Fault::of("find ebbtide"))?,
        None => Ebbtide::build()?,
    };
    Contender::build_peers()?;
    let cluster = Cluster::start()?;
    let mut measured = Vec::new();
    for round in 0..order.rounds {
        for &scenario in &order.scenarios {
            for &clients in &order.clients {
                for (contender, workers) in entries(order, round) {
                    let one =
                        measure(order, &cluster, &binary, (scenario, clients), contender, workers)?;
                    eprintln!(
                        "round {} {} {clients} clients {} workers {workers}: {:.0}/s, {:.1} us",
                        round + 1,
                        scenario.name(),
                        contender.name(),
                        one.per_second,
                        one.cpu_us
                    );
                    measured.push(one);
                }
            }
        }
        let text = format!("{:#}\n", told(order, &measured));
        results::write(&order.out.join("data.json"), &text).map_err(Fault::of("write results"))?;
    }
    println!("{}", table(&measured));
    Ok(())
}

/// The servers in the order of a round, which begins each time with another.
fn entries(order: &Order, round: u32) -> Vec<(Contender, u32)> {
    let with = |workers: u32| Contender::ALL.map(|contender| (contender, workers));
    let mut all: Vec<(Contender, u32)> = order.workers.iter().copied().flat_map(with).collect();
    let first = round as usize % all.len().max(1);
    all.rotate_left(first);
    all
}

fn measure(
    order: &Order,
    cluster: &Cluster,
    binary: &Path,
    (scenario, clients): (Scenario, u32),
    contender: Contender,
    workers: u32,
) -> Result<Measured, Fault> {
    cluster.fresh(binary)?;
    let means = Means { connections: order.connections, workers };
    let server = Server::start(contender, binary, &cluster.url(), means)?;
    let url = format!("http://{}{}", server.address(), scenario.path());
    // Connections are opened and statements prepared before anything counts.
    wrk(scenario, &url, clients, WARM_UP_SECONDS)?;
    let before = server.cpu_seconds()?;
    let summary = wrk(scenario, &url, clients, order.seconds)?;
    let cpu = server.cpu_seconds()? - before;
    let number = |name: &str| summary[name].as_f64().unwrap_or_default();
    let errors = summary["errors"].as_object().into_iter().flatten();
    let errors: u64 = errors.filter_map(|(_, count)| count.as_u64()).sum();
    if errors > 0 || number("requests") < 1.0 {
        let name = contender.name();
        return Err(Fault(format!("{name} answers with errors at {}: {summary}", scenario.path())));
    }
    Ok(Measured {
        scenario,
        clients,
        contender,
        workers,
        per_second: number("requests_per_second"),
        cpu_us: cpu * 1e6 / number("requests"),
        summary,
    })
}

fn wrk(scenario: Scenario, url: &str, clients: u32, seconds: u32) -> Result<Value, Fault> {
    let script = root().join("loadtest/wrk").join(scenario.script());
    let output = Command::new("wrk")
        .args(["-t1", "-c", &clients.to_string(), "-d", &format!("{seconds}s"), "-s"])
        .arg(script)
        .arg(url)
        .stdin(Stdio::null())
        .output()
        .map_err(Fault::of("run wrk (apt-get install wrk)"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let last = said.lines().last().unwrap_or_default();
    serde_json::from_str(last).map_err(|_| Fault(format!("wrk said: {said}")))
}

/// A server as it was fastest.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Best {
    workers: u32,
    per_second: f64,
    cpu_us: f64,
}

/// By what was asked and by whom.
type Table = BTreeMap<(Scenario, u32), BTreeMap<&'static str, Best>>;

/// Of each server the number of workers that has the highest median.
fn best_of(measured: &[Measured]) -> Table {
    let mut all: BTreeMap<_, Vec<&Measured>> = BTreeMap::new();
    for one in measured {
        let key = (one.scenario, one.clients, one.contender.name(), one.workers);
        all.entry(key).or_default().push(one);
    }
    let mut table = Table::new();
    for ((scenario, clients, name, workers), ones) in all {
        let per_second = median(ones.iter().map(|one| one.per_second).collect());
        let cpu_us = median(ones.iter().map(|one| one.cpu_us).collect());
        let best = table.entry((scenario, clients)).or_default().entry(name).or_default();
        if per_second > best.per_second {
            *best = Best { workers, per_second, cpu_us };
        }
    }
    table
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// A table in Markdown: requests a second, microseconds of CPU for each, and with how many workers.
fn table(measured: &[Measured]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let mut heading = vec!["scenario".to_owned(), "clients".to_owned()];
    heading.extend(Contender::ALL.map(|contender| contender.title().to_owned()));
    heading.push("to the best other".to_owned());
    let mut text = line(&heading);
    text.push_str(&line(&vec!["---".to_owned(); heading.len()]));
    for ((scenario, clients), row) in best_of(measured) {
        let of = |contender: Contender| row.get(contender.name()).copied().unwrap_or_default();
        let mut cells = vec![format!("`{}`", scenario.name()), clients.to_string()];
        cells.extend(Contender::ALL.map(|contender| {
            let Best { workers, per_second, cpu_us } = of(contender);
            format!("{per_second:.0}/s, {cpu_us:.1} µs, {workers} w")
        }));
        let others = Contender::ALL.into_iter().filter(|other| *other != Contender::Ebbtide);
        let best = others.map(|other| of(other).per_second).fold(f64::MIN_POSITIVE, f64::max);
        cells.push(format!("{:.2}", of(Contender::Ebbtide).per_second / best));
        text.push_str(&line(&cells));
    }
    text
}

fn told(order: &Order, measured: &[Measured]) -> Value {
    let ones: Vec<Value> = measured
        .iter()
        .map(|one| {
            json!({
                "scenario": one.scenario.name(),
                "clients": one.clients,
                "server": one.contender.name(),
                "workers": one.workers,
                "requests_per_second": one.per_second,
                "cpu_us_per_request": one.cpu_us,
                "wrk": one.summary,
            })
        })
        .collect();
    json!({ "connections": order.connections, "seconds": order.seconds, "measures": ones })
}

/// Load before each measure.
const WARM_UP_SECONDS: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(contender: Contender, workers: u32, per_second: f64) -> Measured {
        let (scenario, summary) = (Scenario::Db, Value::Null);
        Measured { scenario, clients: 64, contender, workers, per_second, cpu_us: 1.0, summary }
    }

    #[test]
    fn each_server_is_compared_with_the_workers_that_are_best_for_it() {
        let all = [
            measured(Contender::Ebbtide, 1, 300.0),
            measured(Contender::Ebbtide, 2, 200.0),
            measured(Contender::Actix, 1, 50.0),
            measured(Contender::Actix, 2, 150.0),
            // One good round is no good median.
            measured(Contender::Actix, 1, 900.0),
            measured(Contender::Actix, 1, 60.0),
        ];
        let row = &best_of(&all)[&(Scenario::Db, 64)];
        assert_eq!(row["ebbtide"], Best { workers: 1, per_second: 300.0, cpu_us: 1.0 });
        assert_eq!(row["actix"], Best { workers: 2, per_second: 150.0, cpu_us: 1.0 });
        assert!(table(&all).contains("| 2.00 |"), "{}", table(&all));
    }

    #[test]
    fn every_server_begins_a_round() {
        let order = Order {
            scenarios: Scenario::ALL.to_vec(),
            clients: vec![1],
            connections: 12,
            workers: vec![1, 2],
            rounds: 3,
            seconds: 1,
            binary: None,
            out: PathBuf::new(),
        };
        let firsts: Vec<_> = (0..6).map(|round| entries(&order, round)[0]).collect();
        for contender in Contender::ALL {
            assert!(firsts.contains(&(contender, 1)) && firsts.contains(&(contender, 2)));
        }
    }
}
