//! A root image that the head promises.

use super::*;

/// A welcome that promises a root image.
fn promise() -> ToNode {
    let ToNode::Welcome(mut welcome) = welcome() else {
        panic!("it is one");
    };
    welcome.root = Some(Box::new(cid_protocol::root::RootPromise {
        image: "compute@3".into(),
        sequence: 7,
        manifest: "AAAA".into(),
        files: Vec::new(),
    }));
    ToNode::Welcome(welcome)
}

fn promised() -> Node {
    let mut n = node(Some(1));
    n.handle_links(at(0), vec![link(1, true)]);
    n.handle_address(at(1), 1, Some(FIRST));
    n.handle_connected(at(1));
    n.handle_message(at(1), promise());
    n
}

fn said(n: &mut Node) -> Vec<Output> {
    std::iter::from_fn(|| n.poll_output()).collect()
}

fn is_up(outputs: &[Output]) -> bool {
    outputs
        .iter()
        .any(|output| matches!(output, Output::Tell(FromAgent::Up(_))))
}

#[test]
fn a_node_is_up_when_its_root_is_mounted_and_not_before() {
    let mut n = promised();
    let outputs = drain(&mut n);
    assert!(!is_up(&outputs), "{outputs:?}");
    let promises = |outputs: &[Output]| {
        outputs
            .iter()
            .filter(|output| matches!(output, Output::Promise { .. }))
            .count()
    };
    assert_eq!(promises(&outputs), 1);
    n.handle_root_progress("fetches compute@3: 34 of 200 MB");
    let progress = Output::Tell(FromAgent::Status("fetches compute@3: 34 of 200 MB".into()));
    assert!(said(&mut n).contains(&progress));
    n.handle_root();
    assert!(is_up(&drain(&mut n)));
    n.handle_root();
    assert_eq!(drain(&mut n), [], "once");
    // The head was away: its promise is given again, and the node is up at once.
    n.handle_closed(at(20), "gone");
    n.handle_deadline(at(21));
    n.handle_connected(at(21));
    n.handle_message(at(21), promise());
    let outputs = drain(&mut n);
    assert!(is_up(&outputs) && promises(&outputs) == 1, "{outputs:?}");
}

#[test]
fn a_root_that_is_refused_sends_the_pc_home_within_a_minute_while_the_head_knows_why() {
    let mut n = promised();
    drain(&mut n);
    n.handle_root_refused(at(2), "too little memory");
    let outputs = said(&mut n);
    assert!(outputs.contains(&Output::Tell(FromAgent::Status("too little memory".into()))));
    assert!(!outputs.contains(&Output::Disconnect));
    n.handle_deadline(at(2) + REFUSED_BOUND);
    let home = Output::Tell(FromAgent::Home("too little memory".into()));
    assert!(drain(&mut n).contains(&home));
}
