//! Connections for closures and transactions: a blocking client, lent to one job at a time.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use postgres::fallible_iterator::FallibleIterator;
use postgres::{CancelToken, Client, SimpleQueryMessage};
use tokio_postgres::config::SslMode;

use super::postgres_address::{Place, PostgresAddress, Way};
use super::postgres_tls::{Tls, connector};
use super::resource::{After, Canceller, Reason, Resource};
use crate::said::chain;

/// One connection.
pub struct Exclusive {
    pub client: Client,
    /// A closure has left a transaction: what others did in it would be lost with it.
    has_transaction: bool,
    address: PostgresAddress,
    tls: Tls,
}

impl Resource for Exclusive {
    type Settings = PostgresAddress;

    fn connect(address: &PostgresAddress) -> Result<Exclusive, Reason> {
        let reason = |error: &dyn std::error::Error| Reason(address.redact(&chain(error)));
        let tls = connector(address)?;
        answers(address)?;
        let config = postgres::Config::from(address.config.clone());
        let mut client = config.connect(Tls::clone(&tls)).map_err(|error| reason(&error))?;
        address.schema.prepare_blocking(&mut client).map_err(|error| reason(&error))?;
        Ok(Exclusive { client, has_transaction: false, address: address.clone(), tls })
    }

    fn is_usable(&mut self, after: After) -> bool {
        match after {
            // Whether the server has got to the request for cancelling cannot be known here (the
            // library does not wait for it), and it names this backend, whatever it works on then.
            After::Cancelled => false,
            After::Job => !self.client.is_closed() && !self.has_transaction,
            After::Rest => {
                // Has the client read what is there, if only the news of its end.
                while let Ok(Some(_notification)) = self.client.notifications().iter().next() {}
                !self.client.is_closed()
            }
        }
    }

    fn canceller(&self) -> Arc<dyn Canceller> {
        Arc::new(Cancelling {
            token: self.client.cancel_token(),
            address: self.address.clone(),
            tls: Tls::clone(&self.tls),
        })
    }

    fn close(self) {
        if let Err(error) = self.client.close() {
            log::debug!(event_type = "database_close"; "closing a connection: {error}");
        }
    }
}

impl Exclusive {
    /// Finds out whether a closure that failed has left a transaction behind. One round trip, for
    /// which the job is still in hand.
    pub fn look_for_transaction(&mut self) {
        if self.client.is_closed() {
            return;
        }
        let asked = self.client.simple_query(IS_ALONE);
        let is_alone = asked.is_ok_and(|messages| {
            let is_true = |message: &SimpleQueryMessage| match message {
                SimpleQueryMessage::Row(row) => row.get(0) == Some("t"),
                _ => false,
            };
            messages.iter().any(is_true)
        });
        self.has_transaction = !is_alone;
    }
}

struct Cancelling {
    token: CancelToken,
    address: PostgresAddress,
    tls: Tls,
}

impl Canceller for Cancelling {
    fn cancel(&self) {
        // Where TLS may be spoken the library waits for the server's word on it, without end.
        let may_wait = self.address.config.get_ssl_mode() != SslMode::Disable
            && cfg!(feature = "postgres-tls");
        let answered = if may_wait { answers(&self.address) } else { Ok(()) };
        let asked = answered.and_then(|()| {
            let asked = self.token.cancel_query(Tls::clone(&self.tls));
            asked.map_err(|error| Reason(self.address.redact(&chain(&error))))
        });
        if let Err(reason) = asked {
            log::warn!(
                event_type = "cancel_failed";
                "a statement could not be cancelled: {reason}"
            );
        }
    }
}

/// True outside of a transaction, where a statement's begin is that of its transaction; false
/// within one, or refused when it has failed.
const IS_ALONE: &str = "SELECT now() = statement_timestamp()";

/// Asks a server whether it would answer. The blocking client waits without end for one that
/// accepts connections and says nothing.
fn answers(address: &PostgresAddress) -> Result<(), Reason> {
    let config = &address.config;
    let patience = config.get_connect_timeout().copied().unwrap_or(ANSWER_MAX).min(ANSWER_MAX);
    let mut reason = Reason("there is no address to connect to".to_owned());
    for Place { way, .. } in address.places()? {
        let answered = match way {
            Way::Ip(address) => over_tcp(&[address], patience),
            Way::Name(name, port) => match (name.as_str(), port).to_socket_addrs() {
                Ok(found) => over_tcp(&found.collect::<Vec<_>>(), patience),
                Err(error) => Err(format!("cannot find the host {name}: {error}")),
            },
            Way::Unix(path) => over_unix(&path, patience),
        };
        match answered {
            Ok(()) => return Ok(()),
            Err(why) => reason = Reason(address.redact(&why)),
        }
    }
    Err(reason)
}

fn over_tcp(addresses: &[SocketAddr], patience: Duration) -> Result<(), String> {
    let mut why = "the host has no address".to_owned();
    for address in addresses {
        let asked = TcpStream::connect_timeout(address, patience).and_then(|stream| {
            stream.set_read_timeout(Some(patience))?;
            stream.set_write_timeout(Some(patience))?;
            ask(stream)
        });
        match asked {
            Ok(()) => return Ok(()),
            Err(error) => why = told(&address.to_string(), &error),
        }
    }
    Err(why)
}

fn over_unix(path: &Path, patience: Duration) -> Result<(), String> {
    let asked = UnixStream::connect(path).and_then(|stream| {
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        ask(stream)
    });
    asked.map_err(|error| told(&path.display().to_string(), &error))
}

pub fn told(whom: &str, error: &std::io::Error) -> String {
    use std::io::ErrorKind::{TimedOut, WouldBlock};
    if matches!(error.kind(), TimedOut | WouldBlock) {
        return format!("{whom} does not answer");
    }
    format!("error connecting to {whom}: {error}")
}

/// Any server has an answer of one byte to the question for TLS, before anything else is said
/// (PostgreSQL's documentation, Message Flow, SSL Session Encryption).
fn ask(mut stream: impl Read + Write) -> std::io::Result<()> {
    stream.write_all(&SSL_REQUEST)?;
    stream.read_exact(&mut [0])
}

/// Length, then the code 1234, 5679.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

const ANSWER_MAX: Duration = Duration::from_secs(2);
