//! Which certificate is in force for which machine: the positive list. Must not sign or check a token's seal (the shell
//! has done both): here it is decided what an honest token is worth now.

use cid_discovery::NodeId;
use cid_protocol::api::NodeState;
use cid_protocol::node::{Certificate, MAX_THROWN_OUT, ToNode};
use cid_trust::{BootToken, Fingerprint, TOKEN_SKEW_MS};

use super::{ConnectionId, Now, Output, Registry};
use crate::mac::Mac;

/// What is kept of a machine's last enrolment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// Id in the certificate.
    pub node: [u8; 16],
    /// When its boot token was redeemed: older tokens of this machine are void. Unix time in milliseconds.
    pub redeemed_unix_ms: u64,
    /// That token's nonce.
    pub nonce: [u8; 12],
    /// SHA-256 of the public key that redeemed it.
    pub key: [u8; 32],
    /// Certificate in force, DER; empty when it was taken off the list.
    pub leaf: Vec<u8>,
}

impl Credential {
    fn fingerprint(&self) -> Option<Fingerprint> {
        (!self.leaf.is_empty()).then(|| Fingerprint::of(&self.leaf))
    }
}

/// An enrolment whose token is ours, with the certificate that it gets if it is worth one.
#[derive(Debug, Clone)]
pub struct Enrolment {
    /// Machine that the token is for.
    pub mac: Mac,
    /// What the token says.
    pub token: BootToken,
    /// SHA-256 of the public key.
    pub key: [u8; 32],
    /// Id in `leaf`.
    pub node: NodeId,
    /// Certificate over the key, DER.
    pub leaf: Vec<u8>,
    /// The authority's, DER.
    pub authority: Vec<u8>,
}

/// What came of an enrolment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Enrolled {
    /// The certificate is in force.
    #[error("it has a certificate")]
    Fresh,
    /// The same key asked again, an answer was lost: the same certificate.
    #[error("it has its certificate again")]
    Again,
    /// Nobody adopted it.
    #[error("this machine is not adopted; `cidctl adopt` takes it in")]
    NotAdopted,
    /// The token is older than one that was redeemed, or its boot is over.
    #[error("the boot token was used already, and its boot is over; restart the PC")]
    Spent,
    /// Two keys asked in the name of one boot: both are out.
    #[error("its boot token was used twice, by two keys: somebody read it on the wire")]
    Twice,
    /// Two machines claim one id.
    #[error("another machine enrolled with the same UUID at this moment; restart the PC")]
    Collision,
}

impl Enrolled {
    /// The word a refusal is counted by.
    pub fn drop_reason(self) -> Option<&'static str> {
        match self {
            Self::Fresh | Self::Again => None,
            Self::NotAdopted => Some("enroll-not-adopted"),
            Self::Spent => Some("token-spent"),
            Self::Twice => Some("token-twice"),
            Self::Collision => Some("enroll-same-uuid"),
        }
    }
}

/// What is said of a machine whose token was used twice; the policy and `cidctl nodes` add the remedy.
const TWICE: &str = "its boot token was used twice, by two keys: both certificates are revoked; look for who listens on its network";

impl Registry {
    /// Takes over the list that the database kept.
    pub fn restore_credentials(&mut self, kept: Vec<(Mac, Credential)>) {
        for (mac, credential) in kept {
            self.list(mac, credential);
        }
    }

    fn list(&mut self, mac: Mac, credential: Credential) {
        if let Some(fingerprint) = credential.fingerprint() {
            self.listed.insert(fingerprint, mac);
        }
        let old = self.credentials.insert(mac, credential);
        let replaced = old.and_then(|old| old.fingerprint());
        let in_force = self.credentials.get(&mac).and_then(Credential::fingerprint);
        if let Some(replaced) = replaced.filter(|replaced| Some(*replaced) != in_force) {
            self.listed.remove(&replaced);
        }
    }

    /// A connection with this certificate: whether it is in force. From here on the connection is that machine's.
    pub fn handle_certified(&mut self, connection: ConnectionId, fingerprint: Fingerprint) -> bool {
        let Some(mac) = self.listed.get(&fingerprint).copied() else {
            return false;
        };
        self.vouched.insert(connection, mac);
        true
    }

    /// The registry's tests are about other things than certificates.
    #[cfg(test)]
    pub(super) fn vouch(&mut self, connection: ConnectionId, mac: Mac) {
        self.vouched.insert(connection, mac);
    }

    /// Machine of a connection, by its certificate.
    pub(super) fn certified(&self, connection: ConnectionId) -> Option<Mac> {
        self.vouched.get(&connection).copied()
    }

    /// Id that a machine's certificate gets. Two boards with one UUID are two nodes: the second goes by its MAC.
    pub fn id_for(&self, mac: Mac, uuid: &str) -> NodeId {
        let id = NodeId::of_machine(uuid, mac.0);
        if self.holder(id).is_some_and(|holder| holder != mac) {
            return NodeId::of_machine("", mac.0);
        }
        id
    }

    fn holder(&self, id: NodeId) -> Option<Mac> {
        let holds = |credential: &Credential| credential.node == id.0 && !credential.leaf.is_empty();
        let mut holders = self
            .credentials
            .iter()
            .filter(|(_, credential)| holds(credential));
        holders.next().map(|(mac, _)| *mac)
    }

    /// An honest token asks for its certificate. The answer is a [`Output::Send`] behind what has to be on disk before it.
    pub fn handle_enroll(&mut self, now: Now, connection: ConnectionId, asked: Enrolment) -> Enrolled {
        let outcome = self.judge(now, &asked);
        let mac = asked.mac;
        match outcome {
            Enrolled::Fresh => {
                // What spoke in its name before is an earlier boot.
                self.close_certified(mac);
                let credential = Credential {
                    node: asked.node.0,
                    redeemed_unix_ms: now.unix_ms,
                    nonce: asked.token.nonce,
                    key: asked.key,
                    leaf: asked.leaf.clone(),
                };
                self.list(mac, credential);
                self.persist_credential(mac);
                let text = format!(
                    "proved its boot token; certificate {}",
                    &Fingerprint::of(&asked.leaf).to_string()[..16]
                );
                self.event(now, mac, "enrolled", text);
                self.certify(connection, &asked.leaf, &asked.authority);
            }
            Enrolled::Again => {
                let leaf = self
                    .credentials
                    .get(&mac)
                    .map(|credential| credential.leaf.clone());
                self.certify(connection, &leaf.unwrap_or_default(), &asked.authority);
            }
            Enrolled::Twice => {
                self.event(now, mac, "token-twice", TWICE.to_owned());
                self.throw_out(now, mac, TWICE);
                self.refuse(connection, outcome.to_string());
            }
            Enrolled::NotAdopted | Enrolled::Collision => self.refuse(connection, outcome.to_string()),
            Enrolled::Spent => {
                self.event(now, mac, "token-spent", format!("refused: {outcome}"));
                self.refuse(connection, outcome.to_string());
            }
        }
        outcome
    }

    fn judge(&self, now: Now, asked: &Enrolment) -> Enrolled {
        let adopted = self
            .record(asked.mac)
            .is_some_and(|record| self.group_of(record).is_some());
        if !adopted {
            return Enrolled::NotAdopted;
        }
        if self.holder(asked.node).is_some_and(|holder| holder != asked.mac) {
            return Enrolled::Collision;
        }
        let Some(last) = self.credentials.get(&asked.mac) else {
            return Enrolled::Fresh;
        };
        // After the head's clock was set back the time says nothing; the nonce still does.
        let clock_was_set_back = last.redeemed_unix_ms > now.unix_ms.saturating_add(TOKEN_SKEW_MS);
        let older = asked.token.issued_unix_ms <= last.redeemed_unix_ms && !clock_was_set_back;
        if last.nonce != asked.token.nonce && !older {
            return Enrolled::Fresh;
        }
        match (last.leaf.is_empty(), last.key == asked.key) {
            (false, true) => Enrolled::Again,
            // Several tokens may go out to one boot, but only one boot asks.
            (false, false) => Enrolled::Twice,
            (true, _) => Enrolled::Spent,
        }
    }

    /// A token of ours for this machine that is too old, or from the future: what its row says of the boot under way.
    pub fn handle_token_refused(&mut self, now: Now, mac: Mac, reason: &str) {
        let booting = self
            .record(mac)
            .is_some_and(|record| record.state == NodeState::Booting);
        if booting {
            self.event(now, mac, "token-refused", reason.to_owned());
            self.change_state(now, mac, NodeState::Booting, reason.to_owned());
            self.persist(mac);
        }
    }

    fn certify(&mut self, connection: ConnectionId, leaf: &[u8], authority: &[u8]) {
        let message = ToNode::Certificate(Certificate {
            leaf: cid_trust::encode(leaf),
            authority: cid_trust::encode(authority),
        });
        self.outputs.push_back(Output::Send { connection, message });
        self.outputs.push_back(Output::Close { connection });
    }

    fn persist_credential(&mut self, mac: Mac) {
        if let Some(credential) = self.credentials.get(&mac) {
            let credential = Box::new(credential.clone());
            self.outputs
                .push_back(Output::PersistCredential { mac, credential });
        }
    }

    /// From here on its certificate opens nothing, and its next boot has to prove a token of its own.
    pub(super) fn take_off_list(&mut self, mac: Mac) {
        let Some(credential) = self.credentials.get_mut(&mac) else {
            return;
        };
        let Some(fingerprint) = credential.fingerprint() else {
            return;
        };
        credential.leaf = Vec::new();
        self.listed.remove(&fingerprint);
        self.persist_credential(mac);
        self.close_certified(mac);
    }

    /// Forgets a machine that makes room; its row goes with it.
    pub(super) fn forget_credential(&mut self, mac: Mac) {
        let forgotten = self.credentials.remove(&mac);
        if let Some(fingerprint) = forgotten.and_then(|credential| credential.fingerprint()) {
            self.listed.remove(&fingerprint);
        }
    }

    /// Revokes what it has and keeps it out until the administrator says otherwise.
    pub(super) fn throw_out(&mut self, now: Now, mac: Mac, reason: &str) {
        // The nodes' own doors know the authority, not the list: they are told, with the key that follows.
        if let Some(fingerprint) = self.credentials.get(&mac).and_then(Credential::fingerprint) {
            self.thrown_out.push_back(fingerprint);
            if self.thrown_out.len() > MAX_THROWN_OUT {
                self.thrown_out.pop_front();
            }
        }
        self.take_off_list(mac);
        self.close_certified(mac);
        if let Some(machine) = self.machines.get_mut(&mac) {
            machine.record.set_hold(Some(reason.to_owned()), None);
        }
        let reason = format!("{reason}; `cidctl wake` lets it boot again");
        self.change_state(now, mac, NodeState::Refused, reason);
        self.persist(mac);
        // It has the group's key.
        let thrown_out = Some(self.record(mac).and_then(|record| record.node_id));
        self.outputs.push_back(Output::Rotate { thrown_out });
    }

    /// Id in the certificate in force.
    pub(super) fn certified_id(&self, mac: Mac) -> Option<NodeId> {
        let credential = self.credentials.get(&mac)?;
        (!credential.leaf.is_empty()).then_some(NodeId(credential.node))
    }

    fn close_certified(&mut self, mac: Mac) {
        let whose = self.vouched.iter().filter(|(_, holder)| **holder == mac);
        let theirs: Vec<ConnectionId> = whose.map(|(connection, _)| *connection).collect();
        for connection in theirs {
            self.handle_disconnect(connection);
            self.outputs.push_back(Output::Close { connection });
        }
    }
}
