//! Asks a node instead of the head: who is there, as far as it knows. Must never change anything, and trusts nobody but the
//! cluster whose certificate it shows.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use cid_protocol::NODE_PORT;
use cid_protocol::node::MAX_FRAME;
use cid_protocol::peer::{FromPeer, PeerNodes, PeerRow, ToPeer};
use cid_trust::rustls::{ClientConnection, StreamOwned};
use cid_trust::{Expect, Identity};

use crate::client::ClientError;
use crate::print;

/// A node that does not answer in this time does not.
const CONNECT_BOUND: Duration = Duration::from_secs(5);
const ANSWER_BOUND: Duration = Duration::from_secs(15);
/// Parts of an answer: 100 machines each.
const MAX_PARTS: usize = 1_000;

/// What the node at `address` knows, with the certificate in `identity`.
pub(crate) fn nodes(address: &str, identity: &Path) -> Result<PeerNodes> {
    let identity = read_identity(identity)?;
    let pin = identity.pin().context("the identity has no authority")?;
    let config = cid_trust::client_config(pin, Expect::HeadOrNode, Some(&identity)).context("TLS")?;
    let address = resolve(address)?;
    let unreachable = |source| ClientError::NodeUnreachable {
        address: address.ip().to_string(),
        source,
    };
    let stream = TcpStream::connect_timeout(&address, CONNECT_BOUND).map_err(unreachable)?;
    stream.set_read_timeout(Some(ANSWER_BOUND))?;
    stream.set_write_timeout(Some(ANSWER_BOUND))?;
    stream.set_nodelay(true)?;
    let connection = ClientConnection::new(config, cid_trust::server_name()).context("TLS")?;
    let mut stream = StreamOwned::new(connection, stream);
    ask(&mut stream).map_err(|error| match error.downcast_ref::<std::io::Error>() {
        Some(broken) => anyhow::anyhow!("the node at {}: {}", address.ip(), cid_trust::in_words(broken)),
        None => error.context(format!("the node at {} gave no usable answer", address.ip())),
    })
}

fn read_identity(path: &Path) -> Result<Identity> {
    let text = std::fs::read_to_string(path).with_context(|| {
        format!(
            "cannot read the administrator's certificate {} (the head makes it beside its state; run this as root on the head, \
             or copy it here and name it with --identity)",
            path.display()
        )
    })?;
    Identity::from_pem(&text).with_context(|| format!("{} is no certificate with its key", path.display()))
}

fn resolve(text: &str) -> Result<SocketAddr> {
    let with_port = text
        .to_socket_addrs()
        .or_else(|_| (text, NODE_PORT).to_socket_addrs());
    let mut found = with_port.with_context(|| format!("{text:?} is no address of a node"))?;
    found
        .find(SocketAddr::is_ipv4)
        .with_context(|| format!("{text:?} has no IPv4 address"))
}

fn ask(stream: &mut (impl Read + Write)) -> Result<PeerNodes> {
    let question = serde_json::to_vec(&ToPeer::Nodes)?;
    let mut frame = u32::try_from(question.len())?.to_be_bytes().to_vec();
    frame.extend(question);
    stream.write_all(&frame)?;
    stream.flush()?;
    let mut answer = read_part(stream)?;
    for _ in 0..MAX_PARTS {
        if !answer.more {
            return Ok(answer);
        }
        let part = read_part(stream)?;
        answer.more = part.more;
        answer.nodes.extend(part.nodes);
    }
    bail!("it does not come to an end")
}

fn read_part(stream: &mut impl Read) -> Result<PeerNodes> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = usize::try_from(u32::from_be_bytes(length))?;
    ensure!(length <= MAX_FRAME, "a frame of {length} bytes");
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes)?;
    match serde_json::from_slice(&bytes)? {
        FromPeer::Nodes(part) => Ok(part),
        FromPeer::Refused { reason } => bail!("it refuses: {reason}"),
        FromPeer::Measure(_) | FromPeer::Root(_) => bail!("it answers what was not asked"),
    }
}

/// For people: the table, and how much it is worth.
pub(crate) fn table(answer: &PeerNodes, now: u64) -> String {
    let header = ["NAME", "STATE", "ADDRESS", "SINCE", "SAID BY", "WHY"];
    let mut rows = vec![header.map(str::to_owned)];
    rows.extend(answer.nodes.iter().map(|row| cells(row, now)));
    let mut text = print::columns(&rows);
    let from = &answer.from;
    let silence = from.head_heard_ms / 1_000;
    let head = print::plain(&from.head);
    let _ = match (silence, from.history_epoch) {
        (0..=24, _) => writeln!(text, "{} hears the head at {head}", print::plain(&from.name)),
        (_, 0) => writeln!(
            text,
            "{} has not heard the head at {head} for {}, and has none of its history",
            print::plain(&from.name),
            print::age(silence)
        ),
        _ => writeln!(
            text,
            "{} has not heard the head at {head} for {}: what the head said is as old as that",
            print::plain(&from.name),
            print::age(silence)
        ),
    };
    text
}

fn cells(row: &PeerRow, now: u64) -> [String; 6] {
    let name = if row.name.is_empty() {
        row.id.get(..8).unwrap_or("?")
    } else {
        &row.name
    };
    let since = row
        .since_unix_ms
        .map(|at| print::age(now.saturating_sub(at / 1_000)));
    [
        print::plain(name),
        print::plain(&row.state),
        row.address
            .as_deref()
            .map_or_else(|| "-".to_owned(), print::plain),
        since.unwrap_or_else(|| "-".to_owned()),
        if row.by_head { "head" } else { "node" }.to_owned(),
        print::plain(&row.reason),
    ]
}

#[cfg(test)]
mod tests {
    use cid_protocol::peer::Teller;

    use super::*;

    fn answer(head_heard_ms: u64) -> PeerNodes {
        let row = PeerRow {
            name: "lab-a01".into(),
            id: "ab".repeat(16),
            state: "up".into(),
            address: Some("10.77.0.130".into()),
            since_unix_ms: Some(940_000),
            reason: "joined".into(),
            by_head: true,
        };
        let stranger = PeerRow {
            state: "joining".into(),
            name: String::new(),
            by_head: false,
            ..row.clone()
        };
        PeerNodes {
            from: Teller {
                name: "lab-a02".into(),
                head: "10.77.0.1".into(),
                head_heard_ms,
                history_epoch: 1,
                ..Teller::default()
            },
            nodes: vec![row, stranger],
            more: false,
        }
    }

    #[test]
    fn the_table_says_who_says_so_and_how_old_it_is() {
        let text = table(&answer(2_000), 1_000);
        assert!(
            text.contains("lab-a01") && text.contains("hears the head at 10.77.0.1"),
            "{text}"
        );
        assert!(text.contains("abababab"), "{text}");
        let text = table(&answer(3_600_000), 1_000);
        assert!(
            text.contains("has not heard the head at 10.77.0.1 for 60m"),
            "{text}"
        );
    }

    #[test]
    fn answers_in_parts_are_put_together_and_nonsense_is_an_error() {
        let frame = |value: &FromPeer| {
            let json = serde_json::to_vec(value).expect("JSON");
            [
                &u32::try_from(json.len()).expect("short").to_be_bytes()[..],
                &json,
            ]
            .concat()
        };
        let mut first = answer(0);
        first.more = true;
        let two = [frame(&FromPeer::Nodes(first)), frame(&FromPeer::Nodes(answer(0)))].concat();
        let length = two.len();
        let ask_of = |bytes: &[u8]| {
            let mut wire = Duplex(bytes.to_vec(), 0);
            ask(&mut wire)
        };
        assert_eq!(ask_of(&two).expect("an answer").nodes.len(), 4);
        assert!(ask_of(&two[..length - 1]).is_err());
        assert!(ask_of(&[0xff; 8]).is_err());
        let refused = frame(&FromPeer::Refused { reason: "no".into() });
        assert!(ask_of(&refused).is_err());
    }

    /// Reads from what is given, writes to nowhere.
    struct Duplex(Vec<u8>, usize);

    impl Read for Duplex {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let mut rest = self.0.get(self.1..).unwrap_or_default();
            let length = rest.read(buffer)?;
            self.1 += length;
            Ok(length)
        }
    }

    impl Write for Duplex {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
}
