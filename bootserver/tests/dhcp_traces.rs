//! The DHCP server, told as packet traces: at this time we get, then we send. No socket, no clock.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::net::{Ipv4Addr, SocketAddrV4};

use cid_bootserver::dhcp::leases::{OFFER_SECS, QUARANTINE_SECS};
use cid_bootserver::dhcp::packet::{MessageType, Packet, option};
use cid_bootserver::dhcp::server::{Drop, Observation, Output, Server};
use cid_bootserver::machine::{Client, MacAddress, Platform};
use cid_bootserver::policy::{Facts, Standing};

use common::{
    Answer, HEAD, IPXE_DISCOVER, Message, NOW, OVMF_DISCOVER, OVMF_REQUEST, adopted, answer, decide, drain,
    mac, settings, unhex,
};

fn server() -> Server {
    Server::new(settings(), &[])
}

/// Feeds one message and returns the answer, if one leaves.
fn exchange(server: &mut Server, now: u64, bytes: &[u8], standing: &Standing) -> Option<Answer> {
    // The reason of a drop is looked at where a test is about it.
    let _ = server.handle_packet(now, bytes, &decide(standing.clone()));
    answer(&drain(server))
}

/// DISCOVER, OFFER, REQUEST, ACK; returns the ACK.
fn join(
    server: &mut Server,
    now: u64,
    like: impl Fn(Message) -> Message,
    who: MacAddress,
    standing: &Standing,
) -> Answer {
    let discover = like(Message::new(MessageType::Discover, who));
    let offer = exchange(server, now, &discover.bytes(), standing).expect("an offer");
    assert_eq!(offer.packet.message_type, MessageType::Offer);
    let request = like(Message::new(MessageType::Request, who))
        .requested(offer.packet.yiaddr)
        .server(HEAD);
    let ack = exchange(server, now + 4, &request.bytes(), standing).expect("an ACK");
    assert_eq!(ack.packet.message_type, MessageType::Ack);
    assert_eq!(ack.packet.yiaddr, offer.packet.yiaddr);
    ack
}

fn broadcast() -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::BROADCAST, 68)
}

#[test]
fn ovmf_that_nobody_adopted_gets_its_lease_and_the_local_boot_menu() {
    let mut server = server();
    let offer = exchange(&mut server, NOW, &unhex(OVMF_DISCOVER), &Standing::default()).unwrap();
    assert_eq!(offer.packet.message_type, MessageType::Offer);
    assert_eq!(offer.to, broadcast());
    // The bytes that sent OVMF to its next boot option 4.1 s after PXE began.
    let menu = b"\x06\x01\x03\x09\x0d\x00\x00\x0aLocal boot\x0a\x02\x00L\xff";
    assert_eq!(offer.packet.option(option::VENDOR_SPECIFIC), Some(&menu[..]));
    assert_eq!(offer.packet.option(option::VENDOR_CLASS), Some(&b"PXEClient"[..]));
    assert_eq!(offer.file(), "");
    assert_eq!(offer.siaddr(), HEAD);
}

#[test]
fn ovmf_that_is_adopted_is_led_to_the_shim() {
    let mut server = server();
    let offer = exchange(&mut server, NOW, &unhex(OVMF_DISCOVER), &adopted()).unwrap();
    let discover = Packet::decode(&unhex(OVMF_DISCOVER)).unwrap();
    assert_eq!(
        (offer.file().as_str(), offer.sname().as_str()),
        ("shimx64.efi", "10.77.0.1")
    );
    assert_eq!(offer.siaddr(), HEAD);
    assert_eq!(offer.packet.xid, discover.xid);
    // Echoed as it came; no menu, no file size, nothing that would make EDK2 ask port 4011.
    assert_eq!(
        offer.packet.option(option::MACHINE_UUID),
        discover.option(option::MACHINE_UUID)
    );
    assert_eq!(offer.packet.option(option::VENDOR_SPECIFIC), None);
    assert_eq!(offer.packet.option(13), None);

    // The capture asks for what another server offered it: 10.77.0.156, which is free here as well.
    let bytes = unhex(OVMF_REQUEST);
    server.handle_packet(NOW + 4, &bytes, &decide(adopted())).unwrap();
    let outputs = drain(&mut server);
    let ack = answer(&outputs).unwrap();
    assert_eq!(
        (ack.packet.message_type, ack.file().as_str()),
        (MessageType::Ack, "shimx64.efi")
    );
    let observed: Vec<&Observation> = outputs
        .iter()
        .filter_map(|output| match output {
            Output::Observe(who, observation) => {
                assert_eq!(*who, mac(1));
                Some(observation)
            }
            _ => None,
        })
        .collect();
    assert!(
        observed
            .iter()
            .any(|seen| matches!(seen, Observation::Leased(a) if *a == ack.packet.yiaddr))
    );
    assert!(
        observed
            .iter()
            .any(|seen| matches!(seen, Observation::Decided(d) if d.reason.name() == "in-group"))
    );
}

#[test]
fn the_ipxe_rom_is_sent_to_its_script_and_told_not_to_wait_for_a_proxy() {
    let mut server = server();
    let bytes = unhex(IPXE_DISCOVER);
    let facts = cid_bootserver::dhcp::classify::classify(&Packet::decode(&bytes).unwrap());
    assert_eq!((facts.client, facts.platform), (Client::Ipxe, Platform::Bios));
    let offer = exchange(&mut server, NOW, &bytes, &adopted()).unwrap();
    assert_eq!(offer.file(), "http://10.77.0.1/boot.ipxe");
    assert_eq!(offer.packet.option(option::IPXE), Some(&[176, 1, 1][..]));
    assert_eq!(
        offer.packet.option(option::VENDOR_SPECIFIC),
        None,
        "iPXE would show a menu instead of the script"
    );
    let offer = exchange(&mut server, NOW, &bytes, &Standing::default()).unwrap();
    assert_eq!(offer.file(), "");
    assert!(offer.packet.option(option::VENDOR_SPECIFIC).is_some());
}

/// No vendor's ROM is packaged: this exchange is made up from RFC 4578 and the PXE specification.
#[test]
fn a_plain_rom_is_led_to_ipxe_and_ipxe_to_its_script() {
    let mut server = server();
    let ack = join(&mut server, NOW, |message| message.pxe(0), mac(1), &adopted());
    assert_eq!((ack.file().as_str(), ack.siaddr()), ("undionly.kpxe", HEAD));
    assert_eq!(ack.packet.option(option::VENDOR_CLASS), None);
    assert_eq!(ack.packet.option(option::VENDOR_SPECIFIC), None);
    let ack = join(&mut server, NOW + 9, Message::ipxe, mac(1), &adopted());
    assert_eq!(ack.file(), "http://10.77.0.1/boot.ipxe");
    let ack = join(
        &mut server,
        NOW + 20,
        |message| message.pxe(0),
        mac(2),
        &Standing::default(),
    );
    assert_eq!(ack.file(), "");
    assert!(ack.packet.option(option::VENDOR_SPECIFIC).is_some());
}

#[test]
fn firmware_linux_and_windows_of_one_pc_share_one_address() {
    let mut server = server();
    let windows = |message: Message| {
        message
            .option(61, b"\x01RT\0\0\0\x01")
            .option(option::VENDOR_CLASS, b"MSFT 5.0")
            .option(12, b"PC-17")
    };
    let linux = |message: Message| message.option(61, &[0xff, 0, 0, 0, 1, 0, 2, 0, 0, 0xab, 0x11]);
    let first = join(&mut server, NOW, |message| message.pxe(7), mac(1), &adopted())
        .packet
        .yiaddr;
    assert_eq!(
        join(&mut server, NOW + 30, linux, mac(1), &adopted())
            .packet
            .yiaddr,
        first
    );
    assert_eq!(
        join(&mut server, NOW + 900, windows, mac(1), &adopted())
            .packet
            .yiaddr,
        first
    );
    // And it does so after the lease has long run out.
    assert_eq!(
        join(&mut server, NOW + 90_000, windows, mac(1), &adopted())
            .packet
            .yiaddr,
        first
    );
    assert_eq!(server.leases().sizes().0, 1);
}

#[test]
fn an_operating_system_hears_nothing_about_booting() {
    let ack = join(&mut server(), NOW, |message| message, mac(1), &adopted());
    assert_eq!((ack.siaddr(), ack.file()), (Ipv4Addr::UNSPECIFIED, String::new()));
    for code in [
        option::VENDOR_CLASS,
        option::VENDOR_SPECIFIC,
        option::BOOT_FILE_NAME,
        option::IPXE,
    ] {
        assert_eq!(ack.packet.option(code), None, "option {code}");
    }
    assert_eq!(
        ack.packet.option(option::LEASE_TIME),
        Some(&3_600_u32.to_be_bytes()[..])
    );
    assert_eq!(
        ack.packet.option(option::SUBNET_MASK),
        Some(&[255, 255, 255, 0][..])
    );
}

#[test]
fn http_boot_gets_its_url_and_an_unknown_architecture_is_named() {
    let http = |message: Message| {
        message
            .option(option::VENDOR_CLASS, b"HTTPClient:Arch:00016:UNDI:003000")
            .option(option::ARCHITECTURE, &[0, 16])
    };
    let ack = join(&mut server(), NOW, http, mac(1), &adopted());
    // EDK2 reads option 67, shim and GRUB the header field; GRUB wants the zero byte in option 60.
    assert_eq!(ack.file(), "http://10.77.0.1/shimx64.efi");
    assert_eq!(
        ack.packet.option(option::BOOT_FILE_NAME),
        Some(&b"http://10.77.0.1/shimx64.efi\0"[..])
    );
    assert_eq!(
        ack.packet.option(option::VENDOR_CLASS),
        Some(&b"HTTPClient\0"[..])
    );
    let ack = join(&mut server(), NOW, http, mac(1), &Standing::default());
    assert_eq!(ack.file(), "");
    assert_eq!(ack.packet.option(option::VENDOR_SPECIFIC), None);

    let arm = Message::new(MessageType::Discover, mac(2)).pxe(11);
    let facts = cid_bootserver::dhcp::classify::classify(&Packet::decode(&arm.bytes()).unwrap());
    let decision = decide(adopted())(&facts);
    assert_eq!(decision.reason.name(), "unsupported-architecture");
    assert!(
        decision.reason.to_string().contains("uefi-arm64"),
        "{}",
        decision.reason
    );
}

#[test]
fn the_four_states_of_rfc_2131_4_3_2() {
    let mut server = server();
    let address = join(&mut server, NOW, |message| message, mac(1), &adopted())
        .packet
        .yiaddr;
    let request = |from: Ipv4Addr| Message::new(MessageType::Request, mac(1)).ciaddr(from);
    // INIT-REBOOT: requested address, no server identifier, no ciaddr.
    let rebooted = Message::new(MessageType::Request, mac(1)).requested(address);
    let ack = exchange(&mut server, NOW + 10, &rebooted.bytes(), &adopted()).unwrap();
    assert_eq!(
        (ack.packet.message_type, ack.packet.yiaddr, ack.to),
        (MessageType::Ack, address, broadcast())
    );
    // RENEWING and REBINDING look the same but for the way they travel: the answer goes to ciaddr.
    let ack = exchange(&mut server, NOW + 1_800, &request(address).bytes(), &adopted()).unwrap();
    assert_eq!(
        (ack.packet.message_type, ack.to),
        (MessageType::Ack, SocketAddrV4::new(address, 68))
    );
    // Another machine's address, and one of another subnet: NAK, by broadcast, with no address in it.
    for wrong in [Ipv4Addr::new(192, 168, 1, 7), HEAD, Ipv4Addr::new(10, 77, 0, 2)] {
        let wrong = Message::new(MessageType::Request, mac(2)).requested(wrong);
        let nak = exchange(&mut server, NOW + 20, &wrong.bytes(), &adopted()).unwrap();
        assert_eq!((nak.packet.message_type, nak.to), (MessageType::Nak, broadcast()));
        assert_eq!(nak.packet.yiaddr, Ipv4Addr::UNSPECIFIED);
        assert_eq!(nak.packet.option(option::LEASE_TIME), None, "RFC 2131 table 3");
    }
    let thief = Message::new(MessageType::Request, mac(2)).requested(address);
    let nak = exchange(&mut server, NOW + 21, &thief.bytes(), &adopted()).unwrap();
    assert_eq!(nak.packet.message_type, MessageType::Nak);
}

#[test]
fn a_client_that_chose_another_server_is_left_alone_and_shows_a_rival() {
    let mut server = server();
    let rival = Ipv4Addr::new(10, 77, 0, 9);
    let discover = Message::new(MessageType::Discover, mac(1)).bytes();
    exchange(&mut server, NOW, &discover, &adopted()).unwrap();
    let chosen = Message::new(MessageType::Request, mac(1))
        .requested(Ipv4Addr::new(10, 77, 0, 33))
        .server(rival);
    let result = server.handle_packet(NOW + 1, &chosen.bytes(), &decide(adopted()));
    assert_eq!(result, Err(Drop::OtherServer));
    assert_eq!(drain(&mut server), [Output::RivalNamed(rival)]);
    assert_eq!(server.leases().sizes(), (0, 0, 0), "the offer is forgotten");
    // Behind a relay another server may be right: a relay forwards to several.
    let relayed = chosen.giaddr(Ipv4Addr::new(10, 77, 0, 254));
    let _ = server.handle_packet(NOW + 1, &relayed.bytes(), &decide(adopted()));
    assert_eq!(drain(&mut server), []);
}

#[test]
fn a_relay_gets_the_answer_and_its_own_option_back_last() {
    let mut server = server();
    let relay = Ipv4Addr::new(10, 77, 0, 254);
    let option_82 = b"\x01\x04\x00\x01\x02\x03\x97\x01\xff";
    let discover = Message::new(MessageType::Discover, mac(1))
        .pxe(7)
        .option(option::RELAY_AGENT, option_82)
        .giaddr(relay);
    let offer = exchange(&mut server, NOW, &discover.bytes(), &adopted()).unwrap();
    assert_eq!(offer.to, SocketAddrV4::new(relay, 67));
    assert_eq!(offer.packet.giaddr, relay);
    assert_eq!(offer.packet.option(option::RELAY_AGENT), Some(&option_82[..]));
    let at = offer
        .bytes
        .windows(option_82.len())
        .position(|window| window == option_82)
        .unwrap();
    assert_eq!(
        offer.bytes[at + option_82.len()],
        255,
        "RFC 3046 2.1: option 82 stands last"
    );
    // A relay of a subnet that we have no addresses for.
    let foreign = Message::new(MessageType::Discover, mac(2)).giaddr(Ipv4Addr::new(10, 78, 0, 1));
    assert_eq!(
        server.handle_packet(NOW, &foreign.bytes(), &decide(adopted())),
        Err(Drop::ForeignRelay)
    );
}

#[test]
fn a_declined_address_rests_and_a_stranger_cannot_decline_it() {
    let mut server = server();
    let address = join(&mut server, NOW, |message| message, mac(1), &adopted())
        .packet
        .yiaddr;
    let by = |who| {
        Message::new(MessageType::Decline, who)
            .requested(address)
            .server(HEAD)
            .bytes()
    };
    assert_eq!(
        server.handle_packet(NOW, &by(mac(9)), &decide(adopted())),
        Err(Drop::NotHolder)
    );
    assert_eq!(server.handle_packet(NOW, &by(mac(1)), &decide(adopted())), Ok(()));
    let next = join(&mut server, NOW + 1, |message| message, mac(1), &adopted())
        .packet
        .yiaddr;
    assert_ne!(next, address);
    let wish = |now, who| {
        let mut server = server.clone();
        let discover = Message::new(MessageType::Discover, who)
            .requested(address)
            .bytes();
        exchange(&mut server, now, &discover, &adopted())
            .unwrap()
            .packet
            .yiaddr
    };
    assert_ne!(wish(NOW + QUARANTINE_SECS - 1, mac(3)), address);
    assert_eq!(wish(NOW + QUARANTINE_SECS + 1, mac(3)), address);
}

#[test]
fn a_released_address_waits_for_its_machine_while_others_are_free() {
    let mut server = server();
    let address = join(&mut server, NOW, |message| message, mac(1), &adopted())
        .packet
        .yiaddr;
    let release = Message::new(MessageType::Release, mac(1))
        .ciaddr(address)
        .server(HEAD)
        .bytes();
    server
        .handle_packet(NOW + 9, &release, &decide(adopted()))
        .unwrap();
    let outputs = drain(&mut server);
    assert!(matches!(outputs.as_slice(), [Output::Persist(record)] if record.expires_unix == NOW + 9));
    let other = join(&mut server, NOW + 10, |message| message, mac(2), &adopted())
        .packet
        .yiaddr;
    assert_ne!(other, address);
    assert_eq!(
        join(&mut server, NOW + 20, |message| message, mac(1), &adopted())
            .packet
            .yiaddr,
        address
    );
    let foreign = Message::new(MessageType::Release, mac(3))
        .ciaddr(address)
        .server(HEAD)
        .bytes();
    assert_eq!(
        server.handle_packet(NOW, &foreign, &decide(adopted())),
        Err(Drop::NotHolder)
    );
}

#[test]
fn inform_is_answered_with_parameters_and_no_lease() {
    let mut server = server();
    let own = Ipv4Addr::new(10, 77, 0, 60);
    let inform = Message::new(MessageType::Inform, mac(1)).ciaddr(own).bytes();
    let ack = exchange(&mut server, NOW, &inform, &adopted()).unwrap();
    assert_eq!(
        (ack.packet.message_type, ack.to),
        (MessageType::Ack, SocketAddrV4::new(own, 68))
    );
    assert_eq!(ack.packet.yiaddr, Ipv4Addr::UNSPECIFIED);
    assert_eq!(ack.packet.option(option::LEASE_TIME), None);
    assert_eq!(server.leases().sizes().0, 0);
}

#[test]
fn a_full_range_says_so_then_gives_the_longest_expired_address() {
    let mut settings = settings();
    settings.last = Ipv4Addr::new(10, 77, 0, 101);
    let mut server = Server::new(settings, &[]);
    let first = join(&mut server, NOW, |message| message, mac(1), &adopted())
        .packet
        .yiaddr;
    join(&mut server, NOW + 60, |message| message, mac(2), &adopted());
    let third = Message::new(MessageType::Discover, mac(3)).bytes();
    assert_eq!(
        server
            .handle_packet(NOW + 70, &third, &decide(adopted()))
            .unwrap_err()
            .to_string(),
        "dhcp-range-exhausted"
    );
    assert!(
        drain(&mut server)
            .iter()
            .all(|output| !matches!(output, Output::Transmit { .. }))
    );
    let late = join(&mut server, NOW + 3_700, |message| message, mac(3), &adopted());
    assert_eq!(late.packet.yiaddr, first);
}

#[test]
fn an_offer_is_kept_for_its_machine_for_a_while_only() {
    let mut settings = settings();
    settings.last = settings.first;
    let only = settings.first;
    let mut server = Server::new(settings, &[]);
    let discover = |who| Message::new(MessageType::Discover, who).bytes();
    assert_eq!(
        exchange(&mut server, NOW, &discover(mac(1)), &adopted())
            .unwrap()
            .packet
            .yiaddr,
        only
    );
    assert!(exchange(&mut server, NOW + 1, &discover(mac(2)), &adopted()).is_none());
    let later = NOW + OFFER_SECS + 1;
    assert_eq!(
        exchange(&mut server, later, &discover(mac(2)), &adopted())
            .unwrap()
            .packet
            .yiaddr,
        only
    );
    // The first machine comes late: its offer is void.
    let request = Message::new(MessageType::Request, mac(1))
        .requested(only)
        .server(HEAD)
        .bytes();
    assert_eq!(
        exchange(&mut server, later, &request, &adopted())
            .unwrap()
            .packet
            .message_type,
        MessageType::Nak
    );
}

#[test]
fn while_suspended_nothing_leaves_and_nothing_is_promised() {
    let mut server = server();
    server.set_suspended(true);
    for kind in [MessageType::Discover, MessageType::Request, MessageType::Inform] {
        let bytes = Message::new(kind, mac(1))
            .requested(Ipv4Addr::new(10, 77, 0, 120))
            .bytes();
        assert_eq!(
            server.handle_packet(NOW, &bytes, &decide(adopted())),
            Err(Drop::Suspended)
        );
    }
    assert_eq!(drain(&mut server), []);
    server.set_suspended(false);
    join(&mut server, NOW, |message| message, mac(1), &adopted());
}

#[test]
fn the_same_packet_has_the_same_answer() {
    for standing in [adopted(), Standing::default()] {
        let bytes = unhex(OVMF_DISCOVER);
        let mut server = server();
        let first = exchange(&mut server, NOW, &bytes, &standing).unwrap();
        let again = exchange(&mut server, NOW + 4, &bytes, &standing).unwrap();
        assert_eq!(first.bytes, again.bytes);
    }
}

#[test]
fn the_policy_is_asked_with_the_facts_of_the_packet() {
    let mut server = server();
    let asked = std::cell::RefCell::new(Vec::<Facts>::new());
    let bytes = unhex(OVMF_DISCOVER);
    server
        .handle_packet(NOW, &bytes, &|facts| {
            asked.borrow_mut().push(facts.clone());
            decide(adopted())(facts)
        })
        .unwrap();
    let facts = asked.borrow().first().cloned().unwrap();
    assert_eq!(
        (facts.mac, facts.client, facts.platform),
        (mac(1), Client::PxeFirmware, Platform::UefiX64)
    );
    // QEMU without -uuid says zero: that names no machine.
    assert_eq!(facts.uuid, None);
}
