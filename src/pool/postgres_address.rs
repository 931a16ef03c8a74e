//! The address of a PostgreSQL server: a URL, or `key=value` pairs, as libpq has them.

use std::borrow::Cow;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode};

use super::postgres_schema::Schema;
use super::resource::Reason;

/// Where the database is and how to get in. Displays without its password.
#[derive(Clone)]
pub struct PostgresAddress {
    pub(super) config: Config,
    pub(super) trust: Trust,
    /// What its connections do first.
    pub(super) schema: Schema,
}

/// Which servers are believed, once the connection is encrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Every one: `sslmode=prefer` and `require` protect from listening only.
    Any,
    /// One whose certificate is signed by one of these.
    Signed(Roots),
    /// One whose certificate is signed by one of these and has the host's name.
    Named(Roots),
}

/// Who signs certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Roots {
    /// Those that the system trusts.
    System,
    /// Those in this file, in PEM.
    File(String),
}

/// Why an address is none, in one line without its secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PostgresAddressError(String);

impl fmt::Display for PostgresAddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for PostgresAddressError {}

impl PostgresAddress {
    /// Reads `postgres://user:password@host:port/database?sslmode=...` or
    /// `host=... user=... password=... dbname=...`.
    ///
    /// Beyond what `tokio_postgres` knows it takes libpq's `sslmode=verify-ca` and `verify-full`,
    /// and `sslrootcert` (a file, or `system`). As in libpq, `require` without `sslrootcert` does
    /// not ask who the server is.
    ///
    /// # Errors
    /// What is wrong with it, without repeating any of it.
    pub fn parse(text: &str) -> Result<PostgresAddress, PostgresAddressError> {
        let refuse =
            |what: &str| Err(PostgresAddressError(format!("the address of PostgreSQL {what}")));
        let (rest, own) = Own::take_out_of(text.trim());
        let Ok(mut config) = rest.parse::<Config>() else {
            return refuse(
                "cannot be read: expected postgres://user:password@host:port/database, with \
                 special characters of the password percent-encoded",
            );
        };
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return refuse("names no host");
        }
        // The library ends user and password at the first `@`: what is left of a password with an
        // `@` would be a host, and named in the log.
        let is_torn = |host: &Host| matches!(host, Host::Tcp(name) if name.contains('@'));
        if config.get_hosts().iter().any(is_torn) {
            return refuse("has an `@` in its password: write %40");
        }
        let roots = match own.root_certificate.as_deref() {
            None | Some("system") => Roots::System,
            Some(file) => Roots::File(file.to_owned()),
        };
        let (mode, trust) = match own.mode.as_deref() {
            None | Some("prefer" | "allow") => (SslMode::Prefer, Trust::Any),
            Some("disable") => (SslMode::Disable, Trust::Any),
            Some("require") if own.root_certificate.is_none() => (SslMode::Require, Trust::Any),
            Some("require" | "verify-ca") => (SslMode::Require, Trust::Signed(roots)),
            Some("verify-full") => (SslMode::Require, Trust::Named(roots)),
            Some(_) => {
                return refuse(
                    "has an unknown sslmode: expected disable, allow, prefer, require, verify-ca \
                     or verify-full",
                );
            }
        };
        let is_unix = |host: &Host| matches!(host, Host::Unix(_));
        let is_local = config.get_hostaddrs().is_empty() && config.get_hosts().iter().all(is_unix);
        // There is no TLS on such a socket: as in libpq, what is said of it goes for others.
        let mode = if is_local { SslMode::Disable } else { mode };
        if mode == SslMode::Require && !cfg!(feature = "postgres-tls") {
            return refuse(
                "asks for TLS, which this build does not have: build it with the feature \
                 `postgres-tls`, or set sslmode=disable",
            );
        }
        config.ssl_mode(mode);
        Ok(PostgresAddress { config, trust, schema: Schema::default() })
    }

    /// Adds what every connection of ours is to have, where the address does not say otherwise.
    pub(super) fn completed(
        mut self,
        statement_timeout: Duration,
        schema: Option<Cow<'static, str>>,
    ) -> PostgresAddress {
        self.schema = Schema::new(schema);
        let config = &mut self.config;
        if config.get_application_name().is_none() {
            config.application_name(APPLICATION_NAME);
        }
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_TIMEOUT);
        }
        if config.get_tcp_user_timeout().is_none() {
            config.tcp_user_timeout(TCP_USER_TIMEOUT);
        }
        // The address's own come last: of two, the server takes the later.
        let own = config.get_options().map(|own| format!(" {own}")).unwrap_or_default();
        let options = format!(
            "-c statement_timeout={} -c client_connection_check_interval={}{own}",
            statement_timeout.as_millis(),
            CONNECTION_CHECK_INTERVAL.as_millis(),
        );
        config.options(options);
        self
    }

    /// Where a server may be, in the order of the address, as libpq reads it.
    ///
    /// # Errors
    /// When its hosts, their addresses and their ports are not as many as each other.
    pub(super) fn places(&self) -> Result<Vec<Place>, Reason> {
        let config = &self.config;
        let (hosts, addresses, ports) =
            (config.get_hosts(), config.get_hostaddrs(), config.get_ports());
        let count = hosts.len().max(addresses.len());
        if !hosts.is_empty() && !addresses.is_empty() && hosts.len() != addresses.len() {
            return Err(Reason("`host` and `hostaddr` name a different number".to_owned()));
        }
        if ports.len() > 1 && ports.len() != count {
            return Err(Reason("there are not as many ports as hosts".to_owned()));
        }
        let place = |at: usize| {
            let port = ports.get(at).or(ports.first()).copied().unwrap_or(PORT);
            let host = match hosts.get(at) {
                Some(Host::Tcp(name)) => name.clone(),
                Some(Host::Unix(_)) | None => String::new(),
            };
            let way = match (addresses.get(at), hosts.get(at)) {
                (Some(address), _) => Way::Ip(SocketAddr::new(*address, port)),
                (None, Some(Host::Tcp(name))) => Way::Name(name.clone(), port),
                (None, Some(Host::Unix(folder))) => {
                    Way::Unix(folder.join(format!(".s.PGSQL.{port}")))
                }
                (None, None) => return None,
            };
            Some(Place { host, way })
        };
        Ok((0..count).filter_map(place).collect())
    }

    /// `text` in one line and without the password.
    pub(super) fn redact(&self, text: &str) -> String {
        let password = self.config.get_password().map(String::from_utf8_lossy);
        let text = match password {
            Some(password) if !password.is_empty() => text.replace(&*password, HIDDEN),
            _ => text.to_owned(),
        };
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

impl fmt::Debug for PostgresAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PostgresAddress").field(&self.config.get_hosts()).finish()
    }
}

/// Where a server may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The name that its certificate is to have.
    pub host: String,
    pub way: Way,
}

/// How to get there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Ip(SocketAddr),
    Name(String, u16),
    Unix(PathBuf),
}

/// What an address says that the client library does not take.
#[derive(Debug, Default)]
struct Own {
    mode: Option<String>,
    root_certificate: Option<String>,
}

impl Own {
    /// The address without them, and them.
    fn take_out_of(text: &str) -> (String, Own) {
        let mut own = Own::default();
        let is_url = text.contains("://");
        let (head, pairs) = match text.split_once('?') {
            Some((head, pairs)) if is_url => (head, pairs),
            None if is_url => return (text.to_owned(), own),
            _ => ("", text),
        };
        let between = if is_url { '&' } else { ' ' };
        let mut rest: Vec<&str> = Vec::new();
        for pair in pairs.split(between) {
            match pair.split_once('=') {
                Some(("sslmode", mode)) => own.mode = Some(mode.to_owned()),
                Some(("sslrootcert", file)) => {
                    own.root_certificate = Some(file.replace("%2F", "/").replace("%2f", "/"));
                }
                _ => rest.push(pair),
            }
        }
        let rest = rest.join(&between.to_string());
        (if is_url { format!("{head}?{rest}") } else { rest }, own)
    }
}

/// Of an address that says none.
const PORT: u16 = 5432;

/// What stands in the place of a password.
const HIDDEN: &str = "***";

/// The name of our sessions in `pg_stat_activity`.
const APPLICATION_NAME: &str = "ebbtide";

/// For one address of a host.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long sent bytes may go without the other side's having them.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(3);

/// How often the server looks, while it works on a statement, whether its client is still there: it
/// ends what a killed server of ours left running. Needs PostgreSQL 14.
const CONNECTION_CHECK_INTERVAL: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    fn why_not(text: &str) -> String {
        PostgresAddress::parse(text).expect_err(text).to_string()
    }

    #[test]
    fn a_bad_address_is_refused_without_a_word_of_it() {
        for text in [
            "postgres://user:s3cret@host:port/name",
            "postgres://user:s3cret@host/name?nonsense=s3cret",
            "mysql://user:s3cret@host/name",
            "user=s3cret",
            "postgres://user:s3cret@host/name?sslmode=s3cret",
            "postgres://user:pass@s3cret@host/name",
            "",
        ] {
            let why = why_not(text);
            assert!(!why.contains("s3c") && !why.contains('\n'), "{text}: {why}");
        }
        assert!(why_not("postgres://h/d?sslmode=of").contains("unknown sslmode"));
        // Not good style, but there is no doubt what it means.
        PostgresAddress::parse("postgres://user:s3c?ret@host/name").expect("a password");
    }

    #[test]
    fn the_sslmodes_of_libpq_are_taken() {
        let trust = |text: &str| {
            PostgresAddress::parse(text)
                .map(|address| (address.config.get_ssl_mode(), address.trust))
        };
        assert_eq!(trust("postgres://h/d"), Ok((SslMode::Prefer, Trust::Any)));
        assert_eq!(trust("host=h sslmode=disable"), Ok((SslMode::Disable, Trust::Any)));
        assert_eq!(trust("host=/run/pg sslmode=require"), Ok((SslMode::Disable, Trust::Any)));
        for (mode, expected) in [
            ("require", Trust::Any),
            ("verify-ca", Trust::Signed(Roots::System)),
            ("verify-full&sslrootcert=%2Fca.pem", Trust::Named(Roots::File("/ca.pem".to_owned()))),
        ] {
            let found = trust(&format!("postgres://h/d?application_name=x&sslmode={mode}"));
            if cfg!(feature = "postgres-tls") {
                assert_eq!(found, Ok((SslMode::Require, expected)));
            } else {
                assert!(found.unwrap_err().to_string().contains("postgres-tls"));
            }
        }
    }

    #[test]
    fn connections_get_our_options_before_those_of_the_address() {
        let address = PostgresAddress::parse("postgres://h/d?options=-c%20work_mem%3D8MB").unwrap();
        let address = address.completed(Duration::from_secs(2), None);
        assert_eq!(
            address.config.get_options(),
            Some(
                "-c statement_timeout=2000 -c client_connection_check_interval=500 -c work_mem=8MB"
            )
        );
        assert_eq!(address.config.get_application_name(), Some("ebbtide"));
    }

    #[test]
    fn places_are_read_as_libpq_reads_them() {
        let places = |text: &str| PostgresAddress::parse(text).unwrap().places();
        let place = |host: &str, way: Way| Place { host: host.to_owned(), way };
        let name = |host: &str, port| place(host, Way::Name(host.to_owned(), port));
        assert_eq!(places("postgres://a/d"), Ok(vec![name("a", 5432)]));
        assert_eq!(places("host=a,b port=1"), Ok(vec![name("a", 1), name("b", 1)]));
        assert_eq!(places("host=a,b port=1,2"), Ok(vec![name("a", 1), name("b", 2)]));
        assert_eq!(
            places("host=a hostaddr=127.0.0.1"),
            Ok(vec![place("a", Way::Ip(([127, 0, 0, 1], 5432).into()))])
        );
        assert_eq!(
            places("host=/run/pg port=7"),
            Ok(vec![place("", Way::Unix("/run/pg/.s.PGSQL.7".into()))])
        );
        assert!(places("host=a,b hostaddr=127.0.0.1").is_err());
        assert!(places("host=a port=1,2").is_err());
    }

    #[test]
    fn what_is_said_of_a_connection_is_one_line_without_the_password() {
        let address = PostgresAddress::parse("postgres://u:s3cret@h/d").unwrap();
        assert_eq!(address.redact("no\nentry for s3cret"), "no entry for ***");
    }
}
