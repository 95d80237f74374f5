//! A PC's end of a node connection: TLS over the cable, the boot script's token, frames. Must not take a short cut: what it
//! knows comes from the script that the head handed out.

use std::io::{Read, Write};
use std::process::Stdio;

use cid_protocol::cmdline;
use cid_protocol::node::{Enroll, FromNode, NODE_PROTOCOL_VERSION, ToNode};
use cid_trust::rustls::{ClientConnection, StreamOwned};
use cid_trust::{Expect, Identity, PrivateKey, client_config, server_name};

use super::{MAC, Process, Room, run};

/// A TCP connection from the PC's namespace.
pub(crate) struct Pipe(Process);

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.0.stdout.as_mut().expect("piped").read(buffer)
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.0.stdin.as_mut().expect("piped").write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.0.stdin.as_mut().expect("piped").flush()
    }
}

/// Dials port 3101 of the head.
pub(crate) fn dial(room: &Room) -> Pipe {
    let mut socat = room.at_pc("socat");
    let child = socat
        .args(["-", "TCP:10.77.0.1:3101"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    Pipe(Process(child.expect("socat is installed")))
}

/// What a boot script says of its boot.
pub(crate) struct Boot {
    pub(crate) pin: String,
    pub(crate) token: String,
}

impl Boot {
    /// Fetches the script as iPXE does.
    pub(crate) fn fetch(room: &Room) -> Self {
        let mut curl = room.at_pc("curl");
        let script = run(curl.args(["-sS", "-f", "http://10.77.0.1/boot.ipxe"]));
        let line = script.lines().find(|line| line.starts_with("kernel "));
        let word = |key| {
            let found = line.and_then(|line| cmdline::lookup(line, key));
            found.unwrap_or_else(|| panic!("no {key} in {script}")).to_owned()
        };
        Self {
            pin: word(cmdline::AUTHORITY),
            token: word(cmdline::TOKEN),
        }
    }

    /// TLS with the head that this script names, as `identity` or as nobody.
    pub(crate) fn connect(&self, room: &Room, identity: Option<&Identity>) -> Node {
        let pin = self.pin.parse().expect("a pin");
        let config = client_config(pin, Expect::Head, identity).expect("TLS");
        let connection = ClientConnection::new(config, server_name()).expect("TLS");
        Node(StreamOwned::new(connection, dial(room)))
    }

    /// The head's answer to this token and key.
    pub(crate) fn redeem(&self, room: &Room, key: &PrivateKey) -> ToNode {
        let mut node = self.connect(room, None);
        node.send(&FromNode::Enroll(Box::new(Enroll {
            version: NODE_PROTOCOL_VERSION,
            token: self.token.clone(),
            mac: MAC.to_owned(),
            uuid: String::new(),
            boot_id: "one".to_owned(),
            public_key: cid_trust::encode(&key.public_key()),
        })));
        node.answer().expect("an answer")
    }

    /// Somebody else's key with this token.
    pub(crate) fn enroll_refused(&self, room: &Room) {
        let answer = self.redeem(room, &PrivateKey::generate().expect("a key"));
        assert!(matches!(answer, ToNode::Refused { .. }), "{answer:?}");
    }

    /// A boot with its certificate.
    pub(crate) fn enroll(&self, room: &Room) -> Identity {
        let key = PrivateKey::generate().expect("a key");
        match self.redeem(room, &key) {
            ToNode::Certificate(given) => {
                Identity::from_message(key, &given.leaf, &given.authority).expect("a certificate")
            }
            other => panic!("no certificate but {other:?}"),
        }
    }
}

/// A connection that speaks frames.
pub(crate) struct Node(StreamOwned<ClientConnection, Pipe>);

impl Node {
    pub(crate) fn send(&mut self, message: &FromNode) {
        let body = serde_json::to_vec(message).expect("JSON");
        let length = u32::try_from(body.len()).expect("short").to_be_bytes();
        self.0.write_all(&[&length[..], &body].concat()).expect("sent");
        self.0.flush().expect("sent");
    }

    /// The next message; `None` once the head has closed.
    pub(crate) fn answer(&mut self) -> Option<ToNode> {
        let mut length = [0; 4];
        self.0.read_exact(&mut length).ok()?;
        let mut body = vec![0; u32::from_be_bytes(length) as usize];
        self.0.read_exact(&mut body).ok()?;
        Some(serde_json::from_slice(&body).expect("a message"))
    }
}
