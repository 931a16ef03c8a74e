//! What the operating system counts: calls, memory, descriptors, processor time.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::client::Client;
use crate::support::server::{Launch, Server, file_in};
use crate::support::tools::{finished_trace, kilobytes, raise_descriptors, strace_works};
use crate::support::{SOON, alone, beside_others, let_pass, say, until};

#[test]
fn a_keep_alive_get_costs_one_receive_and_one_send() {
    let _turn = alone();
    if !strace_works() {
        return;
    }
    let trace = file_in("traced-server", "trace");
    // With -D the tracer is the grandchild: the process id is the server's own.
    let launch = Launch::new().args(&["--workers", "1"]);
    let server = launch.through(&["strace", "-D", "-f", "-o", &trace]).start();
    let mut client = server.connect();
    for _ in 0..1000 {
        assert_eq!(client.get("/plaintext").status, 200);
    }
    drop(client);
    server.stop();
    let text = finished_trace(&trace);
    let count = |call: &str| text.lines().filter(|line| line.contains(call)).count();
    let (received, sent) = (count(" recvfrom("), count(" sendto("));
    let epoll_ctl = count(" epoll_ctl(");
    say(&format!(
        "strace over 1000 GETs: {received} recvfrom, {sent} sendto, {epoll_ctl} epoll_ctl, {} \
         epoll_wait, {} futex",
        count(" epoll_wait("),
        count(" futex(")
    ));
    assert!((1000..=1020).contains(&received), "{received} recvfrom");
    assert!((1000..=1020).contains(&sent), "{sent} sendto");
    assert!(epoll_ctl < 20, "{epoll_ctl} epoll_ctl");
    // Nor under other names.
    for call in [" recvmsg(", " sendmsg(", " readv(", " writev(", " setsockopt(", " shutdown("] {
        assert!(count(call) < 20, "{} {call}", count(call));
    }
    for call in [" read(", " write(", " futex("] {
        assert!(count(call) < 200, "{} {call}", count(call));
    }
}

/// What a crowd of connections does before it goes quiet.
struct Crowd {
    name: &'static str,
    request: &'static str,
    is_answered: bool,
    bytes_each_max: u64,
}

fn private_dirty(server: &Server) -> u64 {
    kilobytes(&PathBuf::from(format!("/proc/{}/smaps_rollup", server.pid())), "Private_Dirty")
}

/// How many bytes of the server's memory each of a crowd takes, once it has settled.
fn measure(crowd: &Crowd) {
    // Some descriptors are the test's own; the server has twice the connections it is to hold.
    let limit = raise_descriptors();
    let asked = std::env::var("EBBTIDE_CROWD").ok();
    let wanted = asked.map_or(CROWD, |text| text.parse().expect("EBBTIDE_CROWD is a number"));
    let count = wanted.min(limit.saturating_sub(200));
    if count < wanted {
        say(&format!("{}: only {count} connections, RLIMIT_NOFILE is {limit}", crowd.name));
    }
    let server = Launch::new()
        .env("MAX_CONNECTIONS", count + 50)
        .env("HEAD_TIMEOUT", "10m")
        .env("KEEP_ALIVE_TIMEOUT", "10m")
        .start();
    warm_up(&server);
    let before = private_dirty(&server);
    let connections: Vec<Client> = (0..count)
        .map(|_| {
            let mut client = server.connect();
            client.send(crowd.request);
            if crowd.is_answered {
                assert_eq!(client.response().status, 200);
            }
            client
        })
        .collect();
    let in_state = if crowd.is_answered { "hibernating" } else { "reading_head" };
    let settled = format!("http_connections{{state=\"{in_state}\"}} {count}\n");
    until(&settled, SOON, || server.metrics().contains(&settled).then_some(()));
    let most = if cfg!(debug_assertions) {
        say("this is a debug build, whose structures are larger: twice the memory is allowed");
        2 * crowd.bytes_each_max
    } else {
        crowd.bytes_each_max
    };
    let each = settled_bytes(&server).saturating_sub(before) / count as u64;
    say(&format!(
        "{}: {each} bytes each of {count} (promised: {})",
        crowd.name, crowd.bytes_each_max
    ));
    assert!(each <= most, "{each} bytes for each of {count} connections");
    drop(connections);
}

/// The memory of a server once it does not change any more. What a burst took is given back some
/// seconds after it.
fn settled_bytes(server: &Server) -> u64 {
    let mut last = (private_dirty(server), Instant::now());
    until("the memory to settle", SETTLED_WITHIN, || {
        let (now, was) = (private_dirty(server), last.0);
        if now != was {
            last = (now, Instant::now());
        }
        (last.1.elapsed() >= SETTLED_AFTER).then_some(now)
    })
}

/// Touches the memory that serving needs at all: both workers, the buffers, the metrics.
fn warm_up(server: &Server) {
    for _ in 0..64 {
        let mut client = server.connect();
        assert_eq!(client.get("/plaintext").status, 200);
        client.send("GET /plain");
    }
    let gone = "http_connections{state=\"reading_head\"} 0\n";
    until("the warm-up to be over", SOON, || server.metrics().contains(gone).then_some(()));
}

const CROWD: usize = 9_000;
const SETTLED_WITHIN: Duration = Duration::from_secs(30);
const SETTLED_AFTER: Duration = Duration::from_secs(6);

#[test]
fn an_idle_connection_takes_at_most_128_bytes() {
    let _turn = alone();
    measure(&Crowd {
        name: "idle after one request",
        request: "GET /plaintext HTTP/1.1\r\nHost: localhost\r\n\r\n",
        is_answered: true,
        bytes_each_max: 128,
    });
}

#[test]
fn a_connection_with_half_a_head_takes_at_most_1_kib() {
    let _turn = alone();
    measure(&Crowd {
        name: "half a head",
        request: "GET /plaintext HTTP/1.1\r\nHost: localhost\r\nAccept: text/html\r\n\
                  User-Agent: Mozilla/5.0 (X11; Linux x86_64) Gecko/20100101\r\nAccept-La",
        is_answered: false,
        bytes_each_max: 1024,
    });
}

/// Processor time that a process has used, in hundredths of a second (`proc_pid_stat(5)`: clock
/// ticks, of which Linux shows a hundred a second on every common machine).
fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The name, in brackets, may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// With more connections open than there are descriptors: the processor rests, and once they are
/// closed the server is there for others.
fn assert_neither_spins_nor_goes_deaf(server: &Server) {
    let crowd: Vec<std::net::TcpStream> = (0..100)
        .map(|_| std::net::TcpStream::connect(("127.0.0.1", server.port)).unwrap())
        .collect();
    let before = ticks(server.pid());
    let_pass(Duration::from_secs(2));
    let used = ticks(server.pid()) - before;
    say(&format!("without descriptors: {} % of a processor", used / 2));
    assert!(used < 40, "{used} hundredths of a second of processor time in 2 s");
    drop(crowd);
    until("the server to answer again", SOON, || {
        let mut client = server.connect();
        (client.get("/plaintext").status == 200).then_some(())
    });
}

#[test]
fn too_few_descriptors_from_the_start_neither_spin_nor_deafen() {
    let _turn = beside_others();
    let launch = Launch::new().env("MAX_CONNECTIONS", 1000);
    let server = launch.through(&["sh", "-c", "ulimit -n 64; exec \"$0\" \"$@\""]).start();
    assert_neither_spins_nor_goes_deaf(&server);
    server.stop();
}

/// As containers and systems start processes: with a low soft limit that only has to be raised.
#[test]
fn a_soft_limit_of_descriptors_is_raised_to_the_hard_one() {
    let _turn = beside_others();
    let launch = Launch::new().env("MAX_CONNECTIONS", 1500);
    let script = "ulimit -Sn 64; ulimit -Hn 2000; exec \"$0\" \"$@\"";
    let server = launch.through(&["sh", "-c", script]).start();
    let limit = server.metric("process_max_fds");
    assert!((limit - 2000.0).abs() < 1.0, "{limit}");
    assert_eq!(server.log.wait("server_started")["max_connections"], 1500);
    server.stop();
}

#[test]
fn descriptors_that_run_out_neither_spin_nor_deafen() {
    let _turn = beside_others();
    for workers in ["0", "2"] {
        let launch = Launch::new().env("MAX_CONNECTIONS", 500).env("WORKERS", workers);
        let server = launch.through(&["sh", "-c", "ulimit -n 1000; exec \"$0\" \"$@\""]).start();
        // Serving already, it loses what it counted on: accept now fails with EMFILE.
        let pid = server.pid().to_string();
        let lowered = Command::new("prlimit").args(["--pid", &pid, "--nofile=64:64"]).status();
        assert!(lowered.unwrap().success(), "prlimit is part of util-linux");
        assert_neither_spins_nor_goes_deaf(&server);
        server.log.wait("accept_exhausted");
        server.stop();
    }
}

#[test]
fn over_the_connection_limit_the_answer_is_503_and_when_to_come_back() {
    let _turn = beside_others();
    let server = Launch::new().env("MAX_CONNECTIONS", 5).start();
    let mut within: Vec<Client> = (0..5).map(|_| server.connect()).collect();
    for client in &mut within {
        assert_eq!(client.get("/plaintext").status, 200);
    }
    let mut beyond = server.connect();
    let response = beyond.get("/plaintext");
    assert_eq!(response.status, 503);
    assert!(response.header("retry-after").unwrap().parse::<u32>().is_ok(), "{}", response.head);
    assert!(response.announces_close(), "{}", response.head);
    drop(beyond);
    // Those within the limit are served on, and their places are given to others.
    for client in &mut within {
        assert_eq!(client.get("/plaintext").status, 200);
    }
    within.pop();
    until("a place to be free", SOON, || {
        (server.connect().get("/plaintext").status == 200).then_some(())
    });
    drop(within);
    let report = server.stop();
    assert!(report["connections"]["closed"]["shed"].as_u64().unwrap() >= 1, "{report:#}");
}
