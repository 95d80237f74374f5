//! proxyDHCP, told as packet traces: somebody else's server gives the addresses, we say what to boot. No socket, no clock.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::net::{Ipv4Addr, SocketAddrV4};

use cid_bootserver::dhcp::packet::{MessageType, Packet, option};
use cid_bootserver::dhcp::proxy::{Door, Output, Proxy};
use cid_bootserver::dhcp::server::{Drop, Observation};
use cid_bootserver::policy::{Standing, decide as policy_decide};

use common::{
    Answer, HEAD, IPXE_DISCOVER, Message, OVMF_DISCOVER, OVMF_REQUEST, adopted, decide, mac, site, unhex,
};

/// The site's own DHCP server.
const CAMPUS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 254);
/// What it gave the PC.
const GIVEN: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 156);
const MENU: &[u8] = b"\x06\x01\x03\x09\x0d\x00\x00\x0aLocal boot\x0a\x02\x00L\xff";

fn drain(proxy: &mut Proxy) -> Vec<Output> {
    std::iter::from_fn(|| proxy.poll_output()).collect()
}

/// Takes one message in; its answer, with what holds for every answer of a proxy checked.
fn exchange(
    proxy: &mut Proxy,
    door: Door,
    bytes: &[u8],
    standing: &Standing,
) -> Result<Option<Answer>, Drop> {
    let sender = match door {
        Door::Dhcp => SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68),
        Door::BootServer => SocketAddrV4::new(GIVEN, 4011),
    };
    proxy.handle_packet(door, sender, bytes, &decide(standing.clone()))?;
    let mut found = None;
    for output in drain(proxy) {
        if let Output::Transmit { from, bytes, to } = output {
            assert!(found.is_none(), "two answers to one message");
            assert_eq!(from, door, "an answer leaves from the port that was asked");
            assert!((300..=1472).contains(&bytes.len()), "{} bytes", bytes.len());
            let packet = Packet::decode(&bytes).expect("our own answers decode");
            assert_eq!(packet.yiaddr, Ipv4Addr::UNSPECIFIED, "a proxy gives no address");
            assert_eq!(packet.address_option(option::SERVER_IDENTIFIER), Some(HEAD));
            for code in [
                option::LEASE_TIME,
                option::SUBNET_MASK,
                option::ROUTER,
                option::OVERLOAD,
            ] {
                assert_eq!(packet.option(code), None, "option {code}");
            }
            found = Some(Answer { packet, bytes, to });
        }
    }
    Ok(found)
}

fn discover(bytes: &[u8], standing: &Standing) -> Option<Answer> {
    exchange(&mut Proxy::new(HEAD), Door::Dhcp, bytes, standing).unwrap_or(None)
}

fn rom() -> Vec<u8> {
    Message::new(MessageType::Discover, mac(1)).pxe(0).bytes()
}

fn http() -> Vec<u8> {
    Message::new(MessageType::Discover, mac(1))
        .option(option::VENDOR_CLASS, b"HTTPClient:Arch:00016:UNDI:003000")
        .option(option::ARCHITECTURE, &[0, 16])
        .bytes()
}

#[test]
fn ovmf_is_told_by_offer_and_again_on_port_4011() {
    let mut proxy = Proxy::new(HEAD);
    let asked = Packet::decode(&unhex(OVMF_DISCOVER)).unwrap();
    let offer = exchange(&mut proxy, Door::Dhcp, &unhex(OVMF_DISCOVER), &adopted())
        .unwrap()
        .unwrap();
    assert_eq!(
        (offer.packet.message_type, offer.packet.xid),
        (MessageType::Offer, asked.xid)
    );
    assert_eq!(offer.to, SocketAddrV4::new(Ipv4Addr::BROADCAST, 68));
    assert_eq!(offer.packet.option(option::VENDOR_CLASS), Some(&b"PXEClient"[..]));
    // With option 43 broken firmware looks for a menu; without it EDK2 asks port 4011 ("BINL").
    assert_eq!(offer.packet.option(option::VENDOR_SPECIFIC), None);
    assert_eq!(
        offer.packet.option(option::MACHINE_UUID),
        asked.option(option::MACHINE_UUID)
    );
    let shim = "m/52-54-00-00-00-01/shimx64.efi";
    assert_eq!(
        (offer.file().as_str(), offer.sname().as_str(), offer.siaddr()),
        (shim, "10.77.0.1", HEAD)
    );

    // It asks the site's server for its address: ours to overhear, not to answer.
    let sender = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68);
    let bytes = unhex(OVMF_REQUEST);
    assert_eq!(
        proxy.handle_packet(Door::Dhcp, sender, &bytes, &decide(adopted())),
        Err(Drop::NotForProxy)
    );
    assert!(drain(&mut proxy).contains(&Output::Heard(GIVEN, mac(1))));

    let request = Message::new(MessageType::Request, mac(1)).pxe(7).ciaddr(GIVEN);
    let ack = exchange(&mut proxy, Door::BootServer, &request.bytes(), &adopted())
        .unwrap()
        .unwrap();
    assert_eq!(
        (ack.packet.message_type, ack.to),
        (MessageType::Ack, SocketAddrV4::new(GIVEN, 4011))
    );
    assert_eq!((ack.file().as_str(), ack.siaddr()), (shim, HEAD));
    assert_eq!(ack.packet.option(option::VENDOR_CLASS), Some(&b"PXEClient"[..]));
}

#[test]
fn each_firmware_is_told_in_its_own_manner() {
    let offer = discover(&unhex(IPXE_DISCOVER), &adopted()).unwrap();
    assert_eq!(offer.file(), "http://10.77.0.1/m/52-54-00-00-00-02/boot.ipxe");
    assert_eq!(
        offer.packet.option(option::IPXE),
        Some(&[1, 1, 1][..]),
        "above a WDS"
    );
    assert_eq!(
        offer.packet.option(option::VENDOR_SPECIFIC),
        None,
        "iPXE would show a menu"
    );

    // A vendor's ROM. None is packaged, so this exchange is made up from RFC 4578 and the PXE specification.
    let offer = discover(&rom(), &adopted()).unwrap();
    assert_eq!(offer.file(), "m/52-54-00-00-00-01/undionly.kpxe");
    assert_eq!(
        offer.packet.option(option::VENDOR_SPECIFIC),
        Some(&[6, 1, 8, 255][..])
    );
    // Its undionly.kpxe asks again as iPXE and is not sent round the loop.
    let again = Message::new(MessageType::Discover, mac(1)).ipxe().bytes();
    assert!(
        discover(&again, &adopted())
            .unwrap()
            .file()
            .ends_with("/boot.ipxe")
    );

    let offer = discover(&http(), &adopted()).unwrap();
    let url = "http://10.77.0.1/m/52-54-00-00-00-01/shimx64.efi";
    assert_eq!(offer.file(), url);
    assert_eq!(
        offer.packet.option(option::BOOT_FILE_NAME),
        Some(format!("{url}\0").as_bytes())
    );
    assert_eq!(
        offer.packet.option(option::VENDOR_CLASS),
        Some(&b"HTTPClient\0"[..])
    );
}

#[test]
fn whoever_is_not_adopted_is_sent_to_its_disk_and_never_gets_a_boot_answer() {
    let stranger = Standing::default();
    let held = Standing {
        hold: Some("released".to_owned()),
        ..adopted()
    };
    for standing in [&stranger, &held] {
        for bytes in [unhex(OVMF_DISCOVER), unhex(IPXE_DISCOVER), rom()] {
            let offer = discover(&bytes, standing).unwrap();
            assert_eq!(offer.packet.option(option::VENDOR_SPECIFIC), Some(MENU));
            assert_eq!(
                (offer.file().as_str(), offer.packet.option(option::BOOT_FILE_NAME)),
                ("", None)
            );
        }
        let request = Message::new(MessageType::Request, mac(1))
            .pxe(7)
            .ciaddr(GIVEN)
            .bytes();
        let ack = exchange(&mut Proxy::new(HEAD), Door::BootServer, &request, standing)
            .unwrap()
            .unwrap();
        assert_eq!(
            (ack.packet.option(option::VENDOR_SPECIFIC), ack.file()),
            (Some(MENU), String::new())
        );
        // HTTP Boot knows no menu; without a URL from anybody it goes on at once.
        let mut proxy = Proxy::new(HEAD);
        assert_eq!(
            exchange(&mut proxy, Door::Dhcp, &http(), standing).err(),
            Some(Drop::NothingToSay)
        );
        let seen = drain(&mut proxy);
        assert!(
            seen.iter()
                .any(|output| matches!(output, Output::Observe(_, Observation::Decided(_))))
        );
    }
}

#[test]
fn what_is_between_a_client_and_its_server_is_left_alone() {
    for kind in [
        MessageType::Inform,
        MessageType::Release,
        MessageType::Decline,
        MessageType::Request,
    ] {
        let bytes = Message::new(kind, mac(1))
            .pxe(7)
            .ciaddr(GIVEN)
            .server(CAMPUS)
            .bytes();
        assert_eq!(
            exchange(&mut Proxy::new(HEAD), Door::Dhcp, &bytes, &adopted()).err(),
            Some(Drop::NotForProxy)
        );
    }
    for kind in [MessageType::Inform, MessageType::Release, MessageType::Discover] {
        let bytes = Message::new(kind, mac(1)).pxe(7).ciaddr(GIVEN).bytes();
        let result = exchange(&mut Proxy::new(HEAD), Door::BootServer, &bytes, &adopted());
        assert_eq!(result.err(), Some(Drop::NotForProxy));
    }
    // An operating system wants an address: not from us.
    let mut proxy = Proxy::new(HEAD);
    let bytes = Message::new(MessageType::Discover, mac(1)).bytes();
    assert_eq!(
        exchange(&mut proxy, Door::Dhcp, &bytes, &adopted()).err(),
        Some(Drop::NotFirmware)
    );
    assert_eq!(drain(&mut proxy), [Output::Observe(mac(1), Observation::Heard)]);
}

#[test]
fn another_servers_client_is_overheard() {
    let mut proxy = Proxy::new(HEAD);
    let sender = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68);
    let request = Message::new(MessageType::Request, mac(1))
        .requested(GIVEN)
        .server(CAMPUS);
    let _ = proxy.handle_packet(Door::Dhcp, sender, &request.bytes(), &decide(adopted()));
    let seen = drain(&mut proxy);
    assert!(seen.contains(&Output::ServerNamed(CAMPUS)));
    assert!(seen.contains(&Output::Heard(GIVEN, mac(1))));
    assert!(seen.contains(&Output::Observe(mac(1), Observation::Leased(GIVEN))));
}

#[test]
fn behind_a_relay_the_answer_goes_to_the_relay_and_from_there_to_everybody() {
    let relay = Ipv4Addr::new(10, 99, 0, 1);
    let option_82 = b"\x01\x04\x00\x01\x02\x03";
    let message = Message::new(MessageType::Discover, mac(1)).ipxe().giaddr(relay);
    let offer = discover(
        &message.option(option::RELAY_AGENT, option_82).bytes(),
        &adopted(),
    )
    .unwrap();
    assert_eq!(
        (offer.to, offer.packet.giaddr),
        (SocketAddrV4::new(relay, 67), relay)
    );
    assert_eq!(offer.packet.option(option::RELAY_AGENT), Some(&option_82[..]));
    assert!(
        offer.packet.broadcast,
        "there is no address that the relay could send it to"
    );
}

#[test]
fn a_forced_quirk_changes_the_manner() {
    let forced = |name: &str| Standing {
        quirk: Some(name.to_owned()),
        ..adopted()
    };
    let offer = discover(&unhex(OVMF_DISCOVER), &forced("pxe10")).unwrap();
    assert_eq!(
        offer.packet.option(option::VENDOR_SPECIFIC),
        Some(&[6, 1, 8, 255][..])
    );
    let offer = discover(&rom(), &forced("binl")).unwrap();
    assert_eq!(offer.packet.option(option::VENDOR_SPECIFIC), None);
    let offer = discover(&unhex(OVMF_DISCOVER), &forced("nul-terminated-file")).unwrap();
    assert_eq!(
        offer.packet.option(option::BOOT_FILE_NAME),
        Some(&b"m/52-54-00-00-00-01/shimx64.efi\0"[..])
    );
    let offer = discover(&http(), &forced("bare-http-class")).unwrap();
    assert_eq!(
        offer.packet.option(option::VENDOR_CLASS),
        Some(&b"HTTPClient"[..])
    );
    let silent = Standing {
        group: None,
        ..forced("no-menu")
    };
    let mut proxy = Proxy::new(HEAD);
    let result = exchange(&mut proxy, Door::Dhcp, &unhex(OVMF_DISCOVER), &silent);
    assert_eq!(result.err(), Some(Drop::NothingToSay));
}

#[test]
fn our_own_probe_and_answers_are_not_answered() {
    let mut proxy = Proxy::new(HEAD);
    proxy.ignore(mac(1));
    assert_eq!(
        exchange(&mut proxy, Door::Dhcp, &rom(), &adopted()).err(),
        Some(Drop::OwnProbe)
    );
    let offer = discover(&rom(), &adopted()).unwrap();
    assert_eq!(
        discover(&offer.bytes, &adopted()).map(|answer| answer.bytes),
        None
    );
    let facts = cid_bootserver::dhcp::classify::classify(&Packet::decode(&rom()).unwrap());
    assert_eq!(
        policy_decide(&facts, &adopted(), &site()).manner.by_table,
        Some("bios-direct")
    );
}
