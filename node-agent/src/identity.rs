//! Who this boot is, for TLS: its key pair, the head's pin, the certificate. All of it stays in the PC's memory; must never print
//! or send the private key.

use std::sync::Arc;

use anyhow::Context;
use cid_protocol::cmdline;
use cid_protocol::node::{Certificate, Enroll, NODE_PROTOCOL_VERSION};
use cid_trust::rustls::ClientConfig;
use cid_trust::{Clients, Expect, Identity, Peer, Pin, PrivateKey};

use crate::member::keep::Keep;

const KEY: &str = "key.pem";
const IDENTITY: &str = "identity.pem";

/// What this boot can prove, and how it knows its head.
#[derive(Debug)]
pub(crate) struct Credentials {
    keep: Keep,
    pin: Pin,
    token: Option<String>,
    /// Made when it is first needed: before the kernel's generator is ready, that can cost a second.
    key: Option<PrivateKey>,
    identity: Option<Identity>,
}

impl Credentials {
    /// From the kernel command line, and what an agent before this one kept.
    ///
    /// # Errors
    /// In plain words for the person at the PC: without a pin, no head can be trusted.
    pub(crate) fn load(line: &str, keep: Keep) -> Result<Self, String> {
        let pin = cmdline::lookup(line, cmdline::AUTHORITY)
            .ok_or("the boot script names no authority (cid.ca), so no head can be trusted")?;
        let pin: Pin = pin.parse().map_err(|why| format!("cid.ca: {why}"))?;
        let key = keep.read(KEY).and_then(|text| PrivateKey::from_pem(&text).ok());
        let identity = keep
            .read(IDENTITY)
            .and_then(|text| Identity::from_pem(&text).ok())
            .filter(|identity| identity.pin() == Some(pin) && matches!(identity.peer(), Peer::Node(_)));
        let token = cmdline::lookup(line, cmdline::TOKEN).map(str::to_owned);
        Ok(Self {
            keep,
            pin,
            token,
            key,
            identity,
        })
    }

    /// Whether the head has given this boot a certificate.
    pub(crate) fn is_certified(&self) -> bool {
        self.identity.is_some()
    }

    /// Whom this boot believes.
    pub(crate) fn pin(&self) -> Pin {
        self.pin
    }

    /// What a connection to the head begins with.
    pub(crate) fn client_config(&self) -> anyhow::Result<Arc<ClientConfig>> {
        cid_trust::client_config(self.pin, Expect::Head, self.identity.as_ref()).context("TLS")
    }

    /// For calling other nodes; `None` before it has a certificate.
    pub(crate) fn peer_config(&self) -> Option<Arc<ClientConfig>> {
        let identity = self.identity.as_ref()?;
        cid_trust::client_config(self.pin, Expect::HeadOrNode, Some(identity)).ok()
    }

    /// What this node's own door begins with; `None` before it has a certificate.
    pub(crate) fn server_config(&self) -> Option<Arc<cid_trust::rustls::ServerConfig>> {
        let identity = self.identity.as_ref()?;
        cid_trust::server_config(identity, Clients::MustBeKnown)
            .inspect_err(|error| log!("cid-agent: TLS: {error}"))
            .ok()
    }

    /// The question for a certificate. The same key however often it is asked: a second key would look like a thief.
    pub(crate) fn enroll(&mut self, mac: String, uuid: String, boot_id: String) -> anyhow::Result<Enroll> {
        let token = self
            .token
            .clone()
            .context("the boot script has no token (cid.token): the head did not expect this PC")?;
        let key = match self.key.take() {
            Some(key) => key,
            None => {
                let key = PrivateKey::generate().context("this boot's key")?;
                // Before it is used: an agent after this one must ask with the same.
                self.keep.write(KEY, &key.to_pem()).context("keep the key")?;
                key
            }
        };
        let public_key = cid_trust::encode(&key.public_key());
        self.key = Some(key);
        Ok(Enroll {
            version: NODE_PROTOCOL_VERSION,
            token,
            mac,
            uuid,
            boot_id,
            public_key,
        })
    }

    /// The head's answer.
    pub(crate) fn accept(&mut self, certificate: &Certificate) -> anyhow::Result<()> {
        let key = self.key.clone().context("a certificate that was not asked for")?;
        let identity = Identity::from_message(key, &certificate.leaf, &certificate.authority)
            .context("the head's certificate for this node")?;
        anyhow::ensure!(
            identity.pin() == Some(self.pin),
            "the head's certificate for this node is signed by another authority"
        );
        anyhow::ensure!(
            matches!(identity.peer(), Peer::Node(_)),
            "the head's certificate does not name a node"
        );
        self.keep
            .write(IDENTITY, &identity.to_pem())
            .context("keep the certificate")?;
        self.identity = Some(identity);
        Ok(())
    }
}
