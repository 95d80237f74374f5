use dhcproto::v4::{DhcpOption, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Decodable, Decoder, Encodable};

use super::*;

const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 101);

fn at(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn client() -> Client {
    Client::new(MAC, 7)
}

/// The requests that leave: message type, destination, packet.
fn sent(client: &mut Client) -> Vec<(MessageType, Ipv4Addr, Message)> {
    let mut out = Vec::new();
    while let Some(output) = client.poll_output() {
        if let Output::Transmit { to, bytes } = output {
            assert!(bytes.len() >= 300);
            let message = Message::decode(&mut Decoder::new(&bytes)).expect("own packets decode");
            out.push((message.opts().msg_type().expect("typed"), to, message));
        }
    }
    out
}

fn reply(to: &Message, kind: MessageType, lease_secs: u32) -> Vec<u8> {
    let none = Ipv4Addr::UNSPECIFIED;
    let mut message = Message::new_with_id(to.xid(), none, ADDRESS, SERVER, none, to.chaddr());
    message.set_opcode(Opcode::BootReply);
    for option in [
        DhcpOption::MessageType(kind),
        DhcpOption::ServerIdentifier(SERVER),
        DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 255, 0)),
        DhcpOption::Router(vec![SERVER]),
        DhcpOption::AddressLeaseTime(lease_secs),
    ] {
        message.opts_mut().insert(option);
    }
    message.to_vec().expect("encodes")
}

/// Brings a client to a lease of 1,000 s at time 0.
fn bound() -> Client {
    let mut c = client();
    c.handle_carrier(at(0), true);
    let discover = sent(&mut c).remove(0).2;
    c.handle_datagram(at(0), &reply(&discover, MessageType::Offer, 1000))
        .expect("offer is taken");
    let request = sent(&mut c).remove(0).2;
    c.handle_datagram(at(0), &reply(&request, MessageType::Ack, 1000))
        .expect("acknowledged");
    assert!(
        matches!(c.poll_output(), Some(Output::Configure(lease)) if lease.address == ADDRESS && lease.prefix == 24)
    );
    c
}

#[test]
fn discover_offer_request_ack() {
    let mut c = client();
    assert_eq!(c.next_deadline(), None);
    c.handle_carrier(at(0), true);
    let packets = sent(&mut c);
    let [(MessageType::Discover, Ipv4Addr::BROADCAST, discover)] = packets.as_slice() else {
        panic!("{packets:?}")
    };
    assert!(discover.flags().broadcast());
    assert_eq!(discover.chaddr(), MAC);
    assert_eq!(
        discover.opts().get(OptionCode::ClientIdentifier),
        None,
        "one lease for firmware and Linux"
    );
    c.handle_datagram(at(1), &reply(discover, MessageType::Offer, 1000))
        .expect("taken");
    let packets = sent(&mut c);
    let [(MessageType::Request, Ipv4Addr::BROADCAST, request)] = packets.as_slice() else {
        panic!("{packets:?}")
    };
    assert_eq!(
        request.opts().get(OptionCode::ServerIdentifier),
        Some(&DhcpOption::ServerIdentifier(SERVER))
    );
    assert_eq!(
        request.opts().get(OptionCode::RequestedIpAddress),
        Some(&DhcpOption::RequestedIpAddress(ADDRESS))
    );
    c.handle_datagram(at(1), &reply(request, MessageType::Ack, 1000))
        .expect("bound");
    assert_eq!(c.lease().map(|lease| lease.router), Some(Some(SERVER)));
    assert_eq!(c.next_deadline(), Some(at(501)));
}

#[test]
fn keeps_asking_behind_a_slow_switch_with_short_first_intervals() {
    let mut c = client();
    c.handle_carrier(at(0), true);
    let mut moments = Vec::new();
    let mut now = at(0);
    while now < at(120) {
        moments.push(now.as_secs_f64());
        assert_eq!(sent(&mut c).len(), 1);
        now = c.next_deadline().expect("never gives up");
        c.handle_deadline(now);
    }
    assert!(moments[1] < 1.2 && moments[2] < 3.4, "{moments:?}");
    assert!(
        moments.windows(2).all(|pair| pair[1] - pair[0] < 18.0),
        "{moments:?}"
    );
    assert!(moments.len() >= 9, "{moments:?}");
}

#[test]
fn renews_by_unicast_rebinds_by_broadcast_and_expires() {
    let mut c = bound();
    let mut seen = Vec::new();
    let mut now = at(0);
    while now < at(1000) {
        now = c.next_deadline().expect("bound");
        c.handle_deadline(now);
        if c.lease().is_some() {
            for (kind, to, message) in sent(&mut c) {
                assert_eq!((kind, message.ciaddr()), (MessageType::Request, ADDRESS));
                seen.push((now.as_secs(), to));
            }
        }
    }
    assert_eq!(seen.first(), Some(&(500, SERVER)));
    assert!(
        seen.iter().all(|(second, to)| (*second < 875) == (*to == SERVER)),
        "{seen:?}"
    );
    assert_eq!(now, at(1000));
    assert!(matches!(c.poll_output(), Some(Output::Deconfigure)));
    assert!(matches!(sent(&mut c).as_slice(), [(MessageType::Discover, ..)]));
}

#[test]
fn a_renewal_is_taken_and_a_refusal_starts_over() {
    for kind in [MessageType::Ack, MessageType::Nak] {
        let mut c = bound();
        c.handle_deadline(at(500));
        let request = sent(&mut c).remove(0).2;
        c.handle_datagram(at(501), &reply(&request, kind, 1000))
            .expect("taken");
        match kind {
            MessageType::Ack => {
                assert!(matches!(c.poll_output(), Some(Output::Configure(_))));
                assert_eq!(c.next_deadline(), Some(at(1001)));
            }
            _ => {
                assert_eq!(c.poll_output(), Some(Output::Deconfigure));
                c.handle_deadline(at(502));
                assert!(matches!(sent(&mut c).as_slice(), [(MessageType::Discover, ..)]));
            }
        }
    }
}

/// What leaves until the lease ends, with its second; and the second in which the address is taken off the link.
fn unanswered(c: &mut Client) -> (Vec<(u64, MessageType, Ipv4Addr)>, u64) {
    let mut seen = Vec::new();
    let mut now = at(20);
    loop {
        let mut over = false;
        while let Some(output) = c.poll_output() {
            match output {
                Output::Transmit { to, bytes } => {
                    let message = Message::decode(&mut Decoder::new(&bytes)).expect("own packets decode");
                    assert_eq!(message.opts().get(OptionCode::ServerIdentifier), None);
                    let kind = message.opts().msg_type().expect("typed");
                    seen.push((now.as_secs(), kind, to));
                }
                Output::Configure(lease) => assert_eq!(lease.address, ADDRESS),
                Output::Deconfigure => over = true,
            }
        }
        if over {
            return (seen, now.as_secs());
        }
        now = c.next_deadline().expect("never gives up");
        c.handle_deadline(now);
    }
}

fn used_to_its_end_without_a_server(mut c: Client) {
    c.handle_carrier(at(20), true);
    assert!(
        matches!(c.outputs.front(), Some(Output::Configure(lease)) if lease.address == ADDRESS),
        "used at once: {:?}",
        c.outputs
    );
    let (seen, end) = unanswered(&mut c);
    assert_eq!(end, 1000, "to its end and no longer");
    let first: Vec<_> = seen.iter().map(|(_, kind, to)| (*kind, *to)).take(4).collect();
    let verify = (MessageType::Request, Ipv4Addr::BROADCAST);
    assert_eq!(first, [verify, verify, verify, (MessageType::Request, SERVER)]);
    assert_eq!(seen[3].0, 500, "renewed when it would have been: {seen:?}");
}

#[test]
fn a_carrier_that_comes_back_verifies_the_address_and_keeps_it_when_nobody_answers() {
    let mut c = bound();
    c.handle_carrier(at(10), false);
    assert_eq!(
        c.next_deadline(),
        Some(at(1000)),
        "the lease outlives the carrier"
    );
    used_to_its_end_without_a_server(c);
}

#[test]
fn an_agent_that_was_started_again_goes_on_with_the_lease() {
    let text = serde_json::to_string(&bound().held()).expect("held");
    let held: Option<Held> = serde_json::from_str(&text).expect("as it was kept");
    used_to_its_end_without_a_server(Client::restore(MAC, 8, at(20), held.clone()));
    // Controls: one that has ended, and one of a time that has not come, are not used.
    let mut later = held.clone().expect("held");
    later.since = at(5000);
    for (now, held) in [(at(1000), held), (at(20), Some(later))] {
        let mut c = Client::restore(MAC, 8, now, held);
        assert_eq!(c.held(), None);
        c.handle_carrier(now, true);
        assert!(matches!(sent(&mut c).as_slice(), [(MessageType::Discover, ..)]));
    }
}

#[test]
fn a_lease_that_is_refused_after_a_restart_is_given_up() {
    let mut c = Client::restore(MAC, 8, at(20), bound().held());
    c.handle_carrier(at(20), true);
    let request = sent(&mut c).remove(0).2;
    c.handle_datagram(at(21), &reply(&request, MessageType::Nak, 1000))
        .expect("heard");
    assert_eq!(c.poll_output(), Some(Output::Deconfigure));
    assert_eq!(c.held(), None);
}

#[test]
fn what_is_not_for_us_is_refused_with_a_reason() {
    let mut c = client();
    c.handle_carrier(at(0), true);
    let discover = sent(&mut c).remove(0).2;
    let offer = reply(&discover, MessageType::Offer, 1000);
    let with = |at: usize, value: u8| {
        let mut bytes = offer.clone();
        bytes[at] = value;
        bytes
    };
    let mut check = |bytes: &[u8]| c.handle_datagram(at(0), bytes).expect_err("refused");
    assert_eq!(check(&offer[..239]), Reject::NotDhcp);
    assert_eq!(check(&with(236, 0)), Reject::NotDhcp);
    assert_eq!(check(&with(0, 1)), Reject::NotOurs);
    assert_eq!(
        check(&with(2, 200)),
        Reject::NotOurs,
        "hlen is checked before it is used"
    );
    assert_eq!(check(&with(28, 9)), Reject::NotOurs);
    assert_eq!(check(&with(4, offer[4] ^ 1)), Reject::NotOurs);
    assert_eq!(
        check(&reply(&discover, MessageType::Inform, 1)),
        Reject::MessageType
    );
    assert_eq!(check(&reply(&discover, MessageType::Ack, 1)), Reject::Unexpected);
    let proxy = [&offer[..16], &[0; 4], &offer[20..]].concat();
    assert_eq!(check(&proxy), Reject::NoAddress);
    for length in 0..offer.len() {
        let _ = c.handle_datagram(at(0), &offer[..length]);
    }
}
