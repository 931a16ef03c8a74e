//! What the kernel does with several sockets on one port: the facts that a successor's takeover
//! stands on.

use std::io;
use std::net::{SocketAddr, TcpStream};

use ebbtide::internal::os::{drop_syns, steer_to_successor, unsteer};
use socket2::{Domain, Socket, Type};

use super::support::{ms, now};

/// Sockets of one process that listen on `address`, or on a port of the kernel's choice.
fn generation(address: SocketAddr, count: usize) -> Vec<Socket> {
    let listen = |address: &SocketAddr| -> io::Result<Socket> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_reuse_port(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&(*address).into())?;
        socket.listen(1024)?;
        Ok(socket)
    };
    let first = listen(&address).expect("the port is ours");
    let mut all = vec![first];
    let address = address_of(&all);
    all.extend((1..count).map(|_| listen(&address).expect("as the first")));
    all
}

fn address_of(sockets: &[Socket]) -> SocketAddr {
    sockets[0].local_addr().expect("it is bound").as_socket().expect("an IP address")
}

fn any_port() -> SocketAddr {
    "127.0.0.1:0".parse().expect("an address")
}

/// How many connections each of `sockets` gets of so many new ones.
fn accepted(sockets: &[Socket], connections: usize) -> Vec<usize> {
    let address = address_of(sockets);
    let connect = |_| {
        let began = now();
        let client = TcpStream::connect(address).expect("somebody listens");
        // A SYN that was dropped is sent again after a second.
        assert!(now() - began < ms(950), "the first SYN was heard");
        client
    };
    let clients: Vec<TcpStream> = (0..connections).map(connect).collect();
    let drain = |socket: &Socket| std::iter::from_fn(|| socket.accept().ok()).count();
    let counts = sockets.iter().map(drain).collect();
    drop(clients);
    counts
}

fn total(counts: &[usize]) -> usize {
    counts.iter().sum()
}

#[test]
fn a_successor_gets_every_new_connection() {
    let old = generation(any_port(), 2);
    let new = generation(address_of(&old), 2);
    steer_to_successor(&old[0], 2, 2).expect("no privilege is needed");
    let of_new = accepted(&new, 200);
    assert_eq!(total(&of_new), 200);
    assert!(of_new.iter().all(|count| *count > 50), "both of them: {of_new:?}");
    assert_eq!(total(&accepted(&old, 0)), 0);
}

#[test]
fn without_a_successor_nothing_changes() {
    let old = generation(any_port(), 2);
    steer_to_successor(&old[0], 2, 2).expect("no privilege is needed");
    let of_old = accepted(&old, 200);
    assert_eq!(total(&of_old), 200);
    assert!(of_old.iter().all(|count| *count > 50), "both of them: {of_old:?}");
}

#[test]
fn a_third_generation_gets_every_connection_from_its_first_moment_on() {
    let old = generation(any_port(), 2);
    let address = address_of(&old);
    let new = generation(address, 2);
    steer_to_successor(&old[0], 2, 2).expect("no privilege is needed");
    drop(old);
    let of_new = accepted(&new, 200);
    assert!(of_new.iter().all(|count| *count > 50), "the hash chooses: {of_new:?}");
    let third = generation(address, 2);
    let of_third = accepted(&third, 200);
    assert_eq!(total(&of_third), 200, "without a word of the second");
    steer_to_successor(&new[0], 2, 2).expect("again");
    assert_eq!(total(&accepted(&third, 200)), 200);
}

#[test]
fn no_connection_goes_astray_while_the_old_sockets_are_closed_one_by_one() {
    for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2], [1, 2, 0], [0, 2, 1], [2, 0, 1]] {
        let mut old: Vec<Option<Socket>> =
            generation(any_port(), 3).into_iter().map(Some).collect();
        let address = address_of(&[old[0].as_ref().expect("open").try_clone().expect("dup")]);
        let new = generation(address, 3);
        for (closed, next) in order.into_iter().enumerate() {
            let staying = 2 - u32::try_from(closed).expect("a few");
            let leaving = old[next].take().expect("open still");
            steer_to_successor(&leaving, 3, staying.max(1)).expect("no privilege is needed");
            assert_eq!(total(&accepted(&new, 60)), 60, "before {next} of {order:?} is closed");
            drop(leaving);
            assert_eq!(total(&accepted(&new, 60)), 60, "after {next} of {order:?} is closed");
        }
    }
}

#[test]
fn a_successor_with_more_sockets_needs_the_program_taken_back() {
    let old = generation(any_port(), 1);
    let new = generation(address_of(&old), 4);
    steer_to_successor(&old[0], 1, 1).expect("no privilege is needed");
    drop(old);
    let steered = accepted(&new, 200);
    assert_eq!(steered.iter().max(), Some(&200), "one has them all: {steered:?}");
    unsteer(&new[2]).expect("any of the group can do it");
    let spread = accepted(&new, 200);
    assert!(spread.iter().all(|count| *count > 20), "the hash chooses: {spread:?}");
    unsteer(&new[2]).expect_err("there is nothing to take back");
}

#[test]
fn dropping_syns_costs_no_client_whose_connection_is_steered_away() {
    let old = generation(any_port(), 2);
    let new = generation(address_of(&old), 2);
    steer_to_successor(&old[0], 2, 2).expect("no privilege is needed");
    for socket in &old {
        if let Err(error) = drop_syns(socket) {
            // The kernel may ask for a privilege, and then there is nothing to be seen.
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        }
    }
    assert_eq!(total(&accepted(&new, 200)), 200);
}

#[test]
fn a_socket_that_does_not_share_its_port_can_not_be_steered() {
    let alone = std::net::TcpListener::bind(any_port()).expect("a port");
    steer_to_successor(&alone, 1, 1).expect_err("there is no group");
}
