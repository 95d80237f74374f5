//! The table of verdicts: one figure at a time at its limit, below it, and unknown.

use cid_protocol::measure::PeerPath;
use cid_protocol::node::Link;

use super::*;

fn fit() -> Hardware {
    Hardware {
        memory_kib: 8 << 20,
        links: vec![Link {
            name: "eth0".into(),
            in_use: true,
            speed_mbit: 1_000,
            ..Link::default()
        }],
        measured: Some(Measured {
            cpu_speed: Some(1.5),
            head: way(300, 900_000, 0),
            peers: Vec::new(),
            took_ms: 40,
        }),
        ..Hardware::default()
    }
}

fn way(round_trip_us: u32, kbit: u32, again: u32) -> Path {
    let segments = Segments { all: 400, again };
    Path {
        echoes: 20,
        round_trip_us: Some(round_trip_us),
        worst_us: Some(round_trip_us * 2),
        to_node_kbit: Some(kbit * 2),
        from_node_kbit: Some(kbit),
        skipped: String::new(),
        sent: Segments { all: 300, again: 0 },
        received: segments,
    }
}

fn strict() -> Requirements {
    Requirements {
        cpu_speed_hundredths: Some(100),
        memory_kib: Some(8 << 20),
        link_kbit: Some(1_000_000),
        round_trip: Some(Duration::from_millis(5)),
        loss_hundredths: Some(200),
        bandwidth_kbit: Some(50_000),
    }
}

fn check(change: impl FnOnce(&mut Hardware, &mut Measured), expected: Result<(), &str>) {
    let mut hardware = fit();
    let mut measured = hardware.measured.take().unwrap();
    change(&mut hardware, &mut measured);
    hardware.measured = Some(measured);
    let verdict = judge(&strict(), &hardware).map_err(|reason| reason.to_string());
    assert_eq!(verdict, expected.map_err(str::to_owned));
    // The table tells the same.
    let short = table(&strict(), &hardware)
        .iter()
        .any(|row| row.standing == Standing::Short);
    assert!(
        short || verdict.is_ok(),
        "the table shows nothing short of {verdict:?}"
    );
}

#[test]
fn each_figure_is_judged_at_its_limit() {
    check(|_, _| {}, Ok(()));
    check(|_, measured| measured.cpu_speed = Some(1.0), Ok(()));
    check(
        |_, measured| measured.cpu_speed = Some(0.99),
        Err(
            "its CPU runs at 0.99, 1.00 is wanted: look for power saving in its firmware, or lower `cpu_speed`",
        ),
    );
    check(|hardware, _| hardware.memory_kib = 7 << 20, Ok(()));
    check(
        |hardware, _| hardware.memory_kib = (7 << 20) - 1,
        Err("it has 6.99 GiB of memory, 8 GiB are wanted: look at its memory modules, or lower `memory`"),
    );
    check(
        |hardware, _| hardware.links[0].speed_mbit = 10,
        Err("link of eth0 runs at 10 Mbit/s, 1 Gbit/s are wanted: look at its cable and switch port"),
    );
    check(|_, measured| measured.head = way(5_000, 50_000, 8), Ok(()));
    check(
        |_, measured| measured.head = way(5_001, 50_000, 8),
        Err("the head is 5 ms away, 5 ms are allowed: look for a loop or an overloaded switch on the way"),
    );
    check(
        |_, measured| measured.head = way(5_000, 49_999, 8),
        Err(
            "it has 49.99 Mbit/s to the head, 50 Mbit/s are wanted: look at its cable and the switches on the way",
        ),
    );
    check(
        |_, measured| measured.head = way(5_000, 50_000, 9),
        Err(
            "the way to the head loses 2.25 %, 2 % are allowed: look at its cable, and at duplex on both ends",
        ),
    );
    check(
        |_, measured| {
            measured.head.sent = Segments { all: 100, again: 50 };
        },
        Err("the way to the head loses 50 %, 2 % are allowed: look at its cable, and at duplex on both ends"),
    );
}

#[test]
fn what_was_not_measured_is_not_held_against_a_node() {
    check(|_, measured| *measured = Measured::default(), Ok(()));
    check(|_, measured| measured.cpu_speed = Some(f32::NAN), Ok(()));
    check(|hardware, _| hardware.links[0].speed_mbit = 0, Ok(()));
    check(|hardware, _| hardware.links.clear(), Ok(()));
    check(|hardware, _| hardware.memory_kib = 0, Ok(()));
    // Two echoes and thirty segments say nothing; nor does one repeat in sixty.
    check(
        |_, measured| (measured.head.echoes, measured.head.round_trip_us) = (2, Some(900_000)),
        Ok(()),
    );
    check(
        |_, measured| measured.head.received = Segments { all: 30, again: 20 },
        Ok(()),
    );
    check(
        |_, measured| measured.head.received = Segments { all: 60, again: 2 },
        Ok(()),
    );
    let none = Hardware {
        measured: None,
        ..fit()
    };
    assert_eq!(judge(&strict(), &none), Ok(()));
    let rows = table(&strict(), &none);
    let standing = |what: &str| rows.iter().find(|row| row.what == what).map(|row| row.standing);
    assert_eq!(standing("cpu_speed"), Some(Standing::NotMeasured));
    assert_eq!(standing("link"), Some(Standing::Met));
}

#[test]
fn one_bad_way_to_a_peer_is_not_the_nodes_fault_and_two_are() {
    let peer = |round_trip_us| PeerPath {
        address: "10.77.0.131".into(),
        path: way(round_trip_us, 900_000, 0),
    };
    check(
        |_, measured| measured.peers = vec![peer(90_000), peer(400)],
        Ok(()),
    );
    // Shown as short, and not held against it.
    let mut alone = fit();
    alone.measured.as_mut().unwrap().peers = vec![peer(90_000)];
    assert_eq!(judge(&strict(), &alone), Ok(()));
    check(
        |_, measured| measured.peers = vec![peer(90_000), peer(80_000)],
        Err(
            "10.77.0.131 is 90 ms away, 5 ms are allowed: look for a loop or an overloaded switch on the way",
        ),
    );
}

#[test]
fn the_defaults_refuse_what_is_broken_and_nothing_else() {
    let verdict = |hardware: &Hardware| {
        judge(&Requirements::default(), hardware).map_err(|reason| reason.figure.word())
    };
    // An old, slow, small PC far away from a busy head.
    let mut slow = fit();
    slow.memory_kib = 1 << 19;
    slow.links[0].speed_mbit = 100;
    slow.measured = Some(Measured {
        cpu_speed: Some(0.02),
        head: way(60_000, 2_000, 20),
        ..Measured::default()
    });
    assert_eq!(verdict(&slow), Ok(()));
    let mut broken = slow.clone();
    broken.links[0].speed_mbit = 10;
    assert_eq!(verdict(&broken), Err("link"));
    let with = |head: Path| Hardware {
        measured: Some(Measured {
            head,
            ..Measured::default()
        }),
        ..slow.clone()
    };
    assert_eq!(verdict(&with(way(251_000, 1, 0))), Err("round-trip"));
    assert_eq!(verdict(&with(way(300, 900_000, 41))), Err("loss"));
    // Nothing is asked, nothing is refused.
    let nothing = Requirements {
        link_kbit: None,
        round_trip: None,
        loss_hundredths: None,
        ..Requirements::default()
    };
    assert_eq!(judge(&nothing, &broken), Ok(()));
}
