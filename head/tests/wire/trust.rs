//! Who may be a node, on a real wire: one boot, one key. And what must never be written down.

use std::os::unix::fs::PermissionsExt;

use cid_protocol::api::{EventList, Explanation, NodeState};
use cid_protocol::node::ToNode;
use cid_trust::PrivateKey;

use super::tls::Boot;
use super::{IPXE, LIMIT, MAC, Room, hello, run, wait_for};

/// A PC that may boot, with its address.
fn booting(room: &Room) -> String {
    let address = room.dhclient(IPXE).expect("an address");
    run(room
        .at_pc("ip")
        .args(["address", "add", &format!("{address}/24"), "dev", "pc0"]));
    address
}

/// The counter of a reason in `/metrics`.
fn counted(room: &Room, reason: &str) -> bool {
    let metrics = room.curl(&["http://head/metrics"]).expect("an answer");
    metrics.contains(&format!("cid_drops_total{{reason=\"{reason}\"}}"))
}

#[test]
fn a_stolen_token_throws_out_both_and_raises_the_alarm() {
    let room = Room::new("unknown = \"boot\"\ndefault_group = \"lab-a\"");
    let mut head = room.start_head(&[]);
    booting(&room);
    let boot = Boot::fetch(&room);
    // The head dies between the script and the token's use; the same key asks twice, since an answer may be lost.
    head.kill();
    let mut head = room.start_head(&[]);
    let own = PrivateKey::generate().expect("a key");
    let first = boot.redeem(&room, &own);
    let ToNode::Certificate(given) = &first else {
        panic!("no certificate but {first:?}");
    };
    let identity = cid_trust::Identity::from_message(own.clone(), &given.leaf, &given.authority);
    let identity = identity.expect("a certificate");
    let mut node = boot.connect(&room, Some(&identity));
    node.send(&hello());
    assert!(matches!(node.answer(), Some(ToNode::Welcome(_))));
    room.wait_state(NodeState::Up);
    // The control: nothing has happened so far, and the same question has the same answer, also from the next head.
    head.kill();
    let mut head = room.start_head(&[]);
    let again = boot.redeem(&room, &own);
    assert!(
        matches!(&again, ToNode::Certificate(again) if again.leaf == given.leaf),
        "{again:?}"
    );
    assert!(!counted(&room, "token-twice"));
    let mut node = boot.connect(&room, Some(&identity));
    node.send(&hello());
    assert!(matches!(node.answer(), Some(ToNode::Welcome(_))));

    let thief = PrivateKey::generate().expect("a key");
    let answer = boot.redeem(&room, &thief);
    assert!(
        matches!(&answer, ToNode::Refused { reason } if reason.contains("twice")),
        "{answer:?}"
    );
    while let Some(message) = node.answer() {
        assert!(!matches!(message, ToNode::Refused { .. }), "{message:?}");
    }
    let row = room.wait_state(NodeState::Refused);
    assert!(row.reason.contains("revoked"), "{}", row.reason);
    let alarm = wait_for("the alarm", LIMIT, || {
        let list = room.get::<EventList>("/v1/events")?;
        list.events.into_iter().find(|event| event.kind == "token-twice")
    });
    assert_eq!(alarm.mac, MAC);
    assert!(counted(&room, "token-twice"));
    // It lasts: over a restart, for both of them, and at the next boot.
    head.kill();
    let _head = room.start_head(&[]);
    let mut node = boot.connect(&room, Some(&identity));
    let answer = node.answer();
    assert!(
        matches!(&answer, Some(ToNode::Refused { reason }) if reason.contains("revoked")),
        "{answer:?}"
    );
    for key in [&own, &thief] {
        assert!(matches!(boot.redeem(&room, key), ToNode::Refused { .. }));
    }
    assert!(counted(&room, "node-not-listed") && counted(&room, "token-spent"));
    let why = room.get::<Explanation>(&format!("/v1/explain/{MAC}"));
    let why = why.expect("an answer").text;
    assert!(why.contains("twice"), "{why}");
    room.post("/v1/wake", &format!(r#"{{"nodeset":"{MAC}"}}"#));
    assert!(room.dhclient(IPXE).is_some());
    Boot::fetch(&room).enroll(&room);
}

/// Everything that the head says at its most talkative, and what the secrets are.
#[test]
fn no_secret_reaches_a_log_or_a_file_that_others_may_read() {
    let room = Room::new("unknown = \"boot\"\ndefault_group = \"lab-a\"");
    let head = room.start_head(&["env", "RUST_LOG=trace"]);
    booting(&room);
    let boot = Boot::fetch(&room);
    let explained = room
        .curl(&[&format!("http://head/v1/explain/{MAC}")])
        .expect("an answer");
    let identity = boot.enroll(&room);
    let mut node = boot.connect(&room, Some(&identity));
    node.send(&hello());
    assert!(matches!(node.answer(), Some(ToNode::Welcome(_))));
    room.wait_state(NodeState::Up);
    // Another key in its name: refusals are logged too.
    boot.enroll_refused(&room);
    let events = room.curl(&["http://head/v1/events"]).expect("an answer");
    drop(head);
    let log = room.log();
    assert!(log.contains("TRACE"), "the log is not at its most talkative");
    let key = std::fs::read_to_string(room.path("state/ca/key.pem")).expect("the key");
    let secret = key.lines().nth(1).expect("base64");
    assert!(secret.len() > 40, "{key}");
    for (name, text) in [("log", &log), ("explain", &explained), ("events", &events)] {
        assert!(!text.contains(&boot.token), "the boot token is in the {name}");
        assert!(!text.contains(secret), "the authority's key is in the {name}");
    }
    // The control: these are looked for as they are, and the pin, no secret, is there.
    assert!(explained.contains(&boot.pin), "{explained}");
    for file in ["ca", "ca/key.pem", "ca/admin.pem", "tftp.journal", "cid.db"] {
        let path = room.path("state").join(file);
        let Ok(metadata) = std::fs::metadata(&path) else {
            continue;
        };
        let mode = metadata.permissions().mode() & 0o777;
        assert_eq!(mode & 0o077, 0, "{file} has mode {mode:o}");
    }
    assert!(room.path("state/ca/key.pem").exists());
}
