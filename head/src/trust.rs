//! The head as its cluster's authority: the key in the state folder, tokens into scripts, certificates for honest tokens, the
//! door's TLS. Must not decide whose certificate is in force: the registry's list does.

use std::fs::{DirBuilder, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cid_content::{RootManifest, Signed};
use cid_discovery::NodeId;
use cid_protocol::cmdline;
use cid_protocol::node::Enroll;
use cid_trust::{
    Authority, AuthorityError, BootToken, Clients, Fingerprint, Identity, Machine, Peer, TokenError,
    TokenSecret,
};
use tokio_rustls::TlsAcceptor;

use crate::mac::Mac;

/// Folder in the state folder.
const FOLDER: &str = "ca";
const KEY: &str = "key.pem";
const ADMIN: &str = "admin.pem";

/// Why there is no authority; each is one line with the remedy.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// A file cannot be made or read.
    #[error("cannot use {path}: {source}; check its owner and permissions")]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others may read the key.
    #[error(
        "{0} can be read by others than its owner: `chmod 600 {0}`, and if somebody may have read it, move it away: the head makes a new one"
    )]
    Exposed(PathBuf),
    /// It holds no key of ours.
    #[error(
        "{path} is damaged ({source}); restore a copy, or move it away: the head makes a new one, and nodes that are up go home"
    )]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        source: AuthorityError,
    },
    /// No key can be made.
    #[error("cannot make keys: {0}")]
    Keys(#[from] AuthorityError),
    /// TLS cannot be set up.
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] cid_trust::rustls::Error),
}

/// Whether the authority was there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// From an earlier start or `cidhead init`.
    There,
    /// It was made just now.
    Made,
}

/// Why an enrolment is refused before the registry is asked.
#[derive(Debug, thiserror::Error)]
pub enum BadEnrolment {
    /// Not a MAC address.
    #[error("no MAC address in the enrolment; the node software does not fit this head")]
    BadMac,
    /// Not a public key that we sign.
    #[error("no usable public key in the enrolment; the node software does not fit this head")]
    BadKey,
    /// Of another version.
    #[error("its node software speaks version {0} of the messages, this head {version}; rebuild the image with this head's cidbuild", version = cid_protocol::node::NODE_PROTOCOL_VERSION)]
    OtherVersion(u32),
    /// The token is not honest.
    #[error("{0}")]
    Token(#[from] TokenError),
    /// Signing failed.
    #[error("the head cannot sign at the moment; restart the PC")]
    Signing(AuthorityError),
}

impl BadEnrolment {
    /// The word it is counted by.
    pub fn drop_reason(&self) -> &'static str {
        match self {
            Self::BadMac => "enroll-bad-mac",
            Self::BadKey => "enroll-bad-key",
            Self::OtherVersion(_) => "enroll-other-version",
            Self::Token(error) => error.word(),
            Self::Signing(_) => "enroll-not-signed",
        }
    }
}

/// An enrolment whose token is honest.
#[derive(Debug)]
pub struct Honest {
    /// Machine that the token is for.
    pub mac: Mac,
    /// The UUID it names.
    pub uuid: String,
    /// What the token says.
    pub token: BootToken,
    /// SubjectPublicKeyInfo, DER.
    pub public_key: Vec<u8>,
    /// SHA-256 of that.
    pub key: [u8; 32],
}

/// The authority at work.
pub struct Trust {
    authority: Authority,
    secret: TokenSecret,
    valid: Duration,
    acceptor: TlsAcceptor,
}

impl Trust {
    /// Works with this authority. The head's own key and certificate are new with every start.
    ///
    /// # Errors
    /// Without random numbers.
    pub fn new(authority: Authority, token_valid: Duration) -> Result<Self, TrustError> {
        let own = authority.issue(&Peer::Head)?;
        let config = cid_trust::server_config(&own, Clients::MayBeNew)?;
        Ok(Self {
            secret: authority.token_secret(),
            authority,
            valid: token_valid,
            acceptor: TlsAcceptor::from(config),
        })
    }

    /// For connections of nodes.
    pub fn acceptor(&self) -> &TlsAcceptor {
        &self.acceptor
    }

    /// DER of the authority's certificate.
    pub fn certificate(&self) -> &[u8] {
        self.authority.certificate()
    }

    /// By what nodes know this head: public.
    pub fn pin_word(&self) -> String {
        format!("{}={}", cmdline::AUTHORITY, self.authority.pin())
    }

    /// The pin, and a new token for a machine that is about to boot.
    pub fn boot_words(&self, now_unix_ms: u64, mac: Mac, uuid: &str) -> String {
        let pin = self.pin_word();
        match cid_trust::random() {
            Ok(nonce) => {
                let machine = Machine::new(mac.0, uuid);
                let token = self.secret.mint(now_unix_ms, nonce, &machine);
                format!("{pin} {}={token}", cmdline::TOKEN)
            }
            Err(error) => {
                tracing::error!(%error, "no boot token");
                pin
            }
        }
    }

    /// A root manifest, signed by the key behind the pin.
    ///
    /// # Errors
    /// In words: an image's name that is none, or the library.
    pub fn sign_root(&self, manifest: &RootManifest) -> Result<Signed, String> {
        let bytes = manifest.encode().map_err(|error| error.to_string())?;
        let signature = self
            .authority
            .sign_bytes(&bytes)
            .map_err(|error| error.to_string())?;
        Signed::new(manifest, self.authority.public_key(), signature).map_err(|error| error.to_string())
    }

    /// Looks at what a machine without a certificate sent.
    ///
    /// # Errors
    /// See [`BadEnrolment`]; nothing is known of the sender then.
    pub fn check(&self, now_unix_ms: u64, enroll: &Enroll) -> Result<Honest, BadEnrolment> {
        if enroll.version != cid_protocol::node::NODE_PROTOCOL_VERSION {
            return Err(BadEnrolment::OtherVersion(enroll.version));
        }
        let mac: Mac = enroll.mac.parse().map_err(|_| BadEnrolment::BadMac)?;
        let public_key = cid_trust::decode(&enroll.public_key).ok_or(BadEnrolment::BadKey)?;
        let machine = Machine::new(mac.0, &enroll.uuid);
        let valid_ms = u64::try_from(self.valid.as_millis()).unwrap_or(u64::MAX);
        let token = self
            .secret
            .verify(now_unix_ms, valid_ms, &enroll.token, &machine)?;
        Ok(Honest {
            mac,
            uuid: enroll.uuid.to_ascii_lowercase(),
            token,
            key: Fingerprint::of(&public_key).0,
            public_key,
        })
    }

    /// A certificate for a node, DER. It opens nothing before it is on the registry's list.
    ///
    /// # Errors
    /// A key that is not ECDSA P-256.
    pub fn sign(&self, id: NodeId, public_key: &[u8]) -> Result<Vec<u8>, BadEnrolment> {
        let peer = Peer::node(&id.to_string()).ok_or(BadEnrolment::BadKey)?;
        self.authority
            .sign(&peer, public_key)
            .map_err(|error| match error {
                AuthorityError::BadPublicKey => BadEnrolment::BadKey,
                other => BadEnrolment::Signing(other),
            })
    }
}

/// The authority of a state folder, made where it is missing, and the administrator's certificate beside it.
///
/// # Errors
/// See [`TrustError`].
pub fn open(state_dir: &Path) -> Result<(Authority, Found), TrustError> {
    let folder = state_dir.join(FOLDER);
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| TrustError::File { path, source }
    };
    match DirBuilder::new().recursive(true).mode(0o700).create(&folder) {
        Ok(()) => hand_over(&folder, state_dir).map_err(at(&folder))?,
        Err(error) => return Err(at(&folder)(error)),
    }
    let file = folder.join(KEY);
    let (authority, found) = match read_secret(&file) {
        Ok(text) => (damaged(&file, Authority::from_key_pem(&text))?, Found::There),
        Err(TrustError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            let authority = Authority::generate()?;
            write_secret(&file, &authority.key_pem(), state_dir).map_err(at(&file))?;
            (authority, Found::Made)
        }
        Err(error) => return Err(error),
    };
    let file = folder.join(ADMIN);
    let admin = read_secret(&file)
        .ok()
        .and_then(|text| Identity::from_pem(&text).ok());
    if admin.and_then(|admin| admin.pin()) != Some(authority.pin()) {
        let admin = authority.issue(&Peer::Admin)?;
        write_secret(&file, &admin.to_pem(), state_dir).map_err(at(&file))?;
    }
    Ok((authority, found))
}

fn damaged<T>(file: &Path, result: Result<T, AuthorityError>) -> Result<T, TrustError> {
    result.map_err(|source| TrustError::Damaged {
        path: file.to_owned(),
        source,
    })
}

fn read_secret(file: &Path) -> Result<String, TrustError> {
    let failed = |source| TrustError::File {
        path: file.to_owned(),
        source,
    };
    let mode = std::fs::metadata(file).map_err(failed)?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(TrustError::Exposed(file.to_owned()));
    }
    std::fs::read_to_string(file).map_err(failed)
}

/// On disk before it has its name, and readable by its owner alone from its first byte on.
fn write_secret(file: &Path, text: &str, like: &Path) -> io::Result<()> {
    let next = file.with_extension("new");
    let _ = std::fs::remove_file(&next);
    let mut out = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&next)?;
    out.set_permissions(Permissions::from_mode(0o600))?;
    out.write_all(text.as_bytes())?;
    out.sync_all()?;
    hand_over(&next, like)?;
    std::fs::rename(&next, file)?;
    File::open(file.parent().unwrap_or(file))?.sync_all()
}

/// What root makes for a daemon that has an account of its own belongs to that account: to the owner of the state folder.
fn hand_over(path: &Path, state_dir: &Path) -> io::Result<()> {
    let (owner, now) = (std::fs::metadata(state_dir)?, std::fs::metadata(path)?);
    if (owner.uid(), owner.gid()) == (now.uid(), now.gid()) || now.uid() != 0 {
        return Ok(());
    }
    std::os::unix::fs::chown(path, Some(owner.uid()), Some(owner.gid()))
}

/// Opens the authority and says where it was made.
///
/// # Errors
/// See [`TrustError`].
pub fn start(state_dir: &Path, token_valid: Duration) -> Result<Arc<Trust>, TrustError> {
    let (authority, found) = open(state_dir)?;
    if found == Found::Made {
        tracing::info!(
            folder = %state_dir.join(FOLDER).display(),
            pin = %authority.pin(),
            "this head had no certificate authority: made one"
        );
    }
    Trust::new(authority, token_valid).map(Arc::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_is_made_once_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (first, found) = open(folder.path()).unwrap();
        assert_eq!(found, Found::Made);
        let mode = |name: &str| {
            let path = folder.path().join(name);
            std::fs::metadata(path).unwrap().permissions().mode() & 0o777
        };
        assert_eq!(
            (mode("ca"), mode("ca/key.pem"), mode("ca/admin.pem")),
            (0o700, 0o600, 0o600)
        );
        let (again, found) = open(folder.path()).unwrap();
        assert_eq!((again.pin(), found), (first.pin(), Found::There));
        let key = folder.path().join("ca/key.pem");
        std::fs::set_permissions(&key, Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(open(folder.path()), Err(TrustError::Exposed(_))));
        std::fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&key, "nonsense").unwrap();
        assert!(matches!(open(folder.path()), Err(TrustError::Damaged { .. })));
        // Moved away: a new one, and an administrator's certificate of the new one.
        std::fs::remove_file(&key).unwrap();
        let (new, _) = open(folder.path()).unwrap();
        assert_ne!(new.pin(), first.pin());
        let admin = std::fs::read_to_string(folder.path().join("ca/admin.pem")).unwrap();
        assert_eq!(Identity::from_pem(&admin).unwrap().pin(), Some(new.pin()));
    }

    #[test]
    fn each_script_has_a_token_of_its_own_for_its_machine() {
        let trust = Trust::new(Authority::generate().unwrap(), Duration::from_secs(120)).unwrap();
        let mac: Mac = "52:54:00:00:00:01".parse().unwrap();
        let words = [5_000, 5_000].map(|now| trust.boot_words(now, mac, ""));
        assert_ne!(words[0], words[1]);
        let token = cmdline::lookup(&words[0], cmdline::TOKEN).unwrap();
        let key = cid_trust::PrivateKey::generate().unwrap();
        let enroll = |mac: &str, token: &str| Enroll {
            version: cid_protocol::node::NODE_PROTOCOL_VERSION,
            token: token.to_owned(),
            mac: mac.to_owned(),
            uuid: String::new(),
            boot_id: String::new(),
            public_key: cid_trust::encode(&key.public_key()),
        };
        let honest = trust.check(6_000, &enroll("52:54:00:00:00:01", token)).unwrap();
        assert_eq!((honest.mac, honest.token.issued_unix_ms), (mac, 5_000));
        let refused = |now, enroll: Enroll| trust.check(now, &enroll).unwrap_err().drop_reason();
        assert_eq!(refused(6_000, enroll("52:54:00:00:00:02", token)), "token-forged");
        assert_eq!(
            refused(130_000, enroll("52:54:00:00:00:01", token)),
            "token-expired"
        );
        assert_eq!(refused(6_000, enroll("x", token)), "enroll-bad-mac");
    }
}
