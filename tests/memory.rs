//! What an idle connection costs in memory, among a million of them: the process's own pages, which
//! is the server with its slots and deadlines. The sockets are memory as well; theirs is there
//! before the counting begins.

#[path = "../benches/rig/mod.rs"]
mod rig;

use std::time::{Duration, Instant};

use ebbtide::internal::http::site::Grace;
use ebbtide::internal::server::endpoint::Command;
use ebbtide::{ConnectionOutcome, ConnectionState, Limits};
use rig::{Client, Rig, get_request, router};

/// The promise.
const BYTES_EACH_MAX: u64 = 128;

/// Debug builds take twenty times as long for each.
const CROWD: usize = if cfg!(debug_assertions) { 100_000 } else { 1_000_000 };

/// Connections that are hot at the same time.
const BATCH: usize = 1000;

/// Longer than an idle connection stays hot.
const COOLING: Duration = Duration::from_secs(4);

/// The dirty pages that are this process's alone, in bytes (`proc_pid_smaps(5)`).
fn private_dirty() -> u64 {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").expect("Linux has it");
    let line = text.lines().find(|line| line.starts_with("Private_Dirty:"));
    let number = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    number.expect("a number of kB") * 1024
}

/// Connects a batch, has each served once, and waits until they hibernate.
fn serve_batch(rig: &mut Rig) -> Vec<Client> {
    let clients: Vec<Client> = (0..BATCH).map(|_| rig.connect()).collect();
    rig.settle();
    for client in &clients {
        rig.send(*client, &get_request("/plain"));
    }
    rig.settle();
    for client in &clients {
        assert!(rig.received(*client) > 0, "{client:?} has no answer");
        rig.forget(*client);
    }
    rig.pass(COOLING);
    rig.settle();
    clients
}

fn in_state(rig: &Rig, state: ConnectionState) -> usize {
    usize::try_from(rig.in_state(state)).expect("64 bits")
}

#[test]
fn a_million_idle_connections_take_at_most_128_bytes_each_and_are_all_drained() {
    let day = Duration::from_secs(24 * 3600);
    let limits = Limits { keep_alive_timeout: day, ..Limits::default() };
    let mut rig = Rig::with_limits(router(), limits);
    rig.prepare(CROWD + BATCH);
    // What serving needs at all.
    for client in serve_batch(&mut rig) {
        rig.close(client);
    }
    rig.settle();
    assert_eq!(rig.counts().open(), 0);

    let before = private_dirty();
    let began = Instant::now();
    let mut last = None;
    for _ in 0..CROWD / BATCH {
        last = serve_batch(&mut rig).pop();
    }
    let served = began.elapsed();
    assert_eq!(in_state(&rig, ConnectionState::Hibernating), CROWD);
    let each = private_dirty().saturating_sub(before) / CROWD as u64;

    let began = Instant::now();
    rig.turn();
    let idle_turn = began.elapsed();
    let one = last.expect("there is a batch");
    rig.send(one, &get_request("/plain"));
    let began = Instant::now();
    rig.settle();
    let busy_turn = began.elapsed();
    assert!(rig.received(one) > 0, "one of them asks again");

    let second = Duration::from_secs(1);
    let began = Instant::now();
    rig.obey(Command::Drain(Grace { first_byte: second, idle: 5 * second, spread: second }));
    rig.settle();
    while !rig.is_quiet() {
        assert!(rig.pass_to_deadline(), "nothing is left that would end the drain");
    }
    let drained = began.elapsed();
    let counts = rig.counts();
    let idle = counts.closed_as(ConnectionOutcome::ClosedIdle);
    println!(
        "{CROWD} idle connections: {each} bytes each; a turn with nothing to do {idle_turn:?}, \
         with one request {busy_turn:?}; served once each in {served:?}, drained in {drained:?}"
    );
    assert!(each <= BYTES_EACH_MAX, "{each} bytes each");
    assert_eq!(counts.open(), 0);
    assert_eq!(usize::try_from(idle).expect("64 bits"), CROWD, "{counts:?}");
    counts.check();
}
