//! Where the DHCP library bites, each shown to bite the library and not us. When an assertion about the library fails
//! after an update, the trap is gone and what stands against it in `packet.rs` or `reply.rs` may go too.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use cid_bootserver::dhcp::packet::{Malformed, MessageType, Packet, option};
use common::{HEAD, Message, mac, unhex};
use dhcproto::v4::{self, DhcpOption, UnknownOption};
use dhcproto::{Decodable, Decoder, Encodable, Encoder};

fn library(bytes: &[u8]) -> v4::Message {
    v4::Message::decode(&mut Decoder::new(bytes)).expect("the library takes it")
}

#[test]
fn a_large_hlen_makes_the_library_slice_out_of_bounds() {
    let mut bytes = Message::new(MessageType::Discover, mac(1)).bytes();
    bytes[2] = 200;
    assert!(std::panic::catch_unwind(|| library(&bytes).chaddr().len()).is_err());
    assert_eq!(Packet::decode(&bytes), Err(Malformed::BadHardwareAddress));
    for hlen in [0, 5, 7, 16, 17, 255] {
        bytes[2] = hlen;
        assert_eq!(
            Packet::decode(&bytes),
            Err(Malformed::BadHardwareAddress),
            "hlen {hlen}"
        );
    }
}

#[test]
fn a_latin_1_host_name_costs_the_library_all_options_behind_it() {
    let mut message = Message::new(MessageType::Discover, mac(1))
        .option(option::HOST_NAME, b"B\xfcro-7")
        .pxe(7);
    // The message type behind it as well.
    message
        .options
        .push((option::REQUESTED_ADDRESS, vec![10, 77, 0, 120]));
    let bytes = message.bytes();
    assert!(
        library(&bytes)
            .opts()
            .get(v4::OptionCode::ClassIdentifier)
            .is_none()
    );
    let packet = Packet::decode(&bytes).unwrap();
    assert_eq!(packet.architectures(), [7]);
    assert_eq!(
        packet.address_option(option::REQUESTED_ADDRESS),
        Some([10, 77, 0, 120].into())
    );
    assert!(packet.uuid().is_some());
}

#[test]
fn the_library_keeps_one_architecture_of_a_list() {
    let bytes = Message::new(MessageType::Discover, mac(1))
        .option(option::ARCHITECTURE, &[0, 6, 0, 7])
        .bytes();
    let seen = library(&bytes);
    let kept = seen.opts().get(v4::OptionCode::ClientSystemArchitecture);
    assert_eq!(
        kept,
        Some(&DhcpOption::ClientSystemArchitecture(v4::Architecture::from(6)))
    );
    assert_eq!(Packet::decode(&bytes).unwrap().architectures(), [6, 7]);
}

#[test]
fn the_library_takes_the_last_of_two_separated_parts_of_an_option() {
    let bytes = Message::new(MessageType::Discover, mac(1))
        .option(option::VENDOR_CLASS, b"PXECl")
        .option(option::ARCHITECTURE, &[0, 7])
        .option(option::VENDOR_CLASS, b"ient:Arch:00007")
        .bytes();
    let seen = library(&bytes);
    let kept = seen.opts().get(v4::OptionCode::ClassIdentifier);
    assert_ne!(
        kept,
        Some(&DhcpOption::ClassIdentifier(b"PXEClient:Arch:00007".to_vec()))
    );
    // RFC 3396 7: parts are joined in the order in which they stand, whatever stands between them.
    assert_eq!(
        Packet::decode(&bytes).unwrap().option(option::VENDOR_CLASS),
        Some(&b"PXEClient:Arch:00007"[..])
    );
}

#[test]
fn options_in_file_and_sname_are_read_where_option_52_says_so() {
    let mut bytes = Message::new(MessageType::Request, mac(1))
        .option(option::OVERLOAD, &[3])
        .bytes();
    bytes[108..115].copy_from_slice(&[option::REQUESTED_ADDRESS, 4, 10, 77, 0, 120, 255]);
    bytes[44..51].copy_from_slice(&[option::SERVER_IDENTIFIER, 4, 10, 77, 0, 1, 255]);
    assert!(
        library(&bytes)
            .opts()
            .get(v4::OptionCode::RequestedIpAddress)
            .is_none()
    );
    let packet = Packet::decode(&bytes).unwrap();
    assert_eq!(
        packet.address_option(option::REQUESTED_ADDRESS),
        Some([10, 77, 0, 120].into())
    );
    assert_eq!(packet.address_option(option::SERVER_IDENTIFIER), Some(HEAD));
    // Without option 52 the same bytes are a file name.
    bytes[244] = 0;
    assert_eq!(
        Packet::decode(&bytes)
            .unwrap()
            .address_option(option::REQUESTED_ADDRESS),
        None
    );
}

#[test]
fn the_library_does_not_look_at_the_cookie() {
    let mut bytes = Message::new(MessageType::Discover, mac(1)).bytes();
    bytes[236] = 0;
    let _ = library(&bytes);
    assert_eq!(Packet::decode(&bytes), Err(Malformed::NoCookie));
}

#[test]
fn option_94_of_another_length_panics_in_a_debug_build_of_the_library() {
    let bytes = Message::new(MessageType::Discover, mac(1))
        .option(94, &[1, 3])
        .bytes();
    #[cfg(debug_assertions)]
    assert!(std::panic::catch_unwind(|| library(&bytes)).is_err());
    assert_eq!(Packet::decode(&bytes).unwrap().option(94), Some(&[1, 3][..]));
}

#[test]
fn a_raw_option_82_is_written_twice_by_the_library() {
    let mut message = v4::Message::default();
    message.opts_mut().insert(DhcpOption::Unknown(UnknownOption::new(
        82.into(),
        b"\x01\x02xy".to_vec(),
    )));
    let mut bytes = Vec::new();
    message.encode(&mut Encoder::new(&mut bytes)).unwrap();
    let count = |bytes: &[u8]| {
        bytes
            .windows(6)
            .filter(|window| *window == b"\x52\x04\x01\x02xy")
            .count()
    };
    assert_eq!(count(&bytes), 2);
    // Ours is looked at in `dhcp_traces.rs`: a_relay_gets_the_answer_and_its_own_option_back_last.
}

#[test]
fn a_vendor_option_without_a_value_is_not_written_by_the_library_as_typed() {
    let mut message = v4::Message::default();
    message.opts_mut().insert(DhcpOption::VendorExtensions(vec![]));
    let mut bytes = Vec::new();
    message.encode(&mut Encoder::new(&mut bytes)).unwrap();
    assert!(!bytes[240..].starts_with(&[43]), "the option has left no trace");
}

#[test]
fn what_is_no_dhcp_message_has_a_reason() {
    let good = Message::new(MessageType::Discover, mac(1));
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.bytes();
        change(&mut bytes);
        Packet::decode(&bytes).unwrap_err()
    };
    assert_eq!(Packet::decode(&[]), Err(Malformed::TooShort));
    assert_eq!(with(&|bytes| bytes.truncate(239)), Malformed::TooShort);
    assert_eq!(with(&|bytes| bytes.resize(1_501, 0)), Malformed::TooLong);
    assert_eq!(with(&|bytes| bytes[0] = 3), Malformed::BadOp);
    assert_eq!(with(&|bytes| bytes[28] = 0xff), Malformed::BadHardwareAddress);
    assert_eq!(with(&|bytes| bytes[1] = 6), Malformed::BadHardwareAddress);
    assert_eq!(with(&|bytes| bytes[242] = 99), Malformed::BadMessageType);
    assert_eq!(with(&|bytes| bytes.truncate(240)), Malformed::BadMessageType);
    let uuid = good.clone().option(option::MACHINE_UUID, &[1; 17]);
    assert_eq!(Packet::decode(&uuid.bytes()), Err(Malformed::BadUuid));
    let short = good.clone().option(option::MACHINE_UUID, &[0; 16]);
    assert_eq!(Packet::decode(&short.bytes()), Err(Malformed::BadUuid));
}

#[test]
fn captures_of_real_firmware_decode() {
    for (capture, architectures, class) in [
        (common::OVMF_DISCOVER, vec![7], "PXEClient:Arch:00007:UNDI:003000"),
        (common::OVMF_REQUEST, vec![7], "PXEClient:Arch:00007:UNDI:003000"),
        (common::IPXE_DISCOVER, vec![0], "PXEClient:Arch:00000:UNDI:002001"),
    ] {
        let packet = Packet::decode(&unhex(capture)).unwrap();
        assert_eq!(packet.architectures(), architectures);
        assert_eq!(packet.option(option::VENDOR_CLASS), Some(class.as_bytes()));
    }
}
