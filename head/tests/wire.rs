//! The real head on a real wire with real clients: ISC's dhclient, dnsmasq as a rival, curl, socat. Each test has its
//! own network namespaces.

#[path = "wire/power.rs"]
mod power;
#[path = "wire/room.rs"]
mod room;
#[path = "wire/tls.rs"]
mod tls;
#[path = "wire/trace.rs"]
mod trace;
#[path = "wire/trust.rs"]
mod trust;

use std::process::Stdio;
use std::time::Duration;

use cid_protocol::api::{DhcpStatus, Explanation, HoursList, NodeState, Status};
use cid_protocol::node::{FromNode, Leaving, ToNode};

use room::{LIMIT, MAC, Process, Room, run, wait_for};
use tls::Boot;

/// What an iPXE ROM says of itself.
const IPXE: &str = "option client-arch code 93 = unsigned integer 16;\nsend client-arch 0;\n\
    send vendor-class-identifier \"PXEClient:Arch:00000:UNDI:002001\";\nsend user-class \"iPXE\";\n";

#[test]
fn an_address_outlives_kill_9_and_every_machine_is_listed_again() {
    let room = Room::new("");
    let mut head = room.start_head(&[]);
    let address = room.dhclient("").expect("an address");
    let row = room.wait_state(NodeState::Seen);
    assert_eq!(
        (row.mac.as_str(), row.address.as_deref()),
        (MAC, Some(address.as_str()))
    );
    head.kill();
    let _head = room.start_head(&[]);
    assert_eq!(room.nodes()[0].address.as_deref(), Some(address.as_str()));
    // Firmware, Linux and Windows of one PC share it.
    assert_eq!(room.dhclient(IPXE), Some(address.clone()));
    assert_eq!(
        room.dhclient("send dhcp-client-identifier \"windows\";\n"),
        Some(address)
    );
}

#[test]
fn a_pc_is_adopted_boots_fails_twice_goes_home_and_is_woken() {
    let room = Room::new("");
    let mut head = room.start_head(&[]);
    let address = room.dhclient(IPXE).expect("an address");
    let row = room.wait_state(NodeState::Seen);
    wait_for("the decision", LIMIT, || {
        room.nodes()
            .pop()?
            .last_decision
            .filter(|text| text.contains("adopt"))
    });
    assert_eq!(row.door.as_deref(), Some("pxe-bios"));
    run(room
        .at_pc("ip")
        .args(["address", "add", &format!("{address}/24"), "dev", "pc0"]));
    let fetch = |path: &str| {
        run(room
            .at_pc("curl")
            .args(["-sS", "-f", &format!("http://10.77.0.1/{path}")]))
    };
    // An iPXE of the PC's own goes on to the disk when it is refused.
    let is_refused = |path: &str| {
        let mut curl = room.at_pc("curl");
        curl.args(["-sS", "-o", "/dev/null", "-w", "%{http_code}"]);
        run(curl.arg(format!("http://10.77.0.1/{path}"))) == "404"
    };
    assert!(is_refused("boot.ipxe"));

    let list = room.post(
        "/v1/adopt",
        r#"{"machines":["seen"],"group":"lab-a","name":"lab-a[01-30]"}"#,
    );
    assert_eq!(
        (list.nodes[0].name.as_str(), list.nodes[0].state),
        ("lab-a01", NodeState::Known)
    );
    for boot in 1..=2 {
        assert_eq!(room.dhclient(IPXE).as_deref(), Some(address.as_str()));
        let script = fetch("boot.ipxe");
        assert!(
            script.contains("kernel http://10.77.0.1/images/minimal@1/vmlinuz"),
            "boot {boot}: {script}"
        );
        for word in [
            "quiet panic=10 oops=panic",
            "cid.head=10.77.0.1:3101",
            "BOOTIF=01-52-54-00-00-00-01",
        ] {
            assert!(script.contains(word), "boot {boot}: no {word} in {script}");
        }
        // Fetched again in the same boot it counts once; and the count outlives the head.
        fetch("boot.ipxe");
        room.wait_state(NodeState::Booting);
        assert_eq!(fetch("images/minimal@1/vmlinuz"), "a kernel");
        assert_eq!(fetch("images/minimal/vmlinuz"), "a kernel");
        head.kill();
        head = room.start_head(&[]);
    }
    assert_eq!(room.dhclient(IPXE).as_deref(), Some(address.as_str()));
    let row = room.wait_state(NodeState::Home);
    assert!(row.reason.contains("never joined"), "{}", row.reason);
    assert!(is_refused("boot.ipxe"));
    let explain = || {
        room.get::<Explanation>(&format!("/v1/explain/{MAC}"))
            .expect("an answer")
    };
    assert_eq!(explain().reason, "two-failed-boots");
    room.post("/v1/wake", r#"{"nodeset":"lab-a01"}"#);
    let explanation = explain();
    assert_eq!(
        (explanation.action.as_str(), explanation.reason.as_str()),
        ("boot", "in-group")
    );
    assert!(
        explanation
            .boot
            .expect("a boot")
            .cmdline
            .contains("cid.image=minimal")
    );
}

/// What the PC's node software says first.
fn hello() -> FromNode {
    room::hello(MAC, "one", None)
}

#[test]
fn a_node_joins_over_tcp_stays_up_across_kill_9_and_is_released() {
    let room = Room::new("unknown = \"boot\"\ndefault_group = \"lab-a\"");
    let mut head = room.start_head(&[]);
    let address = room.dhclient(IPXE).expect("an address");
    run(room
        .at_pc("ip")
        .args(["address", "add", &format!("{address}/24"), "dev", "pc0"]));
    let boot = Boot::fetch(&room);
    let identity = boot.enroll(&room);
    let dial = || {
        let mut node = boot.connect(&room, Some(&identity));
        node.send(&hello());
        assert!(matches!(node.answer(), Some(ToNode::Welcome(_))));
        node
    };
    let _first = dial();
    assert_eq!(room.wait_state(NodeState::Up).cpus, 2);
    head.kill();
    let _head = room.start_head(&[]);
    assert_eq!(
        room.nodes()[0].state,
        NodeState::Up,
        "no flap while it has not come back"
    );
    let mut node = dial();
    let since = room.wait_state(NodeState::Up).since_unix;
    room.post("/v1/release", r#"{"nodeset":"*"}"#);
    assert!(matches!(
        node.answer(),
        Some(ToNode::Release {
            patience_secs: 60,
            ..
        })
    ));
    let draining = room.wait_state(NodeState::Draining);
    assert!(draining.since_unix >= since && draining.deadline_unix >= Some(since + 60));
    let reason = "released".to_owned();
    let leaving = Leaving::default();
    let steps = Vec::new();
    let goes = FromNode::GoingHome {
        reason,
        leaving,
        steps,
    };
    node.send(&goes);
    room.wait_state(NodeState::GoingHome);
    assert_eq!(room.dhclient(IPXE), Some(address));
    assert!(room.wait_state(NodeState::Home).reason.contains("released"));
    // That boot is over, and so is its certificate.
    let refused = boot.connect(&room, Some(&identity)).answer();
    assert!(matches!(refused, Some(ToNode::Refused { .. })), "{refused:?}");
}

#[test]
fn an_exception_from_the_hours_outlives_kill_9_until_it_is_cleared() {
    let room = Room::new("");
    let change = |body: &str| {
        let header = "Content-Type: application/json";
        let answer = room.curl(&["-H", header, "-d", body, "http://head/v1/hours"]);
        assert!(answer.is_some(), "{body}");
    };
    let is_open = || {
        let list = room.get::<HoursList>("/v1/hours").expect("an answer");
        list.groups.first().map(|group| group.open)
    };
    let mut head = room.start_head(&[]);
    assert_eq!(is_open(), Some(true), "its hours are `always`");
    change(r#"{"group":"lab-a","change":"closed","until":"24:00"}"#);
    head.kill();
    let mut head = room.start_head(&[]);
    assert_eq!(is_open(), Some(false));
    change(r#"{"group":"lab-a","change":"clear"}"#);
    head.kill();
    let _head = room.start_head(&[]);
    assert_eq!(is_open(), Some(true));
}

#[test]
fn a_rival_keeps_the_head_from_starting_and_is_named() {
    let room = Room::new("");
    let _rival = room.rival();
    let output = room.head_command(&[]).output().expect("the head runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let last = said.lines().last().unwrap_or_default();
    assert!(
        last.contains("another DHCP server answers on head0: 10.77.0.9"),
        "{said}"
    );
}

#[test]
fn a_rival_that_appears_silences_the_head_which_stays_up_and_says_so() {
    let room = Room::new("");
    let _head = room.start_head(&[]);
    assert!(room.dhclient("").is_some());
    let _rival = room.rival();
    // It is found by the next probe, at most half a minute away.
    let status = wait_for("suspended", Duration::from_secs(60), || {
        room.get::<Status>("/v1/status")
            .filter(|status| status.dhcp != DhcpStatus::Serving)
    });
    assert_eq!(
        status.dhcp,
        DhcpStatus::Suspended {
            rival: "10.77.0.9".into()
        }
    );
    assert_eq!(room.dhclient(IPXE), None);
    let drops = room.get::<Status>("/v1/status").expect("it stays up").drops;
    assert!(drops["dhcp-suspended"] > 0, "{drops:?}");
}

#[test]
fn a_second_head_and_a_missing_interface_are_refused_in_one_line() {
    let room = Room::new("");
    let _head = room.start_head(&[]);
    let refuse = |expected: &str| {
        let output = room.head_command(&[]).output().expect("the head runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            said.lines().last().unwrap_or_default().contains(expected),
            "{said}"
        );
    };
    refuse("another cidhead runs on");
    run(room.at_head("ip").args(["address", "flush", "dev", "head0"]));
    refuse("interface `head0` has no IPv4 address; give it one");
    run(room.at_head("ip").args(["link", "set", "head0", "down"]));
    refuse("`head0` is down; `ip link set head0 up`");
    run(room.at_head("ip").args(["link", "delete", "head0"]));
    refuse("there is no interface `head0` here (there are: lo)");
}

#[test]
fn sigterm_is_a_clean_stop() {
    let room = Room::new("");
    let mut head = room.start_head(&[]);
    let pid = nix::unistd::Pid::from_raw(i32::try_from(head.0.id()).expect("a process id"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("our child");
    let status = wait_for("the end", LIMIT, || head.0.try_wait().expect("our child"));
    assert!(status.success(), "{status}: {}", room.log());
    assert!(!room.path("head.sock").exists());
}

#[test]
fn no_acknowledgement_precedes_its_commit() {
    let room = Room::new("");
    let file = room.path("strace");
    let file = file.to_str().expect("plain path");
    let calls = "trace=sendto,sendmsg,fsync,fdatasync,pwrite64";
    // -D: strace is the child, so that the head is ours to end. A page of the log is 4096 bytes.
    let head = room.start_head(&[
        "strace", "-D", "-f", "-yy", "-xx", "-s", "4200", "-o", file, "-e", calls,
    ]);
    for number in 1..=6 {
        run(room.at_pc("ip").args([
            "link",
            "set",
            "pc0",
            "address",
            &format!("52:54:00:00:00:{number:02x}"),
        ]));
        room.dhclient(IPXE).expect("an address");
    }
    drop(head);
    // strace writes its last lines when the head is gone.
    wait_for("the end of the trace", LIMIT, || {
        std::fs::read_to_string(file)
            .ok()
            .filter(|text| text.contains("+++ killed by SIGKILL +++"))
    });
    let text = std::fs::read_to_string(file).expect("a trace");
    assert_eq!(trace::check(&text), Ok(6));
}

/// System calls that a DHCP exchange passes through, and which of their occurrences the head is killed at: as it
/// receives, as it writes, as it synchronises (before and between), as it replies (offer and acknowledgement).
const MOMENTS: [(&str, u32); 9] = [
    ("recvfrom", 1),
    ("recvfrom", 2),
    ("pwrite64", 1),
    ("pwrite64", 3),
    ("fsync,fdatasync", 1),
    ("fsync,fdatasync", 2),
    ("fsync,fdatasync", 3),
    ("sendto", 1),
    ("sendto", 2),
];

/// Kills the head when one of its threads enters `call` for the `number`th time from now.
fn kill_at(room: &Room, head: &Process, call: &str, number: u32) -> Process {
    let pid = head.0.id();
    let inject = format!("inject={call}:signal=SIGKILL:when={number}");
    let mut strace = std::process::Command::new("strace");
    strace
        .args([
            "-f",
            "-q",
            "-p",
            &pid.to_string(),
            "-e",
            &format!("trace={call}"),
            "-e",
            &inject,
            "-o",
        ])
        .arg(room.path("killer"))
        .stdin(Stdio::null());
    let killer = Process(strace.spawn().expect("strace is installed"));
    wait_for("every thread is traced", LIMIT, || {
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?;
        let traced = |folder: std::path::PathBuf| {
            std::fs::read_to_string(folder.join("status")).is_ok_and(|text| !text.contains("TracerPid:\t0\n"))
        };
        threads
            .flatten()
            .all(|thread| traced(thread.path()))
            .then_some(())
    });
    killer
}

#[test]
fn killed_at_the_very_call_it_forgets_nothing_and_gives_no_address_twice() {
    let room = Room::new("");
    let mut promised = std::collections::BTreeMap::new();
    for (index, (call, number)) in MOMENTS.into_iter().enumerate() {
        let mut head = room.start_head(&[]);
        let listed = room.nodes();
        for (mac, address) in &promised {
            let row = listed
                .iter()
                .find(|row| row.mac == *mac)
                .expect("nobody is forgotten");
            assert_eq!(
                row.address.as_ref(),
                Some(address),
                "{mac} before {call} {number}"
            );
        }
        let mac = format!("52:54:00:00:01:{index:02x}");
        run(room.at_pc("ip").args(["link", "set", "pc0", "address", &mac]));
        let killer = kill_at(&room, &head, call, number);
        let before = room.dhclient("timeout 5;\n");
        wait_for(&format!("death at {call} {number}"), LIMIT, || {
            head.0.try_wait().expect("our child")
        });
        drop(killer);
        let _head = room.start_head(&[]);
        let after = room
            .dhclient(IPXE)
            .expect("an address from the head that came back");
        if let Some(before) = before {
            assert_eq!(
                before, after,
                "{call} {number}: an acknowledged address was forgotten"
            );
        }
        assert!(
            !promised.values().any(|other| *other == after),
            "{after} was given twice"
        );
        promised.insert(mac, after);
    }
}
