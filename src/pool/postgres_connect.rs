//! Opens connections for statements: finds the server, has the client library log in and do what
//! comes first, and takes the connection over from it.

use std::collections::hash_map::RandomState;
use std::future::poll_fn;
use std::hash::BuildHasher;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use bytes::BytesMut;
use futures_util::future::{Either, select};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::time;
use tokio_postgres::config::{LoadBalanceHosts, SslMode, TargetSessionAttrs};
use tokio_postgres::{CancelToken, Client, Config, Error, SimpleQueryMessage};

use super::postgres_address::{Place, PostgresAddress, Way};
use super::postgres_exclusive::told;
use super::postgres_tls::{Driver, Opened, Tls, cancel, connector, open};
use super::postgres_wire::{Stream, Wire};
use super::resource::Reason;
use crate::said::chain;

/// A connection, logged in.
pub struct Connected {
    pub wire: Wire,
    pub canceller: Cancelling,
}

/// What ends the statement that a connection works on.
#[derive(Clone)]
pub struct Cancelling {
    token: CancelToken,
    /// The server that has the connection: of several, no other knows it.
    config: Config,
    host: String,
    target: Target,
    tls: Tls,
}

/// One address of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Target {
    Ip(SocketAddr),
    Unix(PathBuf),
}

/// Opens a connection to the first of the address's servers that will have it.
///
/// # Errors
/// Why not, in one line for operators.
pub async fn connect(address: &PostgresAddress) -> Result<Connected, Reason> {
    match time::timeout(CONNECT_MAX, connect_any(address)).await {
        Ok(connected) => connected.map_err(|Reason(why)| Reason(address.redact(&why))),
        Err(_) => Err(Reason("the server accepts connections and does not answer".to_owned())),
    }
}

async fn connect_any(address: &PostgresAddress) -> Result<Connected, Reason> {
    let tls = connector(address)?;
    let mut places = address.places()?;
    let is_random = address.config.get_load_balance_hosts() == LoadBalanceHosts::Random;
    shuffle_if(is_random, &mut places);
    let mut reason = Reason("there is no address to connect to".to_owned());
    for Place { host, way } in places {
        let found = match way {
            Way::Ip(address) => Ok(vec![Target::Ip(address)]),
            Way::Unix(path) => Ok(vec![Target::Unix(path)]),
            Way::Name(name, port) => match lookup_host((&*name, port)).await {
                Ok(found) => Ok(found.map(Target::Ip).collect()),
                Err(error) => Err(Reason(format!("cannot find the host {name}: {error}"))),
            },
        };
        let mut targets = match found {
            Ok(targets) => targets,
            Err(why) => {
                reason = why;
                continue;
            }
        };
        shuffle_if(is_random, &mut targets);
        for target in targets {
            match connect_to(address, &tls, &host, target).await {
                Ok(connected) => return Ok(connected),
                Err(why) => reason = why,
            }
        }
    }
    Err(reason)
}

/// Puts them in an order that nobody knows, so that many clients do not all ask the first.
fn shuffle_if<T>(is_random: bool, all: &mut [T]) {
    if is_random {
        let random = RandomState::new();
        let mut at = 0;
        all.sort_by_cached_key(|_| {
            at += 1;
            random.hash_one(at)
        });
    }
}

async fn connect_to(
    address: &PostgresAddress,
    tls: &Tls,
    host: &str,
    target: Target,
) -> Result<Connected, Reason> {
    let said = |error: Error| Reason(chain(&error));
    let mut config = address.config.clone();
    if matches!(target, Target::Unix(_)) {
        // There is none on such a socket.
        config.ssl_mode(SslMode::Disable);
    }
    let stream = target.open(&config).await?;
    let Opened { client, mut driver, take_back } =
        open(&config, stream, host, tls).await.map_err(said)?;
    check_session(&client, &mut driver, config.get_target_session_attrs()).await?;
    address.schema.prepare(&client, &mut driver).await.map_err(said)?;
    let canceller = Cancelling {
        token: client.cancel_token(),
        config,
        host: host.to_owned(),
        target,
        tls: Tls::clone(tls),
    };
    // Nobody moves it any more, so it says no good-bye.
    drop((driver, client));
    let Some(stream) = take_back() else {
        return Err(Reason("the server said more than it was asked".to_owned()));
    };
    Ok(Connected { wire: Wire::new(stream), canceller })
}

/// Whether the server is one of those that are wanted, of several.
async fn check_session(
    client: &Client,
    driver: &mut Driver,
    wanted: TargetSessionAttrs,
) -> Result<(), Reason> {
    let refused = match wanted {
        TargetSessionAttrs::ReadWrite => "on",
        TargetSessionAttrs::ReadOnly => "off",
        _ => return Ok(()),
    };
    let asked = driven(client.simple_query("SHOW transaction_read_only"), driver).await;
    let messages = asked.map_err(|error| Reason(chain(&error)))?;
    let is_refused = messages.iter().any(
        |message| matches!(message, SimpleQueryMessage::Row(row) if row.get(0) == Some(refused)),
    );
    match (is_refused, refused) {
        (false, _) => Ok(()),
        (true, "on") => Err(Reason("the server allows no writes".to_owned())),
        (true, _) => Err(Reason("the server is not read-only".to_owned())),
    }
}

/// Does `work`, which is moved by `driver`.
///
/// # Errors
/// Those of either: a connection that has ended ends what it was to do.
pub async fn driven<T>(
    work: impl Future<Output = Result<T, Error>>,
    driver: impl Future<Output = Result<(), Error>> + Unpin,
) -> Result<T, Error> {
    match select(pin!(work), driver).await {
        Either::Left((done, _)) => done,
        Either::Right((ended, work)) => {
            ended?;
            work.await
        }
    }
}

impl Target {
    /// Connects, with the settings of the client library.
    async fn open(&self, config: &Config) -> Result<Stream, Reason> {
        let patience = config.get_connect_timeout().copied().unwrap_or(CONNECT_MAX);
        let connecting = async {
            match self {
                Target::Ip(address) => {
                    let stream = TcpStream::connect(address).await?;
                    stream.set_nodelay(true)?;
                    let socket = SockRef::from(&stream);
                    if let Some(timeout) = config.get_tcp_user_timeout() {
                        socket.set_tcp_user_timeout(Some(*timeout))?;
                    }
                    if config.get_keepalives() {
                        socket.set_tcp_keepalive(&keepalive(config))?;
                    }
                    Ok(Stream::new(stream))
                }
                Target::Unix(path) => Ok(Stream::new(UnixStream::connect(path).await?)),
            }
        };
        let connected: io::Result<Stream> = match time::timeout(patience, connecting).await {
            Ok(connected) => connected,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        };
        connected.map_err(|error| Reason(self.told(&error)))
    }

    fn told(&self, error: &io::Error) -> String {
        let whom = match self {
            Target::Ip(address) => address.to_string(),
            Target::Unix(path) => path.display().to_string(),
        };
        told(&whom, error)
    }
}

fn keepalive(config: &Config) -> TcpKeepalive {
    let mut keepalive = TcpKeepalive::new().with_time(config.get_keepalives_idle());
    if let Some(interval) = config.get_keepalives_interval() {
        keepalive = keepalive.with_interval(interval);
    }
    if let Some(retries) = config.get_keepalives_retries() {
        keepalive = keepalive.with_retries(retries);
    }
    keepalive
}

impl Cancelling {
    /// Asks the server for it.
    ///
    /// # Errors
    /// When it could not be asked.
    pub async fn cancel(self) -> Result<(), Reason> {
        let Cancelling { token, config, host, target, tls } = self;
        let asking = async move {
            let stream = target.open(&config).await?;
            let asked = cancel(&token, stream, &host, &tls).await;
            asked.map_err(|error| Reason(chain(&error)))
        };
        match time::timeout(CANCEL_MAX, asking).await {
            Ok(asked) => asked,
            Err(_) => Err(Reason("the server does not answer".to_owned())),
        }
    }
}

impl Wire {
    /// Sends what there is, which ends with the good-bye, and waits until the server has ended the
    /// session; for a moment only.
    pub async fn close(mut self, mut out: BytesMut) {
        let closing = async {
            poll_fn(|cx| self.poll_send(cx, &mut out)).await?;
            poll_fn(|cx| self.poll_shutdown(cx)).await?;
            poll_fn(|cx| self.poll_end(cx)).await
        };
        let closed: Result<io::Result<()>, _> = time::timeout(CLOSE_MAX, closing).await;
        if !matches!(closed, Ok(Ok(()))) {
            log::debug!(event_type = "database_close"; "a connection did not close: {closed:?}");
        }
    }
}

/// How long an attempt to connect may take, of a server that accepts connections.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// How long a cancelling may take before the connection is dropped without it.
pub const CANCEL_MAX: Duration = Duration::from_secs(1);

/// How long the good-bye may take.
const CLOSE_MAX: Duration = Duration::from_millis(500);
