//! Enrolment, authority, the ticket.

use super::*;

fn with_standing(standing: Standing) -> Node {
    let config = Config {
        head: Some(HEAD),
        boot_mac: None,
        bail_out: at(600),
        heard: None,
        standing,
        seed: 1,
    };
    Node::new(at(0), config)
}

fn certificate() -> Certificate {
    Certificate {
        leaf: "bGVhZg==".into(),
        authority: "Y2E=".into(),
    }
}

#[test]
fn a_stranger_asks_for_a_certificate_and_calls_again_with_it() {
    let mut n = with_standing(Standing::Stranger);
    n.handle_links(at(0), vec![link(1, true), link(2, true)]);
    n.handle_address(at(1), 1, Some(FIRST));
    n.handle_address(at(1), 2, Some(SECOND));
    assert_eq!(drain(&mut n), [connect(1, FIRST)]);
    n.handle_connected(at(1));
    assert_eq!(drain(&mut n), [Output::SendEnroll { index: 1 }]);
    n.handle_message(at(2), ToNode::Certificate(certificate()));
    let enroll = Output::Enroll {
        certificate: certificate(),
    };
    assert_eq!(drain(&mut n), [enroll]);
    n.handle_enrolled(at(2), Ok(()));
    // At once, and over the same link, though there is another.
    assert_eq!(drain(&mut n), [Output::Disconnect, connect(1, FIRST)]);
    n.handle_connected(at(2));
    assert_eq!(drain(&mut n), [Output::SendHello { index: 1 }]);
}

#[test]
fn a_certificate_that_is_none_leads_home_like_a_refusal() {
    let mut n = with_standing(Standing::Stranger);
    n.handle_links(at(0), vec![link(1, true)]);
    n.handle_address(at(1), 1, Some(FIRST));
    n.handle_connected(at(1));
    n.handle_message(at(1), ToNode::Certificate(certificate()));
    drain(&mut n);
    n.handle_enrolled(
        at(1),
        Err("the head's certificate for this node: not X.509".into()),
    );
    assert_eq!(drain(&mut n), [Output::Disconnect]);
    let wanted = pass(&mut n, 1, 60, false);
    let (second, home) = wanted.last().expect("it goes home");
    assert!((50..=52).contains(second), "{wanted:?}");
    assert!(format!("{home:?}").contains("not X.509"), "{home:?}");
}

#[test]
fn without_an_authority_no_head_is_called_and_the_pc_goes_home() {
    let mut n = with_standing(Standing::Nobody(
        "the boot script names no authority (cid.ca)".into(),
    ));
    let said: Vec<String> = n.outputs.iter().map(|output| format!("{output:?}")).collect();
    assert!(said.iter().any(|line| line.contains("cid.ca")), "{said:?}");
    n.handle_links(at(0), vec![link(1, true)]);
    n.handle_address(at(1), 1, Some(FIRST));
    let wanted = pass(&mut n, 1, 70, false);
    assert!(
        !wanted
            .iter()
            .any(|(_, output)| matches!(output, Output::Connect { .. })),
        "{wanted:?}"
    );
    let (second, home) = wanted.last().expect("it goes home");
    assert!(
        *second <= 51 && format!("{home:?}").contains("cid.ca"),
        "{wanted:?}"
    );
}

#[test]
fn a_head_that_is_heard_by_datagrams_alone_keeps_the_node() {
    let mut n = up();
    let wanted = pass(&mut n, 1, 300, false);
    assert!(
        !wanted
            .iter()
            .any(|(_, o)| matches!(o, Output::Tell(FromAgent::Home(_))))
    );
    n.handle_head_heard(at(300));
    let wanted = pass(&mut n, 300, 880, false);
    assert!(
        !wanted
            .iter()
            .any(|(_, o)| matches!(o, Output::Tell(FromAgent::Home(_))))
    );
    let wanted = pass(&mut n, 880, 1_000, false);
    let home = wanted
        .iter()
        .find(|(_, o)| matches!(o, Output::Tell(FromAgent::Home(_))));
    assert_eq!(home.map(|(second, _)| *second), Some(900), "{wanted:?}");
}

#[test]
fn a_ticket_makes_a_member_which_leaves_before_it_goes_home() {
    let mut n = up();
    n.handle_closed(at(2), "the head closed the connection");
    drain(&mut n);
    n.handle_deadline(at(3));
    n.handle_connected(at(3));
    drain(&mut n);
    let ToNode::Welcome(mut welcome) = welcome() else {
        panic!("a welcome")
    };
    let key = GroupKey {
        epoch: 1,
        secret: String::new(),
        revoked: false,
        thrown_out: Vec::new(),
    };
    let ticket = MemberTicket {
        id: "11".repeat(16),
        incarnation: 4,
        head_id: "22".repeat(16),
        head_incarnation: 1,
        key,
    };
    welcome.member = Some(ticket.clone());
    n.handle_message(at(3), ToNode::Welcome(welcome));
    let outputs = drain(&mut n);
    assert!(
        outputs
            .iter()
            .any(|output| matches!(output, Output::Join { ticket: joined, .. } if **joined == ticket)),
        "{outputs:?}"
    );
    n.handle_message(at(4), ToNode::Key(ticket.key.clone()));
    assert_eq!(drain(&mut n), [Output::Rotate { key: ticket.key }]);
    n.handle_init(FromInit::Drain {
        secs: 10,
        reason: "key pressed".into(),
    });
    let order: Vec<Output> = std::iter::from_fn(|| n.poll_output()).collect();
    let place = |wanted: fn(&Output) -> bool| order.iter().position(wanted).expect("said");
    let told = place(|output| matches!(output, Output::SendGoingHome { .. }));
    let left = place(|output| matches!(output, Output::Leave));
    let home = place(|output| matches!(output, Output::Tell(FromAgent::Home(_))));
    assert!(told < left && left < home, "{order:?}");
}
