//! What `cidctl wake` runs: the administrator's program, with the PC in its environment and without the head's power.

use std::io::Write;

use cid_protocol::api::{EventList, NodeState};

use super::{LIMIT, MAC, Room, run, wait_for};

/// The service manager gives the head such capabilities.
const AS_THE_UNIT_DOES: [&str; 3] = ["setpriv", "--inh-caps=+net_raw", "--ambient-caps=+net_raw"];

#[test]
fn a_wake_command_knows_the_pc_and_inherits_no_capability() {
    let room = Room::new("");
    let script = room.path("power-on");
    let text = "#!/bin/sh\necho \"$* $CID_MAC $(grep CapAmb /proc/self/status)\" >&2\nexit 7\n";
    std::fs::write(&script, text).expect("a script");
    run(room.at_head("chmod").arg("755").arg(&script));
    let mut configuration = std::fs::File::options()
        .append(true)
        .open(room.path("head.toml"))
        .expect("head.toml");
    writeln!(configuration, "wake_command = \"{} {{name}}\"", script.display()).expect("another line");
    let _head = room.start_head(&AS_THE_UNIT_DOES);
    room.dhclient("").expect("an address");
    room.wait_state(NodeState::Seen);
    room.post(
        "/v1/adopt",
        r#"{"machines":["seen"],"group":"lab-a","name":"lab-a01"}"#,
    );
    room.post("/v1/wake", r#"{"nodeset":"lab-a01"}"#);
    let told = wait_for("the end of the command", LIMIT, || {
        let list = room.get::<EventList>("/v1/events")?;
        list.events.into_iter().find(|event| event.kind == "wake-failed")
    });
    let none = "CapAmb: 0000000000000000";
    assert_eq!(
        told.text,
        format!("its wake command ended with status 7: lab-a01 {MAC} {none}")
    );
    // The control: without the head in between it has the capability.
    let output = room
        .at_head(AS_THE_UNIT_DOES[0])
        .args(&AS_THE_UNIT_DOES[1..])
        .arg(&script)
        .output()
        .expect("util-linux is installed");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("CapAmb") && !said.contains("0000000000000000"),
        "{said}"
    );
}
