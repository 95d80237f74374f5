//! Timed traces of calling PCs and of how they leave.

use cid_protocol::node::{Ending, Hardware, Hello, Leaving, Link, NODE_PROTOCOL_VERSION, ToNode, WayHome};

use super::*;
use crate::config::Config;
use crate::registry::{ConnectionId, Firmware, LEAVING_TIME, Observation};

const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);

fn at(second: u64) -> Now {
    Now {
        monotonic: Duration::from_secs(second),
        unix_ms: 1_700_000_000_000 + second * 1_000,
    }
}

/// One PC of group `lab-a`, heard of at second 0.
fn registry(keys: &str) -> Registry {
    let text =
        format!("interface = \"e0\"\n[groups.lab-a]\nhours = [\"always\"]\nmatch = [\"02:*\"]\n{keys}");
    let config = Config::parse(std::path::Path::new("head.toml"), &text).expect("a configuration");
    let mut registry = Registry::new(&config, Vec::new(), at(0));
    registry.handle_observation(at(0), MAC, Observation::Heard);
    registry
}

fn join(registry: &mut Registry, second: u64, windows: Option<&str>) {
    let link = Link {
        name: "eth0".into(),
        mac: MAC.to_string(),
        in_use: true,
        address: "10.99.6.7/22".into(),
        ..Link::default()
    };
    let hello = Hello {
        version: NODE_PROTOCOL_VERSION,
        boot_id: format!("boot-{second}"),
        image: "minimal".into(),
        door: "pxe-uefi".into(),
        hardware: Hardware {
            windows_entry: windows.map(str::to_owned),
            links: vec![link],
            ..Hardware::default()
        },
        phases: Vec::new(),
        incarnation: None,
        work: 0,
    };
    registry.vouch(ConnectionId(second), MAC);
    registry.handle_hello(at(second), ConnectionId(second), [10, 99, 6, 7].into(), hello);
}

fn drain(registry: &mut Registry) -> Vec<Output> {
    std::iter::from_fn(|| registry.poll_output()).collect()
}

fn events(outputs: &[Output], wanted: &str) -> Vec<String> {
    let text = |output: &Output| match output {
        Output::Event { kind, text, .. } if *kind == wanted => Some(text.clone()),
        _ => None,
    };
    outputs.iter().filter_map(text).collect()
}

/// Seconds at which the PC is called until `to`, with what `each` does at its second.
fn calls(registry: &mut Registry, to: u64, mut each: impl FnMut(&mut Registry, u64, &Target)) -> Vec<u64> {
    let mut calls = Vec::new();
    for second in 10..to {
        registry.handle_calls(at(second));
        for output in drain(registry) {
            if let Output::Wake(target) = output {
                each(registry, second, &target);
                calls.push(second);
            }
        }
    }
    calls
}

#[test]
fn it_is_called_again_until_its_firmware_asks() {
    let mut silent = registry("");
    silent.wake(at(10), "*").expect("everybody");
    assert_eq!(calls(&mut silent, 1_000, |_, _, _| {}), [10, 15, 30, 70, 190]);
    let mut asks = registry("");
    asks.wake(at(10), "*").expect("everybody");
    let ask = |registry: &mut Registry, second, _: &Target| {
        if second == 30 {
            let firmware = Firmware::default();
            let client = "pxe";
            let asked = Observation::SessionStarted { firmware, client };
            registry.handle_observation(at(second), MAC, asked);
        }
    };
    assert_eq!(calls(&mut asks, 1_000, ask), [10, 15, 30]);
    let mut released = registry("");
    released.wake(at(10), "*").expect("everybody");
    released.release(at(10), "*").expect("everybody");
    assert_eq!(
        calls(&mut released, 1_000, |_, _, _| {}),
        [10],
        "the first had left"
    );
}

#[test]
fn a_command_that_did_its_work_is_not_run_again_and_one_that_failed_is() {
    const KEY: &str = "wake_command = \"/bin/on {name}\"";
    for (outcome, kind, expected) in [
        (Ok("done".to_owned()), "wake", vec![10]),
        (
            Err("no chassis".to_owned()),
            "wake-failed",
            vec![10, 15, 30, 70, 190],
        ),
    ] {
        let mut registry = registry(KEY);
        registry.wake(at(10), "*").expect("everybody");
        let mut told = 0;
        let answer = |registry: &mut Registry, second, target: &Target| {
            assert!(target.command.is_some());
            registry.handle_wake_outcome(at(second), MAC, outcome.clone());
            told += registry
                .outputs
                .iter()
                .filter(|output| matches!(output, Output::Event { kind: told, .. } if *told == kind))
                .count();
        };
        assert_eq!(calls(&mut registry, 500, answer), expected, "{kind}");
        assert_eq!(told, expected.len());
        // Who asks again means it.
        registry.wake(at(510), "*").expect("everybody");
        assert!(
            drain(&mut registry)
                .iter()
                .any(|output| matches!(output, Output::Wake(_)))
        );
    }
}

#[test]
fn it_is_called_where_it_was_last() {
    let mut registry = registry("");
    join(&mut registry, 1, None);
    registry.handle_disconnect(ConnectionId(1));
    registry.handle_deadline(at(60));
    drain(&mut registry);
    registry.wake(at(70), "*").expect("everybody");
    let outputs = drain(&mut registry);
    let target = outputs.iter().find_map(|output| match output {
        Output::Wake(target) => Some(target),
        _ => None,
    });
    let subnet = Subnet {
        address: [10, 99, 6, 7].into(),
        prefix: 22,
    };
    let target = target.expect("a call");
    assert_eq!((&target.subnets, target.group.as_str()), (&vec![subnet], "lab-a"));
    assert_eq!(target.address, Some([10, 99, 6, 7].into()));
}

#[test]
fn nodes_are_told_how_to_end_and_what_they_prepared_is_told_on() {
    let keys = "at_close = \"power-off\"\nway_home = \"boot-next\"";
    for (leaving, word) in [
        (Leaving::PowerOff, "switched itself off"),
        (Leaving::BootNext, "BootNext"),
    ] {
        let mut registry = registry(keys);
        join(&mut registry, 1, Some("Boot0001 Windows Boot Manager"));
        let outputs = drain(&mut registry);
        assert!(events(&outputs, "way-home").is_empty());
        let told = |output: &Output| match output {
            Output::Send {
                message: ToNode::Welcome(welcome),
                ..
            } => Some((welcome.at_close, welcome.way_home)),
            _ => None,
        };
        let welcome = outputs.iter().find_map(told);
        assert_eq!(welcome, Some((Ending::PowerOff, WayHome::BootNext)));
        registry.release(at(9), "*").expect("everybody");
        let outputs = drain(&mut registry);
        let off = |output: &Output| {
            let Output::Send { message, .. } = output else {
                return false;
            };
            matches!(
                message,
                ToNode::Release {
                    ending: Ending::PowerOff,
                    ..
                }
            )
        };
        assert!(outputs.iter().any(off));
        let steps = ["Wake-on-LAN of eth0: armed\n".to_owned()];
        registry.handle_going_home(at(10), ConnectionId(1), "released", leaving, &steps);
        let outputs = drain(&mut registry);
        assert_eq!(events(&outputs, "leaving"), ["Wake-on-LAN of eth0: armed"]);
        // Nobody waits for a question that does not come.
        let home = at(10).monotonic + LEAVING_TIME;
        assert_eq!(registry.next_deadline(), Some(home));
        registry.handle_deadline(at(10 + LEAVING_TIME.as_secs()));
        let record = registry.record(MAC).expect("known");
        assert_eq!(record.state, NodeState::Home);
        assert!(record.reason.contains(word), "{}", record.reason);
    }
}

#[test]
fn a_pc_without_an_entry_for_windows_is_named() {
    let mut registry = registry("way_home = \"boot-next\"");
    join(&mut registry, 1, None);
    let outputs = drain(&mut registry);
    assert_eq!(events(&outputs, "way-home").len(), 1);
    // The same boot, found again, is not told twice.
    join(&mut registry, 1, None);
    assert!(events(&drain(&mut registry), "way-home").is_empty());
}
