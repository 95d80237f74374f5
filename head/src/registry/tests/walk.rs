//! Weeks of openings, exceptions, restarts, keys and releases in random order; what must hold is looked at after every step.

use cid_protocol::api::HoursChange;

use super::*;
use crate::mutation::Random;

const SCHOOL: &str = "interface = \"e0\"\ntime_zone = \"Europe/Berlin\"\n[groups.lab-a]\n\
                      hours = [\"Mon-Fri 20:00-06:30\", \"Sat-Sun\"]\nholidays = [\"2023-11-22\"]\non_holiday = \"closed\"\n";
const UNTIL: [&str; 6] = [
    "23:00",
    "06:30",
    "12:00",
    "Mon 20:00",
    "Wed 01:00",
    "2023-11-01 08:00",
];

/// What the walk remembers besides the trace.
struct Walk {
    trace: Trace,
    second: u64,
    /// Since when the group has been closed without a break.
    closed: Option<u64>,
    /// Released by the administrator and not woken since.
    released: [bool; 4],
    connection: u64,
}

impl Walk {
    fn step(&mut self, random: &mut Random) {
        self.second += [1, 1, 7, 61, 600, 7_200][random.below(6)];
        let (second, number) = (self.second, 1 + random.below(3) as u8);
        let name = format!("lab-a0{number}");
        match random.below(12) {
            0 | 1 => {
                let change = [HoursChange::Open, HoursChange::Closed][random.below(2)];
                let _ = self.trace.change(second, change, Some(UNTIL[random.below(6)]));
            }
            2 => drop(self.trace.change(second, HoursChange::Clear, None)),
            3 => self.trace.restart_with(second, SCHOOL),
            4 => {
                self.trace.registry.release(at(second), &name).unwrap();
                self.released[usize::from(number)] = true;
            }
            5 => {
                self.trace.registry.wake(at(second), &name).unwrap();
                self.released[usize::from(number)] = false;
            }
            6 => {
                let word = if random.below(2) == 0 {
                    self.trace.registry.drain(at(second), &name, None)
                } else {
                    self.trace.registry.undrain(at(second), &name)
                };
                word.unwrap();
            }
            7 => {
                let connection = self.trace.registry.machines[&mac(number)].connection;
                if let Some(connection) = connection {
                    let leaving = cid_protocol::node::Leaving::default();
                    let registry = &mut self.trace.registry;
                    registry.handle_going_home(at(second), connection, "key pressed", leaving, &[]);
                    registry.handle_disconnect(connection);
                }
            }
            8 => self.trace.session(second, number),
            _ => {
                let record = self.trace.registry.record(mac(number)).unwrap();
                let boots =
                    self.trace.registry.hours(at(second), "lab-a") == cid_bootserver::policy::Hours::Open;
                if boots && record.hold_when_asking().is_none() {
                    self.connection += 1;
                    let (connection, boot) = (self.connection, format!("boot-{}", self.connection));
                    self.trace.hello(second, number, connection, &boot);
                }
            }
        }
        self.trace.drain();
        self.nodes_live(second);
        self.trace.pass(second);
        self.trace.hours(second);
    }

    /// Nodes pulse; those that were told to go restart.
    fn nodes_live(&mut self, second: u64) {
        let machines = self.trace.registry.machines.values();
        let nodes = machines.filter_map(|machine| Some((machine.connection?, machine.is_in())));
        for (connection, is_in) in nodes.collect::<Vec<_>>() {
            if is_in {
                self.trace.pulse(second, connection.0);
            } else {
                self.trace.registry.handle_disconnect(connection);
            }
        }
    }

    fn check(&mut self, seed: u64) {
        let (second, registry) = (self.second, &self.trace.registry);
        let row = registry.group_hours(at(second), Some("lab-a")).unwrap().remove(0);
        self.closed = match row.open {
            true => None,
            false => self.closed.or(Some(second)),
        };
        let context = format!("seed {seed}, second {second}, {row:?}");
        let out_of_time = self.closed.is_some_and(|closed| second > closed + 60);
        for number in 1..=3 {
            let machine = &registry.machines[&mac(number)];
            assert!(!(out_of_time && machine.is_in()), "{context}: {machine:?}");
            assert_eq!(
                registry.takes_work(mac(number)),
                machine.record.state == NodeState::Up
            );
            assert!(!(machine.record.drain.is_some() && machine.record.state == NodeState::Up));
            let released = self.released[usize::from(number)];
            let held = machine.record.hold.is_some() && machine.record.hold_until.is_none();
            assert!(
                !released || held,
                "{context}: a release ended by itself, {machine:?}"
            );
            if machine.connection.is_some() {
                let home_at = registry.closes_at(at(second), "lab-a");
                assert_eq!(machine.told, home_at, "{context}: {machine:?}");
            }
        }
        // What is on disk is what counts, and what was looked up once is what is found again.
        let machines = self.trace.disk.values().cloned().collect();
        let mut fresh = Registry::new(&config(SCHOOL), machines, at(second));
        fresh.restore_groups(self.trace.groups.clone().into_iter().collect());
        let again = fresh.group_hours(at(second), Some("lab-a")).unwrap().remove(0);
        assert_eq!(again, row, "{context}");
    }
}

#[test]
fn whatever_happens_nobody_stays_behind_closing_and_a_release_lasts() {
    let (mut were_up, mut were_held) = (0, 0);
    for seed in 1..=15 {
        let mut trace = Trace::new();
        trace.registry = Registry::new(&config(SCHOOL), Vec::new(), at(0));
        for number in 1..=3 {
            trace.session(1, number);
            trace.adopt(number, &format!("lab-a0{number}"));
        }
        trace.hours(2);
        let mut walk = Walk {
            trace,
            second: 2,
            closed: None,
            released: [false; 4],
            connection: 0,
        };
        let mut random = Random::new(seed);
        for _ in 0..250 {
            walk.step(&mut random);
            walk.check(seed);
            let machines = walk.trace.registry.machines.values();
            were_up += machines.clone().filter(|machine| machine.is_in()).count();
            were_held += machines
                .filter(|machine| machine.record.hold_until.is_some())
                .count();
        }
    }
    // Control: the walk gets somewhere.
    assert!(were_up > 200 && were_held > 200, "{were_up} up, {were_held} held");
}
