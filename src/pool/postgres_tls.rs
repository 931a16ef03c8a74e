//! TLS to the database, where it is built in.

use super::postgres_address::PostgresAddress;
use super::resource::Reason;

#[cfg(not(feature = "postgres-tls"))]
pub use without::{Tls, connector};

#[cfg(feature = "postgres-tls")]
pub use with::{Tls, connector};

#[cfg(not(feature = "postgres-tls"))]
mod without {
    use super::super::postgres_address::Trust;
    use super::{PostgresAddress, Reason};

    /// There is none: addresses that ask for it were refused.
    pub type Tls = tokio_postgres::NoTls;

    #[allow(clippy::unnecessary_wraps, reason = "its twin may fail")]
    pub fn connector(address: &PostgresAddress) -> Result<Tls, Reason> {
        debug_assert_eq!(address.trust, Trust::Any);
        Ok(tokio_postgres::NoTls)
    }
}

#[cfg(feature = "postgres-tls")]
mod with {
    use std::sync::Arc;

    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
    use rustls::{
        CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore,
        SignatureScheme,
    };
    use tokio_postgres_rustls::MakeRustlsConnect;

    use super::super::postgres_address::{Roots, Trust};
    use super::{PostgresAddress, Reason};

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
