//! The command line.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use crate::compare;
use crate::compare::contender::{CONTENDERS, Contender, Install};
use crate::compare::measure::Measure;
use crate::data::{self, Scenario};
use crate::peer::{NAMES, Peer};
use crate::root;
use crate::site::{CLEAN, FAULT, Order, Server, Site};
use crate::target::Way;

/// The whole command line. (clap ends with status 2 for what it does not understand.)
pub fn command() -> Command {
    Command::new("loadtest")
        .about("Puts a server under load, stops it, and says what its clients lost")
        .after_help(STATUSES)
        .subcommand_required(true)
        .subcommand(
            restarting(options(Command::new("restarts")))
                .about("Replaces the server under load again and again")
                .arg(peer().value_delimiter(',').help(SERVERS)),
        )
        .subcommand(
            options(Command::new("drain"))
                .about("Stops the server once, under load and beside idle clients, and explains it")
                .arg(seconds("pause", "1.5", "Load before the signal"))
                .arg(peer().help(SERVER)),
        )
        .subcommand(comparing(
            Command::new("compare")
                .about("Measures how fast and how small servers are, side by side")
                .after_help(COMPARED),
        ))
        .subcommand(data(Command::new("data")))
}

/// What servers with a database are asked.
fn data(command: Command) -> Command {
    let list = |name, default, help| {
        Arg::new(name).long(name).value_name("LIST").default_value(default).help(help)
    };
    command
        .about("Compares servers with one PostgreSQL database: requests a second, CPU for each")
        .arg(
            list("scenarios", "db,items", "What is asked: db (one row read), items (one written)")
                .value_delimiter(',')
                .value_parser(Scenario::ALL.map(Scenario::name)),
        )
        .arg(
            list("clients", "1,16,64", "Connections of the load, one measure each")
                .value_delimiter(',')
                .value_parser(value_parser!(u32).range(1..=10_000)),
        )
        .arg(number("connections", "12", "Each server's connections to the database"))
        .arg(
            list("workers", "1,2", "Each server's threads for clients, one measure each")
                .value_delimiter(',')
                .value_parser(value_parser!(u32).range(1..=1_000)),
        )
        .arg(number("rounds", "3", "How often everything is measured"))
        .arg(number("seconds", "5", "How long each measure takes"))
        .arg(
            Arg::new("binary")
                .long("binary")
                .value_name("PATH")
                .value_parser(value_parser!(PathBuf))
                .help("ebbtide's program; without it, cargo builds the release"),
        )
        .arg(
            Arg::new("out")
                .long("out")
                .value_name("DIR")
                .value_parser(value_parser!(PathBuf))
                .help("Where the results go [default: loadtest/results]"),
        )
}

fn data_order(matches: &ArgMatches) -> data::Order {
    let path = |name: &str| matches.get_one::<PathBuf>(name).cloned();
    let numbers = |name: &str| matches.get_many::<u32>(name).into_iter().flatten().copied();
    let named: Vec<String> =
        matches.get_many::<String>("scenarios").into_iter().flatten().cloned().collect();
    let is_asked = |scenario: &Scenario| named.iter().any(|name| name == scenario.name());
    data::Order {
        scenarios: Scenario::ALL.into_iter().filter(is_asked).collect(),
        clients: numbers("clients").collect(),
        connections: get(matches, "connections"),
        workers: numbers("workers").collect(),
        rounds: get(matches, "rounds"),
        seconds: get(matches, "seconds"),
        binary: path("binary"),
        out: path("out").unwrap_or_else(|| root().join(OUT)),
    }
}

const STATUSES: &str = "Exit status: 0 nothing lost and all ledgers equal; 1 something lost, or \
    a ledger unequal, or refused by a server that was to be there; 2 the command line was not \
    understood; 3 the run could not be finished (the server never starts, never stops or answers \
    garbage). Of several servers it is ebbtide's, but 3 for any of them. Results are written after \
    each restart.";

const SERVER: &str = "Another server: axum, hyper, actix or nginx, which loadtest/peers/run \
    starts, or the path of a program (with a slash) that starts one of your own in the same way";

const SERVERS: &str = "Another server: axum, hyper, actix or nginx, which loadtest/peers/run \
    starts, or the path of a program (with a slash) that starts one of your own in the same way; \
    several of them, separated by commas, for ebbtide and these side by side";

fn options(command: Command) -> Command {
    command
        .arg(number("rate", "400", "Quick requests per second; the other kinds in proportion"))
        .arg(
            Arg::new("seed")
                .long("seed")
                .value_name("N")
                .default_value("1")
                .value_parser(value_parser!(u64))
                .help("What the times of the requests are drawn from"),
        )
        .arg(number("threads", "2", "Threads that make the load"))
        .arg(
            Arg::new("binary")
                .long("binary")
                .value_name("PATH")
                .value_parser(value_parser!(PathBuf))
                .help("The server; without it, cargo builds ebbtide's release and that is taken"),
        )
        .arg(
            Arg::new("user")
                .long("user")
                .value_name("UID")
                .value_parser(value_parser!(u32))
                .help("The server's user, such as 65532 (needs root)"),
        )
        .arg(
            Arg::new("out")
                .long("out")
                .value_name("DIR")
                .value_parser(value_parser!(PathBuf))
                .help("Where the results go [default: loadtest/results]"),
        )
        .arg(seconds("request-timeout", "10", "A request may take so long"))
        .arg(seconds("start-timeout", "10", "The server may take so long to say that it serves"))
        .arg(seconds("stop-timeout", "40", "The server may take so long to stop"))
}

/// What tells how often and how a server is replaced.
fn restarting(command: Command) -> Command {
    command
        .arg(number("times", "10", "How often it is replaced in each way"))
        .arg(
            Arg::new("ways")
                .long("ways")
                .value_name("LIST")
                .default_value("reuse_port,inherited,stop_start")
                .value_delimiter(',')
                .value_parser(Way::ALL.map(Way::name))
                .help("The ways in which it is replaced, in this order"),
        )
        .arg(seconds("pause", "0.8", "Load before the first restart and between two"))
}

const COMPARED: &str = "Exit status: 0 all that was asked for was measured; 1 something is missing \
    in the tables, which say what; 2 the command line was not understood; 3 ebbtide or wrk is not \
    there, or ebbtide could not be measured. Results are written after each round.";

/// What tells who is compared, and in what.
fn comparing(command: Command) -> Command {
    let names = CONTENDERS.map(|contender| contender.name);
    let usual = Measure::ALL.map(Measure::name);
    let usual = usual.into_iter().filter(|name| *name != Measure::Scaling.name());
    command
        .arg(
            Arg::new("peers")
                .long("peers")
                .value_name("LIST")
                .value_delimiter(',')
                .value_parser(names)
                .help("The servers to compare ebbtide with [default: all that are installed]"),
        )
        .arg(
            Arg::new("only")
                .long("only")
                .value_name("LIST")
                .value_delimiter(',')
                .default_values(usual.collect::<Vec<_>>())
                .value_parser(Measure::ALL.map(Measure::name))
                .help("What to measure"),
        )
        .arg(number("rounds", "7", "How often each server is measured, one behind the other"))
        .arg(number("seconds", "3", "How long the load of one measure lasts"))
        .arg(number(
            "workers",
            "1",
            "Workers of each server, each with a core; the load has the rest",
        ))
        .arg(number("connections", "4000", "Idle connections whose memory is measured"))
        .arg(seconds(
            "rest",
            "8",
            "They are left alone so long, at least; ebbtide looks after them",
        ))
        .arg(
            Arg::new("install")
                .long("install")
                .action(ArgAction::SetTrue)
                .help("Build or install servers that are missing (apt-get, as root; pip; go)"),
        )
        .arg(
            Arg::new("binary")
                .long("binary")
                .value_name("PATH")
                .value_parser(value_parser!(PathBuf))
                .help("ebbtide; without it, cargo builds its release and that is taken"),
        )
        .arg(
            Arg::new("out")
                .long("out")
                .value_name("DIR")
                .value_parser(value_parser!(PathBuf))
                .help("Where the results go [default: loadtest/results]"),
        )
}

/// What `compare` is asked for.
fn comparison(matches: &ArgMatches) -> compare::Order {
    let peers = matches.get_many::<String>("peers");
    let measures: Vec<&String> = matches.get_many("only").into_iter().flatten().collect();
    let is_asked = |measure: &Measure| measures.iter().any(|name| *name == measure.name());
    let out = matches.get_one::<PathBuf>("out").cloned();
    compare::Order {
        peers: peers.map(|names| names.filter_map(|name| Contender::named(name)).collect()),
        measures: Measure::ALL.into_iter().filter(is_asked).collect(),
        rounds: get(matches, "rounds"),
        seconds: get(matches, "seconds"),
        workers: get(matches, "workers"),
        connections: get(matches, "connections"),
        rest: get(matches, "rest"),
        install: if matches.get_flag("install") { Install::Yes } else { Install::No },
        binary: matches.get_one::<PathBuf>("binary").cloned(),
        out: out.unwrap_or_else(|| root().join(OUT)),
    }
}

/// What makes the server another one.
fn peer() -> Arg {
    Arg::new("peer").long("peer").value_name("NAME").value_parser(server)
}

fn server(text: &str) -> Result<Server, String> {
    if text == "ebbtide" {
        return Ok(Server::Ebbtide);
    }
    if NAMES.contains(&text) {
        return Ok(Server::Peer(Peer::known(text)));
    }
    let path = Path::new(text);
    if !text.contains('/') || path.file_name().is_none() {
        let names = NAMES.join(", ");
        return Err(format!("expected ebbtide, {names}, or the path of a program, with a slash"));
    }
    let path = std::path::absolute(path).map_err(|error| error.to_string())?;
    Ok(Server::Peer(Peer::own(&path)))
}

fn number(name: &'static str, default: &'static str, help: &'static str) -> Arg {
    let parser = value_parser!(u32).range(1..=100_000);
    Arg::new(name).long(name).value_name("N").default_value(default).value_parser(parser).help(help)
}

fn seconds(name: &'static str, default: &'static str, help: &'static str) -> Arg {
    let parse = |text: &str| -> Result<Duration, String> {
        let seconds: f64 = text.parse().map_err(|_| "seconds, such as 0.5".to_owned())?;
        let is_sound = (0.001..=3600.0).contains(&seconds);
        is_sound.then(|| Duration::from_secs_f64(seconds)).ok_or("0.001 to 3600 seconds".to_owned())
    };
    let argument = Arg::new(name).long(name).value_name("SECONDS").default_value(default);
    argument.value_parser(parse).help(help)
}

fn get<T: Clone + Send + Sync + 'static>(matches: &ArgMatches, name: &str) -> T {
    matches.get_one::<T>(name).expect("it has a default").clone()
}

/// Does what the command line says; returns the exit status.
pub fn run(matches: &ArgMatches) -> u8 {
    let Some((name, matches)) = matches.subcommand() else { return FAULT };
    let fault = |fault| {
        eprintln!("loadtest: {fault}");
        FAULT
    };
    if name == "compare" {
        return compare::run(comparison(matches)).unwrap_or_else(fault);
    }
    if name == "data" {
        return data::run(&data_order(matches)).map_or_else(fault, |()| CLEAN);
    }
    let servers = match servers(matches) {
        Ok(servers) => servers,
        // As clap ends for whatever else it does not understand.
        Err(what) => command().error(ErrorKind::ArgumentConflict, what).exit(),
    };
    let done = Site::new(order(matches, servers)).and_then(|mut site| match name {
        "restarts" => site.restarts(&ways(matches), get(matches, "times")),
        _ => site.drain(),
    });
    done.unwrap_or_else(fault)
}

/// Who is put under load: ebbtide, the one that is named, or ebbtide and several.
fn servers(matches: &ArgMatches) -> Result<Vec<Server>, String> {
    let named = matches.get_many::<Server>("peer").into_iter().flatten();
    let (mut servers, mut peers) = (Vec::new(), Vec::new());
    for server in named.cloned() {
        let of_kind = if let Server::Ebbtide = server { &mut servers } else { &mut peers };
        of_kind.push(server);
    }
    if servers.is_empty() && peers.len() != 1 {
        servers.push(Server::Ebbtide);
    }
    if servers.is_empty() && matches.contains_id("binary") {
        return Err("--binary is ebbtide's program, and ebbtide is not asked for".to_owned());
    }
    servers.append(&mut peers);
    for (at, server) in servers.iter().enumerate() {
        if servers[..at].iter().any(|other| other.name() == server.name()) {
            return Err(format!("two servers are named {}", server.name()));
        }
    }
    Ok(servers)
}

fn order(matches: &ArgMatches, servers: Vec<Server>) -> Order {
    let path = |name: &str| matches.get_one::<PathBuf>(name).cloned();
    Order {
        servers,
        binary: path("binary"),
        user: matches.get_one::<u32>("user").copied(),
        out: path("out").unwrap_or_else(|| root().join(OUT)),
        rate: get(matches, "rate"),
        seed: get(matches, "seed"),
        threads: get(matches, "threads"),
        patience: get(matches, "request-timeout"),
        pause: get(matches, "pause"),
        start_max: get(matches, "start-timeout"),
        stop_max: get(matches, "stop-timeout"),
    }
}

fn ways(matches: &ArgMatches) -> Vec<Way> {
    let names = matches.get_many::<String>("ways").into_iter().flatten();
    names.filter_map(|name| Way::named(name)).collect()
}

const OUT: &str = "loadtest/results";
