//! The real head in proxy and off mode on a real wire: who it says it is to a PC that has its address from somebody else,
//! and how it knows the PC again when files are asked for.

#[path = "wire/room.rs"]
#[allow(dead_code, reason = "shared with the tests of full mode")]
mod room;

use std::fs;
use std::process::Stdio;

use cid_bootserver::dhcp::packet::{MessageType, Packet, option};
use cid_protocol::api::{DhcpStatus, Explanation, NodeState, Status};
use room::{LIMIT, MAC, Room, artifact, run, wait_for};

/// The PC's address, from the campus.
const GIVEN: &str = "10.77.0.50";

fn discover() -> Vec<u8> {
    let text = include_str!("../../bootserver/tests/captures/ovmf-discover.hex");
    let digits = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default());
    let digits: Vec<u8> = digits
        .flat_map(str::bytes)
        .filter(u8::is_ascii_hexdigit)
        .collect();
    let byte = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).expect("ASCII"), 16).expect("hex");
    digits.chunks(2).map(byte).collect()
}

/// The captured DISCOVER as the iPXE ROM would send it.
fn ipxe_discover() -> Vec<u8> {
    let mut bytes = discover();
    let end = bytes.iter().rposition(|byte| *byte == 255).expect("an end");
    bytes.splice(end..end, *b"\x4d\x04iPXE\x5d\x02\x00\x00");
    // The last of two options 93 would be joined to the first one (RFC 3396): make the first one unknown.
    let arch = bytes
        .windows(4)
        .position(|four| four[..3] == [93, 2, 0])
        .expect("option 93");
    bytes[arch] = 254;
    bytes
}

fn with_address(room: &Room, address: &str) {
    run(room.at_pc("ip").args(["address", "add", address, "dev", "pc0"]));
}

fn fetch(room: &Room, from: &str, path: &str) -> Option<String> {
    let url = format!("http://10.77.0.1/{path}");
    let mut curl = room.at_pc("curl");
    let output = curl
        .args(["-sS", "-f", "--max-time", "10", "--interface", from, &url])
        .stderr(Stdio::null())
        .output()
        .expect("curl is installed");
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn adopt(room: &Room) {
    room.post(
        "/v1/adopt",
        r#"{"machines":["seen"],"group":"lab-a","name":"lab-a[01-30]"}"#,
    );
}

fn udp_ports(room: &Room) -> String {
    run(room.at_head("ss").args(["-lunH"]))
}

#[test]
fn beside_another_server_the_head_names_files_and_knows_its_pc_by_wire_and_by_path() {
    let room = Room::new("[dhcp]\nmode = \"proxy\"");
    let _head = room.start_head(&[]);
    assert_eq!(
        room.get::<Status>("/v1/status").expect("it answers").dhcp,
        DhcpStatus::Proxy
    );
    with_address(&room, &format!("{GIVEN}/24"));
    let ask = |bytes: &[u8]| {
        let answer = room
            .datagram("0.0.0.0:68", "255.255.255.255:67", bytes)
            .expect("an offer");
        Packet::decode(&answer).expect("DHCP")
    };
    // Nobody adopted it: its own disk, at once.
    let offer = ask(&discover());
    assert_eq!(
        (offer.message_type, offer.yiaddr.is_unspecified()),
        (MessageType::Offer, true)
    );
    assert!(offer.file.is_empty() && offer.option(option::VENDOR_SPECIFIC).is_some());
    room.wait_state(NodeState::Seen);
    assert_eq!(fetch(&room, GIVEN, "boot.ipxe"), None);
    adopt(&room);
    let offer = ask(&ipxe_discover());
    assert_eq!(offer.file, b"http://10.77.0.1/m/52-54-00-00-00-01/boot.ipxe");
    // By the neighbour table, whatever it says of itself.
    for path in ["boot.ipxe", "m/52-54-00-00-00-99/boot.ipxe"] {
        let script = fetch(&room, GIVEN, path).expect("a script");
        assert!(script.contains("BOOTIF=01-52-54-00-00-00-01"), "{script}");
        assert!(script.contains("cid.head=10.77.0.1:3101"), "{script}");
    }
    room.wait_state(NodeState::Booting);
    // Behind a router only the path tells who it is.
    with_address(&room, "10.99.0.5/32");
    run(room
        .at_head("ip")
        .args(["route", "add", "10.99.0.0/24", "via", GIVEN]));
    assert_eq!(fetch(&room, "10.99.0.5", "boot.ipxe"), None);
    assert!(
        fetch(&room, "10.99.0.5", "m/52-54-00-00-00-01/boot.ipxe")
            .expect("a script")
            .contains("kernel http")
    );
    let drops = room.get::<Status>("/v1/status").expect("it answers").drops;
    assert!(drops["file-unknown-client"] > 0, "{drops:?}");
}

#[test]
fn the_sites_server_is_listed_and_not_obeyed() {
    let room = Room::new("[dhcp]\nmode = \"proxy\"");
    let _campus = room.rival();
    let _head = room.start_head(&[]);
    let rival = wait_for("the list", LIMIT, || {
        room.get::<Status>("/v1/status")?.rivals.pop()
    });
    assert_eq!(
        (rival.server.as_str(), rival.role.as_str()),
        ("10.77.0.9", "dhcp")
    );
    assert!(rival.address.starts_with("10.77.0.") && rival.last_seen_unix >= rival.first_seen_unix);
    assert_eq!(
        room.get::<Status>("/v1/status").expect("it answers").dhcp,
        DhcpStatus::Proxy
    );
}

#[test]
fn port_4011_is_answered_from_port_4011_and_a_quirk_can_be_forced() {
    let quirk = format!("[dhcp]\nmode = \"proxy\"\n[machines.\"{MAC}\"]\nquirk = \"pxe10\"");
    let room = Room::new(&quirk);
    let _head = room.start_head(&[]);
    with_address(&room, &format!("{GIVEN}/24"));
    let mut request = discover();
    let kind = request
        .windows(3)
        .position(|three| three == [53, 1, 1])
        .expect("option 53");
    request[kind + 2] = MessageType::Request.to_byte();
    request[12..16].copy_from_slice(&[10, 77, 0, 50]);
    let answer = room
        .datagram("10.77.0.50:4011", "10.77.0.1:4011", &request)
        .expect("an ACK");
    let ack = Packet::decode(&answer).expect("DHCP");
    assert_eq!(
        (ack.message_type, ack.yiaddr.is_unspecified()),
        (MessageType::Ack, true)
    );
    let row = room.wait_state(NodeState::Seen);
    assert_eq!(row.address.as_deref(), Some(GIVEN));
    let explanation: Explanation = room.get(&format!("/v1/explain/{MAC}")).expect("an answer");
    assert!(
        explanation.text.contains("quirk pxe10 is in force"),
        "{}",
        explanation.text
    );
    assert!(udp_ports(&room).contains(":4011"));
}

#[test]
fn two_interfaces_are_served_each_in_its_own_name() {
    let room = Room::new("");
    let file = room.path("head.toml");
    let text = fs::read_to_string(&file).expect("head.toml");
    let text = text.replace("interface = \"head0\"\n", "interfaces = [\"head0\", \"head1\"]\n");
    fs::write(&file, text + "[dhcp]\nmode = \"proxy\"\n").expect("head.toml");
    run(room
        .at_head("ip")
        .args(["link", "add", "head1", "type", "veth", "peer", "name", "far1"]));
    run(room
        .at_head("ip")
        .args(["address", "add", "10.78.0.1/24", "dev", "head1"]));
    run(room.at_head("ip").args(["link", "set", "head1", "up"]));
    let _head = room.start_head(&[]);
    with_address(&room, &format!("{GIVEN}/24"));
    room.datagram("0.0.0.0:68", "255.255.255.255:67", &ipxe_discover())
        .expect("an offer");
    room.wait_state(NodeState::Seen);
    adopt(&room);
    run(room
        .at_pc("ip")
        .args(["route", "add", "10.78.0.0/24", "via", "10.77.0.1"]));
    let mut curl = room.at_pc("curl");
    let script = run(curl.args(["-sS", "-f", "http://10.78.0.1/boot.ipxe"]));
    assert!(
        script.contains("http://10.78.0.1/images") && script.contains("cid.head=10.78.0.1:3101"),
        "{script}"
    );
}

#[test]
fn off_has_no_dhcp_socket_and_still_decides_file_by_file() {
    let room = Room::new("[dhcp]\nmode = \"off\"");
    let _head = room.start_head(&[]);
    let ports = udp_ports(&room);
    assert!(
        !ports.contains(":67 ") && !ports.contains(":68 ") && !ports.contains(":4011 "),
        "{ports}"
    );
    assert!(ports.contains(":69 "), "{ports}");
    with_address(&room, &format!("{GIVEN}/24"));
    assert_eq!(
        room.datagram("0.0.0.0:68", "255.255.255.255:67", &discover()),
        None
    );
    // It was never heard by DHCP: its first request lists it. Its own iPXE is refused, and goes on to the disk.
    for first in ["boot.ipxe", "undionly.kpxe", "shimx64.efi"] {
        assert_eq!(fetch(&room, GIVEN, first), None, "{first}");
    }
    assert_eq!(room.wait_state(NodeState::Seen).mac, MAC);
    adopt(&room);
    // Each first file is a boot; the third one after two without a join is refused.
    for _ in 0..2 {
        assert!(boots(fetch(&room, GIVEN, "boot.ipxe")));
    }
    assert_eq!(fetch(&room, GIVEN, "boot.ipxe"), None);
}

fn boots(script: Option<String>) -> bool {
    script
        .expect("a script")
        .contains("kernel http://10.77.0.1/images/minimal")
}

/// iPXE of ours runs on a plain ROM's PC when somebody releases that: Windows must not follow in this boot.
#[test]
fn who_runs_a_loader_of_ours_is_restarted_and_not_refused() {
    let room = Room::new("[dhcp]\nmode = \"off\"");
    let _head = room.start_head(&[]);
    with_address(&room, &format!("{GIVEN}/24"));
    assert_eq!(fetch(&room, GIVEN, "undionly.kpxe"), None);
    room.wait_state(NodeState::Seen);
    adopt(&room);
    assert_eq!(fetch(&room, GIVEN, "undionly.kpxe").as_deref(), Some("iPXE"));
    room.post("/v1/release", r#"{"nodeset":"lab-a01"}"#);
    let script = fetch(&room, GIVEN, "boot.ipxe").expect("a script");
    assert!(
        script.contains("goes to its own disk") && script.ends_with("reboot\n"),
        "{script}"
    );
    // That restart's first file.
    assert_eq!(fetch(&room, GIVEN, "undionly.kpxe"), None);
}

/// Puts a further file into the image.
fn add_to_image(room: &Room, name: &str, text: &str) {
    let image = room.path("images/minimal");
    let file = image.join(name);
    fs::create_dir_all(file.parent().expect("a folder")).expect("a folder");
    fs::write(file, text).expect("a file");
    let path = image.join("manifest.json");
    let before = fs::read(&path).expect("a manifest");
    let mut manifest: serde_json::Value = serde_json::from_slice(&before).expect("a manifest");
    manifest["artifacts"][name] = artifact(text);
    fs::write(path, manifest.to_string()).expect("a manifest");
}

#[test]
fn a_chain_of_loaders_that_cannot_boot_keeps_the_head_from_starting() {
    let room = Room::new("[dhcp]\nmode = \"off\"");
    add_to_image(&room, "efi/shimx64.efi", "shim");
    add_to_image(&room, "efi/grubx64.efi", "GRUB");
    let output = room.head_command(&[]).output().expect("the head runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let last = said.lines().last().unwrap_or_default();
    assert!(
        last.contains("efi/mmx64.efi is missing; build the image again"),
        "{said}"
    );
    // The control: with its last link it starts.
    add_to_image(&room, "efi/mmx64.efi", "MokManager");
    room.start_head(&[]);
}

/// Each product that can be had here reads the lines with its own syntax check.
#[test]
fn the_lines_for_other_servers_pass_their_own_checks() {
    let room = Room::new("[dhcp]\nmode = \"off\"");
    let snippet = |product: &str| run(room.head_command(&[]).args(["dhcp-snippet", product]));
    let check = |name: &str, text: String, command: &[&str]| {
        assert!(text.contains("http://10.77.0.1/shimx64.efi"), "{text}");
        let file = room.path(name);
        fs::write(&file, text).expect("a file");
        let (program, arguments) = command.split_first().expect("a program");
        let output = room
            .at_head(program)
            .args(arguments)
            .arg(&file)
            .output()
            .expect("it is installed");
        let said =
            String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{program}: {said}");
        assert!(!said.contains("rror"), "{program}: {said}");
    };
    let subnet = "subnet 10.77.0.0 netmask 255.255.255.0 { range 10.77.0.50 10.77.0.60; }\n";
    check("dhcpd.conf", snippet("isc") + subnet, &["dhcpd", "-t", "-cf"]);
    let kea = format!(
        "{{ \"Dhcp4\": {{ \"interfaces-config\": {{ \"interfaces\": [] }}, \
         \"lease-database\": {{ \"type\": \"memfile\", \"persist\": false }}, \
         \"subnet4\": [ {{ \"subnet\": \"10.77.0.0/24\" }} ],\n{} }} }}\n",
        snippet("kea")
    );
    check("kea.conf", kea, &["kea-dhcp4", "-t"]);
    check("dnsmasq.conf", snippet("dnsmasq"), &["dnsmasq", "--test", "-C"]);
    assert!(snippet("windows").contains("$head = '10.77.0.1'"));
}
