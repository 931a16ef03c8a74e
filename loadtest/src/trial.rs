//! One request of each kind before the load: a server that cannot answer these is not put under it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::client::Event;
use crate::idle::is_time_out;
use crate::kind::{Kind, Routes};
use crate::outcome::{End, Outcome};
use crate::response::{Closes, Reader};
use crate::target::Fault;

/// Asks on one connection, waits for each answer and returns what a client would tell of it.
///
/// # Errors
/// The first answer that is missing or not the one that was expected.
pub fn ask_each_kind(to: SocketAddr, routes: &Routes, epoch: Instant) -> Result<Vec<Event>, Fault> {
    let mut stream =
        TcpStream::connect_timeout(&to, PATIENCE).map_err(Fault::of("connect to the server"))?;
    let set = stream.set_read_timeout(Some(PATIENCE));
    set.and(stream.set_write_timeout(Some(PATIENCE))).map_err(Fault::of("set a time-out"))?;
    let port = stream.local_addr().map_err(Fault::of("name a socket"))?.port();
    let connected = epoch.elapsed();
    let mut told = vec![Event::Connected { at: connected, port }];
    let mut reader = Reader::default();
    for (nth, kind) in (0..).zip(Kind::ALL) {
        let id = FIRST_ID + u64::from(nth);
        let planned = epoch.elapsed();
        let is_answered = ask(&mut stream, &mut reader, kind, routes, id);
        is_answered.map_err(|what| Fault(format!("the server answers garbage: {what}")))?;
        told.push(Event::Ended(End {
            id,
            kind,
            outcome: Outcome::Ok,
            planned,
            sent: Some(planned),
            ended: epoch.elapsed(),
            connected: Some(connected),
            port,
            nth,
            reset_unheard: false,
            detail: "".into(),
        }));
    }
    Ok(told)
}

fn ask(
    stream: &mut TcpStream,
    reader: &mut Reader,
    kind: Kind,
    routes: &Routes,
    id: u64,
) -> Result<(), String> {
    let ask = kind.ask(routes, id);
    let name = kind.name();
    stream.write_all(&ask.bytes).map_err(|error| format!("{name}: {error}"))?;
    let mut buffer = [0; 16 * 1024];
    let begun = Instant::now();
    let response = loop {
        if let Some(response) = reader.take().map_err(|garbage| format!("{name}: {garbage}"))? {
            break response;
        }
        let left = PATIENCE.saturating_sub(begun.elapsed());
        if left.is_zero() {
            return Err(format!("{name}: no whole answer within {} s", PATIENCE.as_secs()));
        }
        stream.set_read_timeout(Some(left)).map_err(|error| format!("{name}: {error}"))?;
        match stream.read(&mut buffer) {
            Ok(0) => return Err(format!("{name}: closed without an answer")),
            Ok(count) => reader.push(&buffer[..count]),
            Err(error) if is_time_out(&error) => {}
            Err(error) => return Err(format!("{name}: {error}")),
        }
    };
    if let Some(fault) = response.fault(&ask.body, id) {
        return Err(format!("{name}: {fault}"));
    }
    if response.closes == Closes::Yes {
        return Err(format!("{name}: it announces the close for no reason"));
    }
    Ok(())
}

/// Far from those of the plan.
const FIRST_ID: u64 = 1 << 60;

const PATIENCE: Duration = Duration::from_secs(5);
