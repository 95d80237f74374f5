//! `cidctl --node`: a node answers in the head's place, and only to its own cluster's administrator. The node is a few lines with
//! the same certificates and frames; the agent's own door is tested where the agent is.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use cid_protocol::peer::{FromPeer, PeerNodes, PeerRow, Teller};
use cid_trust::rustls::{ServerConnection, StreamOwned};
use cid_trust::{Authority, Clients, Identity, Peer};

fn cidctl(arguments: &[&str], identity: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cidctl"))
        .env("CID_IDENTITY", identity)
        .env("CID_SOCKET", "/nowhere")
        .args(arguments)
        .output()
        .expect("cidctl runs")
}

/// A node that answers one question, or breaks off; its address, and whether it was asked.
fn node(identity: &Identity) -> (String, std::thread::JoinHandle<bool>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let config = cid_trust::server_config(identity, Clients::MustBeKnown).expect("TLS");
    let answer = FromPeer::Nodes(PeerNodes {
        from: Teller {
            name: "lab-a02".into(),
            head: "10.77.0.1".into(),
            head_heard_ms: 90_000,
            history_epoch: 1,
            ..Teller::default()
        },
        nodes: vec![PeerRow {
            name: "lab-a01".into(),
            id: "ab".repeat(16),
            state: "lost".into(),
            reason: "does not answer its peers".into(),
            ..PeerRow::default()
        }],
        more: false,
    });
    let thread = std::thread::spawn(move || {
        let (stream, _) = listener.accept().expect("a client");
        let connection = ServerConnection::new(Arc::clone(&config)).expect("TLS");
        let mut stream = StreamOwned::new(connection, stream);
        let mut question = [0; 256];
        let asked = stream.read(&mut question).is_ok_and(|length| length > 4);
        if asked {
            let json = serde_json::to_vec(&answer).expect("JSON");
            let length = u32::try_from(json.len()).expect("short").to_be_bytes();
            let _ = stream.write_all(&[&length[..], &json].concat());
            let _ = stream.flush();
        }
        asked
    });
    (address, thread)
}

fn identities(folder: &Path) -> (Identity, std::path::PathBuf) {
    let authority = Authority::generate().expect("an authority");
    let admin = folder.join("admin.pem");
    let issued = authority.issue(&Peer::Admin).expect("issued");
    std::fs::write(&admin, issued.to_pem()).expect("written");
    let peer = Peer::node(&"0a".repeat(16)).expect("an id");
    (authority.issue(&peer).expect("issued"), admin)
}

#[test]
fn a_node_answers_its_administrator_in_words_and_json() {
    let folder = tempfile::tempdir().expect("a folder");
    let (identity, admin) = identities(folder.path());
    let (address, asked) = node(&identity);
    let output = cidctl(&["--node", &address, "nodes"], &admin);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(text.contains("lab-a01") && text.contains("lost"), "{text}");
    assert!(
        text.contains("lab-a02 has not heard the head at 10.77.0.1 for 90s"),
        "{text}"
    );
    assert!(asked.join().expect("the node ends"));
    let (address, _asked) = node(&identity);
    let output = cidctl(&["--node", &address, "nodes", "--json"], &admin);
    let answer: PeerNodes = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(answer.nodes[0].state, "lost");
}

#[test]
fn another_clusters_node_is_not_asked_and_nobody_is_exit_code_3() {
    let folder = tempfile::tempdir().expect("a folder");
    let (_, admin) = identities(folder.path());
    let other = tempfile::tempdir().expect("a folder");
    let (stranger, _) = identities(other.path());
    let (address, asked) = node(&stranger);
    let output = cidctl(&["--node", &address, "nodes"], &admin);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("not signed by this cluster's head"), "{error}");
    assert!(!asked.join().expect("the node ends"), "it was asked");

    let free = TcpListener::bind("127.0.0.1:0")
        .expect("a port")
        .local_addr()
        .expect("an address");
    let output = cidctl(&["--node", &free.to_string(), "nodes"], &admin);
    assert_eq!(
        output.status.code(),
        Some(3),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let output = cidctl(&["--node", &free.to_string(), "status"], &admin);
    assert_eq!(output.status.code(), Some(1));
    let missing = folder.path().join("missing.pem");
    let output = cidctl(&["--node", &free.to_string(), "nodes"], &missing);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        error.contains("--identity") && error.lines().count() == 1,
        "{error}"
    );
}
