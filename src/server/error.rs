//! Why a server could not start: the operator's business.

use std::fmt;
use std::io;

use super::address::Address;

/// Why a server could not start.
pub enum StartError {
    /// An address could not be listened on.
    Listen {
        /// As configured.
        address: Address,
        /// What the system said.
        source: io::Error,
    },
    /// The shutdown handle steers another server.
    HandleInUse,
    /// The system would not give what a server needs: descriptors, threads, signal handlers.
    System {
        /// What was asked of it, as in "cannot ...".
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// The sentence: what `main` prints when it returns the error.
impl fmt::Debug for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::Listen { address, source } if source.kind() == io::ErrorKind::AddrInUse => {
                write!(f, "cannot listen on {address}: the address is in use by another server")
            }
            StartError::Listen { address, source } => {
                write!(f, "cannot listen on {address}: {source}")
            }
            StartError::HandleInUse => f.write_str("the shutdown handle steers another server"),
            StartError::System { what, source } => write!(f, "cannot {what}: {source}"),
        }
    }
}

impl std::error::Error for StartError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            StartError::Listen { source, .. } | StartError::System { source, .. } => Some(source),
            StartError::HandleInUse => None,
        }
    }
}

impl From<io::Error> for StartError {
    fn from(source: io::Error) -> StartError {
        StartError::System { what: "start", source }
    }
}
