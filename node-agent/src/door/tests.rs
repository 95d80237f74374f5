//! The door with real certificates over real sockets, in a namespace of its own.

use std::net::Ipv4Addr;

use cid_protocol::peer::{PeerRow, Teller};
use cid_trust::{Authority, Clients, Expect, Identity, Peer};
use tokio_rustls::TlsConnector;

use super::*;

const ME: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);

/// A member that knows 250 machines.
async fn answers(mut inbox: mpsc::Receiver<Command>) {
    while let Some(command) = inbox.recv().await {
        if let Command::List(answer) = command {
            let row = |number| PeerRow {
                name: format!("lab-a{number:03}"),
                ..PeerRow::default()
            };
            let _ = answer.send((Teller::default(), (0..250).map(row).collect()));
        }
    }
}

/// Every name the node at [`ME`] tells.
async fn ask(pin_of: &Identity, shows: Option<&Identity>) -> std::io::Result<Vec<String>> {
    let pin = pin_of.pin().expect("an authority");
    let config = cid_trust::client_config(pin, Expect::HeadOrNode, shows).expect("TLS");
    let stream = TcpStream::connect((ME, NODE_PORT)).await?;
    let stream = TlsConnector::from(config)
        .connect(cid_trust::server_name(), stream)
        .await?;
    let (reader, mut writer) = tokio::io::split(stream);
    let mut reader = frames::Reader::new(reader);
    frames::write(&mut writer, &ToPeer::Nodes).await?;
    let mut names = Vec::new();
    loop {
        match reader.next().await? {
            Some(FromPeer::Nodes(part)) => {
                assert!(part.nodes.len() <= MAX_ROWS);
                names.extend(part.nodes.into_iter().map(|row| row.name));
                if !part.more {
                    return Ok(names);
                }
            }
            other => return Err(std::io::Error::other(format!("{other:?}"))),
        }
    }
}

#[test]
fn its_administrator_is_answered_and_nobody_else() {
    if !crate::room::enter("door::tests::its_administrator_is_answered_and_nobody_else") {
        return;
    }
    let added = std::process::Command::new("ip")
        .args(["address", "add", "10.9.0.2/24", "dev", "lo"])
        .status();
    assert!(added.expect("ip runs").success());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let authority = Authority::generate().expect("an authority");
        let node = Peer::node(&"0a".repeat(16)).expect("an id");
        let identity = authority.issue(&node).expect("issued");
        let admin = authority.issue(&Peer::Admin).expect("issued");
        let (commands, inbox) = mpsc::channel(4);
        tokio::spawn(answers(inbox));
        let place = Place {
            link: "lo".to_owned(),
            address: ME,
            head: SocketAddrV4::new(Ipv4Addr::new(10, 9, 0, 1), NODE_PORT),
            shared: false,
        };
        let config = cid_trust::server_config(&identity, Clients::MustBeKnown).expect("TLS");
        let thrown_out = ThrownOut::default();
        let door = Door::open(
            &place,
            config,
            commands,
            thrown_out.clone(),
            tokio::sync::watch::channel(None).1,
        )
        .expect("a door");
        let names = ask(&identity, Some(&admin)).await.expect("an answer");
        assert_eq!(names.len(), 250);

        assert!(ask(&identity, None).await.is_err(), "without a certificate");
        let other = Authority::generate().expect("an authority");
        let stranger = other.issue(&Peer::Admin).expect("issued");
        assert!(
            ask(&identity, Some(&stranger)).await.is_err(),
            "another cluster's"
        );

        // A node's certificate opens as well, until the head says that it was thrown out.
        let thief = Peer::node(&"0b".repeat(16)).expect("an id");
        let thief = authority.issue(&thief).expect("issued");
        assert_eq!(ask(&identity, Some(&thief)).await.expect("an answer").len(), 250);
        let mut key = GroupKey {
            epoch: 2,
            secret: String::new(),
            revoked: true,
            thrown_out: vec![Fingerprint::of(b"another").to_string()],
        };
        thrown_out.handle_key(&key);
        assert!(
            ask(&identity, Some(&thief)).await.is_ok(),
            "another was thrown out"
        );
        key.thrown_out = vec![Fingerprint::of(thief.leaf()).to_string()];
        thrown_out.handle_key(&key);
        let refused = ask(&identity, Some(&thief)).await.expect_err("refused");
        assert!(refused.to_string().contains("revoked"), "{refused}");
        assert_eq!(ask(&identity, Some(&admin)).await.expect("an answer").len(), 250);

        // All places are taken by somebody who says nothing: they are free again when the handshake's time is over.
        let mut held = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            held.push(TcpStream::connect((ME, NODE_PORT)).await.expect("taken"));
        }
        let names = timeout(2 * HANDSHAKE_BOUND, ask(&identity, Some(&admin))).await;
        assert_eq!(names.expect("in time").expect("an answer").len(), 250);
        drop(door);
        tokio::task::yield_now().await;
        assert!(
            TcpStream::connect((ME, NODE_PORT)).await.is_err(),
            "a closed door"
        );
    });
}
