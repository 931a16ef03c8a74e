//! TLS to the database, where it is built in.

use std::future::Future;
use std::pin::Pin;

use tokio_postgres::{CancelToken, Client, Config, Error};

use super::postgres_address::PostgresAddress;
use super::postgres_wire::{Lent, Stream};
use super::resource::Reason;

#[cfg(not(feature = "postgres-tls"))]
pub use without::{Tls, cancel, connector, open};

#[cfg(feature = "postgres-tls")]
pub use with::{Tls, cancel, connector, open};

/// A session that the client library has opened, on a stream that it was lent.
pub struct Opened {
    pub client: Client,
    pub driver: Driver,
    /// Gives the stream back, with its encryption if it has one, once the two others are gone:
    /// see [`Lent::take_back`].
    pub take_back: Box<dyn FnOnce() -> Option<Stream> + Send>,
}

/// The half of a session that has to be polled. Ready when it is over.
pub type Driver = Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>;

#[cfg(not(feature = "postgres-tls"))]
mod without {
    use tokio_postgres::NoTls;

    use super::super::postgres_address::Trust;
    use super::{CancelToken, Config, Error, Lent, Opened, PostgresAddress, Reason, Stream};

    /// There is none: addresses that ask for it were refused.
    pub type Tls = NoTls;

    #[allow(clippy::unnecessary_wraps, reason = "its twin may fail")]
    pub fn connector(address: &PostgresAddress) -> Result<Tls, Reason> {
        debug_assert_eq!(address.trust, Trust::Any);
        Ok(NoTls)
    }

    /// # Errors
    /// What the library says.
    pub async fn open(
        config: &Config,
        stream: Stream,
        _host: &str,
        _tls: &Tls,
    ) -> Result<Opened, Error> {
        let lent = Lent::new(stream);
        let (client, connection) = config.connect_raw(lent.clone(), NoTls).await?;
        let take_back = Box::new(move || lent.take_back());
        Ok(Opened { client, driver: Box::pin(connection), take_back })
    }

    /// # Errors
    /// What the library says.
    pub async fn cancel(
        token: &CancelToken,
        stream: Stream,
        _host: &str,
        _tls: &Tls,
    ) -> Result<(), Error> {
        token.cancel_query_raw(stream, NoTls).await
    }
}

#[cfg(feature = "postgres-tls")]
mod with {
    use std::future::Future;
    use std::io;
    use std::pin::Pin;
    use std::sync::{Arc, Mutex, PoisonError};

    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
    use rustls::{
        CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore,
        SignatureScheme,
    };
    use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
    use tokio_postgres_rustls::MakeRustlsConnect;

    use super::super::postgres_address::{Roots, Trust};
    use super::super::postgres_wire::Duplex;
    use super::{
        CancelToken, Config, Error as ClientError, Lent, Opened, PostgresAddress, Reason, Stream,
    };

    /// Encrypts, and asks as much as the address wants to know.
    pub type Tls = MakeRustlsConnect;

    /// # Errors
    /// When the certificates that the address names cannot be read.
    pub fn connector(address: &PostgresAddress) -> Result<Tls, Reason> {
        let provider = Arc::new(ring::default_provider());
        let (roots, name) = match &address.trust {
            Trust::Any => (None, Name::Any),
            Trust::Signed(from) => (Some(roots(from)?), Name::Any),
            Trust::Named(from) => (Some(roots(from)?), Name::OfHost),
        };
        let strict = match roots {
            Some(roots) => {
                let builder = WebPkiServerVerifier::builder_with_provider(
                    Arc::new(roots),
                    Arc::clone(&provider),
                );
                let built = builder.build();
                Some(
                    built
                        .map_err(|error| Reason(format!("cannot verify certificates: {error}")))?,
                )
            }
            None => None,
        };
        let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| Reason(format!("no TLS: {error}")))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Verifier { strict, name, provider }))
            .with_no_client_auth();
        Ok(MakeRustlsConnect::new(config))
    }

    /// # Errors
    /// What the library says.
    pub async fn open(
        config: &Config,
        stream: Stream,
        host: &str,
        tls: &Tls,
    ) -> Result<Opened, ClientError> {
        let (lent, kept) = (Lent::new(stream), Kept::default());
        let connect = Keeping { inner: maker(tls, host), kept: Arc::clone(&kept) };
        let (client, connection) = config.connect_raw(lent.clone(), connect).await?;
        let take_back = Box::new(move || {
            let encrypted = kept.lock().unwrap_or_else(PoisonError::into_inner).take();
            match encrypted {
                Some(encrypted) => encrypted.take_back(),
                None => lent.take_back(),
            }
        });
        Ok(Opened { client, driver: Box::pin(connection), take_back })
    }

    /// # Errors
    /// What the library says.
    pub async fn cancel(
        token: &CancelToken,
        stream: Stream,
        host: &str,
        tls: &Tls,
    ) -> Result<(), ClientError> {
        token.cancel_query_raw(Lent::new(stream), maker(tls, host)).await
    }

    type Plain = Lent<Stream>;
    type Connector = <Tls as MakeTlsConnect<Plain>>::TlsConnect;
    type Encrypted = <Tls as MakeTlsConnect<Plain>>::Stream;
    /// Where the encrypted stream is found once there is one.
    type Kept = Arc<Mutex<Option<Lent<Encrypted>>>>;

    fn maker(tls: &Tls, host: &str) -> Connector {
        match MakeTlsConnect::<Plain>::make_tls_connect(&mut Tls::clone(tls), host) {
            Ok(connector) => connector,
            Err(never) => match never {},
        }
    }

    /// Encrypts a stream, and keeps it for later.
    struct Keeping {
        inner: Connector,
        kept: Kept,
    }

    impl TlsConnect<Plain> for Keeping {
        type Stream = Lent<Encrypted>;
        type Error = io::Error;
        type Future = Pin<Box<dyn Future<Output = io::Result<Lent<Encrypted>>> + Send>>;

        fn connect(self, stream: Plain) -> Self::Future {
            let Keeping { inner, kept } = self;
            let connecting = inner.connect(stream);
            Box::pin(async move {
                let lent = Lent::new(connecting.await?);
                *kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(lent.clone());
                Ok(lent)
            })
        }
    }

    impl<S: TlsStream + Duplex> TlsStream for Lent<S> {
        fn channel_binding(&self) -> ChannelBinding {
            self.with(|stream| stream.channel_binding())
        }
    }

    fn roots(from: &Roots) -> Result<RootCertStore, Reason> {
        let mut store = RootCertStore::empty();
        let certificates: Vec<CertificateDer<'static>> = match from {
            Roots::System => rustls_native_certs::load_native_certs().certs,
            Roots::File(path) => CertificateDer::pem_file_iter(path)
                .and_then(Iterator::collect)
                .map_err(|error| Reason(format!("cannot read the sslrootcert {path}: {error}")))?,
        };
        let (added, _ignored) = store.add_parsable_certificates(certificates);
        if added == 0 {
            return Err(Reason(format!("there are no root certificates in {from:?}")));
        }
        Ok(store)
    }

    /// Whether the certificate has to have the name of the host.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Name {
        Any,
        OfHost,
    }

    #[derive(Debug)]
    struct Verifier {
        /// `None` when any certificate will do.
        strict: Option<Arc<WebPkiServerVerifier>>,
        name: Name,
        provider: Arc<CryptoProvider>,
    }

    impl ServerCertVerifier for Verifier {
        fn verify_server_cert(
            &self,
            end_entity: &CertificateDer<'_>,
            intermediates: &[CertificateDer<'_>],
            server_name: &ServerName<'_>,
            ocsp_response: &[u8],
            now: UnixTime,
        ) -> Result<ServerCertVerified, Error> {
            let Some(strict) = &self.strict else { return Ok(ServerCertVerified::assertion()) };
            let verified = strict.verify_server_cert(
                end_entity,
                intermediates,
                server_name,
                ocsp_response,
                now,
            );
            match verified {
                // The last of the checks: the chain was good.
                Err(Error::InvalidCertificate(
                    CertificateError::NotValidForName
                    | CertificateError::NotValidForNameContext { .. },
                )) if self.name == Name::Any => Ok(ServerCertVerified::assertion()),
                other => other,
            }
        }

        fn verify_tls12_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let known = &self.provider.signature_verification_algorithms;
            verify_tls12_signature(message, cert, dss, known)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let known = &self.provider.signature_verification_algorithms;
            verify_tls13_signature(message, cert, dss, known)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.provider.signature_verification_algorithms.supported_schemes()
        }
    }
}
