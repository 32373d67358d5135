// SPDX-License-Identifier: Apache-2.0
//! rustls's verification of chains and signatures, and on top the mesh's: a leaf names exactly one
//! identity, of this trust domain, and a server the one that was dialled. Checked here so that the
//! peer gets an alert, and after the handshake again, because a resumed one does not come here.

use std::sync::Arc;

use culvert_api::identity::IdentityDomain;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
    server::{
        VerifierBuilderError, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::peer;

/// Verifies the servers that this node's workloads dial.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    domain: IdentityDomain,
    web_pki: Arc<WebPkiServerVerifier>,
}

/// Verifies the clients of this node's workloads.
#[derive(Debug)]
pub(super) struct ClientVerifier {
    domain: IdentityDomain,
    web_pki: Arc<dyn ClientCertVerifier>,
}

// === impl ServerVerifier ===

impl ServerVerifier {
    pub(super) fn new(
        domain: IdentityDomain,
        anchors: Arc<RootCertStore>,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, VerifierBuilderError> {
        let web_pki = WebPkiServerVerifier::builder_with_provider(anchors, provider).build()?;
        Ok(Self { domain, web_pki })
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified =
            self.web_pki
                .verify_server_cert(leaf, intermediates, server_name, ocsp, now)?;
        let named = named(leaf, &self.domain)?;
        let expected = self.domain.server_name(&named);
        if !server_name.to_str().eq_ignore_ascii_case(&expected) {
            return Err(CertificateError::NotValidForName.into());
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.web_pki
            .verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.web_pki
            .verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.web_pki.supported_verify_schemes()
    }
}

// === impl ClientVerifier ===

impl ClientVerifier {
    pub(super) fn new(
        domain: IdentityDomain,
        anchors: Arc<RootCertStore>,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, VerifierBuilderError> {
        // The hints would travel in every handshake, and every client has one certificate only.
        let web_pki = WebPkiClientVerifier::builder_with_provider(anchors, provider)
            .clear_root_hint_subjects()
            .build()?;
        Ok(Self { domain, web_pki })
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.web_pki.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.web_pki.verify_client_cert(leaf, intermediates, now)?;
        named(leaf, &self.domain)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.web_pki
            .verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.web_pki
            .verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.web_pki.supported_verify_schemes()
    }
}

fn named(
    leaf: &CertificateDer<'_>,
    domain: &IdentityDomain,
) -> Result<culvert_api::identity::Identity, Error> {
    let leaf = peer::leaf(leaf, domain);
    leaf.map(|leaf| leaf.identity).map_err(|error| {
        Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
    })
}
