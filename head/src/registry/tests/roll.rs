//! Rolling updates, traced: four PCs, and what becomes of each at every second.

use cid_protocol::images::{RollPhase, RollRequest, RollState};

use super::*;
use crate::versions::Version;

fn version(number: u32) -> Version {
    Version {
        name: "minimal".into(),
        number,
        digest: format!("{number:064}"),
        bytes: 20_000_000,
        imported_unix: 1_700_000_000 + u64::from(number),
    }
}

/// What a PC of the room does by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pc {
    /// Up, in this boot.
    Up(u64),
    /// Restarting; its firmware asks at this second.
    Restarting(u64, u64),
    /// The kernel runs; it says hello, or fails, at this second.
    Kernel(u64, u64),
    /// Windows.
    Home,
}

/// Four PCs that do as they are told, in seconds.
struct Room {
    trace: Trace,
    pcs: Vec<Pc>,
    second: u64,
    fewest_up: usize,
    /// Images with which no PC comes up.
    bad: Vec<String>,
    /// Images with which a PC comes up, and leaves at once because of an alarm.
    flighty: Vec<String>,
    sent: usize,
}

impl Room {
    fn new() -> Self {
        let mut room = Self {
            trace: Trace::new(),
            pcs: Vec::new(),
            second: 0,
            fewest_up: 4,
            bad: Vec::new(),
            flighty: Vec::new(),
            sent: 0,
        };
        room.versions(&[1]);
        for number in 1..=4 {
            room.trace.session(1, number);
            room.trace.adopt(number, &format!("lab-a0{number}"));
            room.pcs.push(Pc::Restarting(5, 0));
        }
        room.run_to(60);
        assert_eq!(room.up(), 4);
        room.fewest_up = 4;
        room
    }

    fn versions(&mut self, numbers: &[u32]) {
        let versions = numbers.iter().map(|number| version(*number)).collect();
        self.trace.registry.set_versions(at(self.second), versions);
        self.trace.drain();
    }

    fn up(&self) -> usize {
        (1..=4)
            .filter(|number| self.trace.state(*number) == NodeState::Up)
            .count()
    }

    fn image(&self, number: u8) -> String {
        let record = self.trace.registry.record(mac(number)).unwrap();
        record.image.clone().unwrap_or_default()
    }

    fn images(&self) -> Vec<String> {
        (1..=4).map(|number| self.image(number)).collect()
    }

    fn roll(&mut self, image: Option<&str>, at_a_time: u32, keep_up: u32) -> Result<(), ImageError> {
        let asked = RollRequest {
            nodeset: "@lab-a".into(),
            image: image.map(str::to_owned),
            at_a_time,
            keep_up,
            healthy_secs: 20,
        };
        let begun = self.trace.registry.begin_roll(at(self.second), &asked);
        self.trace.drain();
        begun
    }

    fn report(&self) -> cid_protocol::images::RollReport {
        self.trace.registry.roll_report().unwrap()
    }

    fn phases(&self) -> Vec<RollPhase> {
        self.report().nodes.iter().map(|node| node.phase).collect()
    }

    fn run_to(&mut self, second: u64) {
        while self.second < second {
            self.second += 1;
            self.obey();
            for index in 0..self.pcs.len() {
                self.live(index);
            }
            self.trace.registry.handle_roll(at(self.second));
            self.trace.pass(self.second);
            self.fewest_up = self.fewest_up.min(self.up());
        }
    }

    /// Nodes do what they were told since the last second.
    fn obey(&mut self) {
        let told = self.trace.sent.split_off(self.sent);
        self.trace.sent.extend(told.iter().cloned());
        self.sent = self.trace.sent.len();
        for (connection, message) in told {
            let ToNode::Release { reason, .. } = message else {
                continue;
            };
            let index = (connection.0 % 10 - 1) as usize;
            let boot = connection.0 / 10;
            if self.pcs[index] == Pc::Up(boot) {
                self.leave(index, boot, &reason);
            }
        }
    }

    fn leave(&mut self, index: usize, boot: u64, reason: &str) {
        let connection = ConnectionId(boot * 10 + index as u64 + 1);
        let registry = &mut self.trace.registry;
        registry.handle_going_home(at(self.second), connection, reason, Leaving::LocalBoot, &[]);
        registry.handle_disconnect(connection);
        self.trace.drain();
        self.pcs[index] = Pc::Restarting(self.second + 10, boot);
    }

    fn live(&mut self, index: usize) {
        let number = index as u8 + 1;
        let second = self.second;
        match self.pcs[index] {
            Pc::Restarting(when, boot) if when <= second => {
                self.trace.session(second, number);
                let record = self.trace.registry.record(mac(number)).unwrap();
                let stays = self.trace.registry.hold_text(at(second), record).is_some();
                let two_failed = record.failed_boots >= MAX_FAILED_BOOTS;
                let image = self.trace.registry.image_for(record).unwrap().to_owned();
                if stays || two_failed {
                    let text = "local-disk: held".into();
                    let verdict = Verdict::LocalDisk;
                    self.trace
                        .observe(second, number, Observation::Decided { verdict, text });
                    self.pcs[index] = Pc::Home;
                    return;
                }
                self.trace
                    .observe(second, number, Observation::ScriptHandedOut { image });
                self.pcs[index] = Pc::Kernel(second + 15, boot + 1);
            }
            Pc::Kernel(when, boot) if when <= second => {
                if self.bad.contains(&self.image(number)) {
                    self.pcs[index] = Pc::Restarting(second + 30, boot);
                    return;
                }
                let connection = boot * 10 + u64::from(number);
                let image = self.image(number);
                self.trace.image.clone_from(&image);
                self.trace
                    .hello(second, number, connection, &format!("boot-{number}-{boot}"));
                self.pcs[index] = Pc::Up(boot);
                if self.flighty.contains(&image) {
                    self.leave(index, boot, "an alarm");
                }
            }
            Pc::Up(boot) => self.trace.pulse(second, boot * 10 + u64::from(number)),
            _ => {}
        }
    }
}

#[test]
fn four_pcs_go_over_to_a_new_version_and_three_are_always_up() {
    let mut room = Room::new();
    room.trace
        .registry
        .set_image(at(60), "lab-a", "minimal@1", false)
        .unwrap();
    room.versions(&[1, 2]);
    assert_eq!(
        room.images(),
        ["minimal@1"; 4],
        "a group that was set does not follow"
    );
    room.roll(Some("minimal"), 1, 3).unwrap();
    assert_eq!(
        room.roll(None, 1, 0),
        Err(ImageError::Rolling("minimal@2".into()))
    );
    room.run_to(400);
    assert_eq!(room.images(), ["minimal@2"; 4]);
    assert_eq!((room.report().state, room.fewest_up), (RollState::Done, 3));
    // All of the group run it: it is the group's, and nobody has a pin.
    assert_eq!(room.trace.registry.group_image("lab-a"), Some("minimal@2"));
    assert!(room.trace.images.pins.is_empty());
    assert!(room.trace.woken.is_empty());
}

/// The control of the test above: two at a time, and only two stay.
#[test]
fn two_at_a_time_leave_two() {
    let mut room = Room::new();
    room.versions(&[1, 2]);
    room.roll(None, 2, 0).unwrap();
    room.run_to(300);
    assert_eq!(
        (room.images(), room.fewest_up),
        (vec!["minimal@2".to_owned(); 4], 2)
    );
    assert_eq!(room.phases(), [RollPhase::Done; 4]);
}

#[test]
fn a_bad_image_stops_at_the_first_pc_which_goes_back() {
    for (bad, keeps) in [(true, "its PC restarted before it was up"), (false, "an alarm")] {
        let mut room = Room::new();
        room.trace
            .registry
            .set_image(at(60), "lab-a", "minimal@1", false)
            .unwrap();
        room.versions(&[1, 2]);
        if bad {
            room.bad.push("minimal@2".into());
        } else {
            room.flighty.push("minimal@2".into());
        }
        room.roll(Some("minimal@2"), 1, 3).unwrap();
        room.run_to(600);
        let report = room.report();
        assert_eq!(report.state, RollState::Failed);
        assert!(report.ended_unix.is_some());
        assert!(
            report.reason.starts_with("lab-a01: ") && report.reason.contains(keeps),
            "{}",
            report.reason
        );
        assert_eq!(
            room.phases()[1..],
            [RollPhase::Waiting; 3],
            "nobody else was begun"
        );
        assert_eq!(room.fewest_up, 3);
        if bad {
            assert_eq!((room.images(), room.up()), (vec!["minimal@1".to_owned(); 4], 4));
            assert_eq!(room.phases()[0], RollPhase::Returned);
        } else {
            // Who leaves with a word of its own may have a person before it: it is at home, and nobody calls it.
            assert_eq!(room.pcs[0], Pc::Home);
            assert_eq!(room.phases()[0], RollPhase::Failed);
            assert!(room.trace.woken.is_empty());
        }
    }
}

/// The new version is the group's already: everybody who boots during the night gets the old one again.
#[test]
fn a_failed_roll_to_the_groups_own_image_takes_the_group_back() {
    let mut room = Room::new();
    room.versions(&[1, 2]);
    let sequence = room.trace.images.sequence;
    room.bad.push("minimal@2".into());
    room.roll(None, 1, 0).unwrap();
    room.run_to(600);
    assert_eq!(room.trace.registry.group_image("lab-a"), Some("minimal@1"));
    assert_eq!(room.images(), ["minimal@1"; 4]);
    let promised = &room.trace.images.promised;
    assert!(
        promised["minimal@1"] > promised["minimal@2"],
        "old content under a newer sequence: {promised:?}"
    );
    assert!(room.trace.images.sequence > sequence);
}

/// At every second of an update the head is killed once; whatever it had begun it goes on with.
#[test]
fn the_head_dies_in_the_middle_and_goes_on() {
    for moment in (61..200).step_by(3) {
        let mut room = Room::new();
        room.versions(&[1, 2]);
        room.roll(None, 1, 3).unwrap();
        room.run_to(moment);
        room.trace.restart(room.second);
        room.versions(&[1, 2]);
        // Nodes find it again.
        for index in 0..4 {
            if let Pc::Up(boot) = room.pcs[index] {
                let number = index as u8 + 1;
                room.trace.image = room.image(number);
                let boot_id = format!("boot-{number}-{boot}");
                let connection = boot * 10 + u64::from(number);
                room.trace.hello(room.second, number, connection, &boot_id);
            }
        }
        room.run_to(moment + 500);
        let report = room.report();
        assert_eq!(report.state, RollState::Done, "{moment}: {report:?}");
        assert_eq!(room.images(), ["minimal@2"; 4], "{moment}");
        assert!(room.fewest_up >= 3, "{moment}");
    }
}

#[test]
fn a_person_who_takes_the_pc_that_is_restarted_has_it() {
    let mut room = Room::new();
    room.versions(&[1, 2]);
    room.roll(None, 1, 0).unwrap();
    // The key was pressed before the head's word arrived.
    room.sent = room.trace.sent.len();
    let Pc::Up(boot) = room.pcs[0] else { panic!() };
    room.leave(0, boot, "a key was pressed");
    room.run_to(400);
    assert_eq!(room.pcs[0], Pc::Home);
    assert_eq!(room.phases()[0], RollPhase::Skipped);
    assert_eq!(room.phases()[1..], [RollPhase::Done; 3], "the others go on");
    assert!(room.trace.woken.is_empty());
}

#[test]
fn a_stop_waits_for_who_is_on_the_way_and_begins_nobody() {
    let mut room = Room::new();
    room.versions(&[1, 2]);
    assert_eq!(room.trace.registry.stop_roll(at(60)), Err(ImageError::NotRolling));
    room.roll(None, 1, 0).unwrap();
    room.run_to(70);
    room.trace.registry.stop_roll(at(70)).unwrap();
    room.run_to(300);
    assert_eq!(room.report().state, RollState::Stopped);
    assert_eq!(
        room.images(),
        ["minimal@2", "minimal@1", "minimal@1", "minimal@1"]
    );
}

#[test]
fn who_is_not_up_is_left_to_its_next_boot_and_too_many_are_not_kept_up() {
    let mut room = Room::new();
    room.trace
        .registry
        .set_image(at(60), "lab-a", "minimal@1", false)
        .unwrap();
    room.versions(&[1, 2]);
    room.trace.registry.release(at(60), "lab-a04").unwrap();
    room.trace.drain();
    room.run_to(120);
    let refused = room.roll(Some("minimal@2"), 1, 4);
    assert_eq!(refused, Err(ImageError::KeepsAll { keep_up: 4, nodes: 4 }));
    room.roll(Some("minimal@2"), 1, 3).unwrap();
    room.run_to(200);
    assert!(
        room.report()
            .reason
            .contains("3 of its nodes are up, and 3 are to stay so"),
        "{}",
        room.report().reason
    );
    room.trace.registry.stop_roll(at(200)).unwrap();
    room.roll(Some("minimal@2"), 1, 2).unwrap();
    room.run_to(500);
    assert_eq!(room.phases()[3], RollPhase::Skipped);
    let record = room.trace.registry.record(mac(4)).unwrap();
    assert_eq!(room.trace.registry.image_for(record), Some("minimal@2"));
}

#[test]
fn groups_follow_until_they_are_set_and_rollback_takes_it_back() {
    let mut room = Room::new();
    let group = |room: &Room| room.trace.registry.group_image("lab-a").map(str::to_owned);
    assert_eq!(group(&room).as_deref(), Some("minimal@1"));
    assert_eq!(
        room.trace.registry.rollback_image(at(60), "lab-a"),
        Err(ImageError::NothingBefore("lab-a".into()))
    );
    room.versions(&[1, 2]);
    assert_eq!(group(&room).as_deref(), Some("minimal@2"));
    room.trace.registry.rollback_image(at(61), "lab-a").unwrap();
    room.trace.drain();
    room.versions(&[1, 2, 3]);
    assert_eq!(group(&room).as_deref(), Some("minimal@1"), "it was set by hand");
    let missing = room.trace.registry.set_image(at(62), "lab-a", "minimal@9", false);
    assert_eq!(missing, Err(ImageError::NoVersion("minimal@9".into())));
    room.trace
        .registry
        .set_image(at(62), "lab-a", "minimal", true)
        .unwrap();
    room.trace.drain();
    room.versions(&[1, 2, 3, 4]);
    assert_eq!(group(&room).as_deref(), Some("minimal@4"));
    // A restart changes nothing; another image in head.toml does.
    room.trace.restart(70);
    assert_eq!(group(&room).as_deref(), Some("minimal@4"));
    room.trace.restart_with(
        71,
        &CONFIG.replace("image = \"minimal\"", "image = \"minimal@2\""),
    );
    room.versions(&[1, 2, 3, 4]);
    assert_eq!(group(&room).as_deref(), Some("minimal@2"));
    let pinned = room.trace.registry.set_image(at(72), "lab-a", "minimal", true);
    assert!(matches!(pinned, Err(ImageError::Pinned { .. })));
}

/// What nodes run, groups name and updates need is never given up; the control: what nobody needs is.
#[test]
fn what_must_stay_says_why() {
    let mut room = Room::new();
    room.versions(&[1, 2, 3]);
    room.versions(&[1, 2, 3, 4]);
    let needed = room.trace.registry.needed_images();
    assert_eq!(needed["minimal@1"], "lab-a01 runs it");
    assert!(!needed.contains_key("minimal@2"), "{needed:?}");
    assert!(needed["minimal@3"].contains("rollback"));
    assert!(needed["minimal@4"].contains("boots it"));
}
