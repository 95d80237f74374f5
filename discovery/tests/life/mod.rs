//! One random life of a room: what may happen in it, and what must hold after every event and in the end.

use std::collections::BTreeMap;
use std::time::Duration;

use cid_discovery::history::State;
use cid_discovery::load::LoadVector;
use cid_discovery::member::{HEAD_LEASE, Records};
use cid_discovery::seal::GroupKey;
use cid_discovery::wire::Mode;

use crate::sim::{Planted, Wire, World, secs};

const BAIL_OUT: Duration = Duration::from_secs(60);
/// Datagrams on their way, and a starved process, may carry the head's voice this far.
const ECHO: Duration = Duration::from_secs(4);

pub(crate) struct Life {
    world: World,
    /// Since when each machine cannot hear the head.
    cut: Vec<Option<Duration>>,
    checks: u64,
}

/// Lives the life of this seed; how many checks it passed, or which one it failed.
pub(crate) fn live(seed: u64, planted: Planted) -> Result<u64, String> {
    let mut life = Life::new(seed, planted);
    for index in 1..life.world.hosts.len() {
        if life.world.chance(80) {
            life.world.start(index);
        }
    }
    for _ in 0..12 + life.world.below(20) {
        let pause = Duration::from_millis(200 + life.world.below(6_000) as u64);
        life.pass(pause)?;
        life.fault()?;
    }
    life.settle()?;
    Ok(life.checks)
}

impl Life {
    fn new(seed: u64, planted: Planted) -> Self {
        // Every third room is sealed, every twentieth is a real one.
        let key = seed.is_multiple_of(3).then_some(GroupKey {
            epoch: 1,
            secret: [42; 32],
        });
        let nodes = if seed.is_multiple_of(20) {
            13
        } else {
            3 + (seed % 7) as usize
        };
        let mut world = World::sealed(seed, nodes, key);
        world.bail_out = BAIL_OUT;
        world.planted = planted;
        let cut = vec![None; world.hosts.len()];
        Self {
            world,
            cut,
            checks: 0,
        }
    }

    /// Lets `span` pass, checking after each event.
    fn pass(&mut self, span: Duration) -> Result<(), String> {
        let end = self.world.now + span;
        self.note_cuts();
        while self.world.step(end) {
            self.check(self.world.ran)?;
        }
        self.world.run_until(end);
        (0..self.world.hosts.len()).try_for_each(|index| self.check(index))
    }

    fn note_cuts(&mut self) {
        for index in 0..self.world.hosts.len() {
            let hears = self.world.can_hear_head(index);
            let cut = &mut self.cut[index];
            *cut = if hears { None } else { cut.or(Some(self.world.now)) };
        }
    }

    fn check(&mut self, index: usize) -> Result<(), String> {
        let world = &self.world;
        if let Some(violation) = &world.violation {
            return Err(violation.clone());
        }
        let Some(member) = &world.hosts[index].member else {
            return Ok(());
        };
        self.checks += 1;
        let (length, chain) = match member.records() {
            Records::Node(replica) => (replica.digest().length, replica.chain()),
            Records::Head(chronicle) => (chronicle.digest().length, chronicle.chain()),
        };
        match world.chains.get(length as usize) {
            None => {
                return Err(format!(
                    "host {index} has {length} changes, the head committed fewer"
                ));
            }
            Some(committed) if *committed != chain => {
                return Err(format!("host {index} has another history at length {length}"));
            }
            Some(_) => {}
        }
        let Some(since) = self.cut[index].filter(|_| index != 0) else {
            return Ok(());
        };
        let began = world.hosts[index].began;
        let without = world.now.saturating_sub(since.max(began));
        // A process that never heard the head does not act at all.
        let lease = if began > since + ECHO {
            Duration::ZERO
        } else {
            HEAD_LEASE + ECHO
        };
        if without > lease && world.acts(index) {
            return Err(format!(
                "host {index} acts {without:?} after the head's last word"
            ));
        }
        if without > BAIL_OUT + ECHO {
            return Err(format!(
                "host {index} is still here {without:?} after the head's last word"
            ));
        }
        Ok(())
    }

    fn fault(&mut self) -> Result<(), String> {
        let world = &mut self.world;
        let hosts = world.hosts.len();
        let node = 1 + world.below(hosts - 1);
        match world.below(24) {
            0 | 1 => world.crash(node),
            2..=4 => world.start(node),
            5 => {
                world.with(node, |member, now| member.handle_leave(now));
                self.pass(secs(0.3))?;
                self.world.crash(node);
            }
            6 => {
                for index in 1..hosts {
                    world.hosts[index].side = world.below(2) as u8;
                }
            }
            7 | 8 => world.hosts.iter_mut().for_each(|host| host.side = 0),
            9 => world.wire.loss_percent = world.below(31) as u64,
            10 => world.wire.duplicate_percent = world.below(31) as u64,
            11 => world.wire.jitter = Duration::from_millis(world.below(60) as u64),
            12 => world.wire.multicast = world.chance(50),
            13 => world.crash(0),
            14 if !world.is_on(0) => world.start(0),
            14 => world.hosts[node].starved = world.chance(50).then(|| secs(2.0)),
            15 => world.restart_agent(node),
            16 => (1..hosts).for_each(|index| world.restart_agent(index)),
            17 => {
                // The ghost is still believed, and the new boot has another address.
                world.crash(node);
                world.move_address(node);
                world.start(node);
            }
            18 => self.clock(node),
            19 => {
                let any = world.below(hosts);
                world.hosts[any].loss_out = world.below(61) as u64;
                world.hosts[node].loss_in = world.below(61) as u64;
            }
            20 => {
                let (other, third) = (world.below(hosts), 1 + world.below(hosts - 1));
                world.wire.one_way.insert((node, other));
                world.wire.one_way.insert((other, third));
            }
            21 => world.wire.one_way.clear(),
            22 => {
                if world.chance(50) {
                    world.rotate_key(world.now.as_millis().is_multiple_of(3));
                }
                world.replay(50);
            }
            _ => self.work(node),
        }
        Ok(())
    }

    fn clock(&mut self, node: usize) {
        let world = &mut self.world;
        if world.chance(50) {
            // A day and more, in both directions.
            let wall_ms = world.below(200_000_000) as i64 - 100_000_000;
            world.set_wall_clock(wall_ms);
        } else {
            let host = if world.chance(20) { 0 } else { node };
            let jump = Duration::from_millis(world.below(20_000) as u64);
            world.hosts[host].clock += jump;
            world.with(host, |member, now| member.handle_deadline(now));
        }
    }

    fn work(&mut self, node: usize) {
        let world = &mut self.world;
        let mode = if world.chance(50) { Mode::Busy } else { Mode::Quiet };
        let load = LoadVector {
            runnable_tenths: world.below(100) as u16,
            ..LoadVector::default()
        };
        world.with(node, |member, now| {
            member.handle_mode(now, mode);
            member.handle_load(now, load);
        });
    }

    /// No more faults: does everybody come to agree?
    fn settle(&mut self) -> Result<(), String> {
        let world = &mut self.world;
        world.wire = Wire {
            multicast: world.wire.multicast,
            ..Wire::default()
        };
        for host in &mut world.hosts {
            (host.side, host.loss_in, host.loss_out) = (0, 0, 0);
            host.starved = None;
        }
        if !world.is_on(0) {
            world.start(0);
        }
        // Who was about to go home may; from then on everybody has a head.
        self.pass(secs(10.0))?;
        let home = |world: &World| world.hosts.iter().filter(|host| host.went_home).count();
        let gone = home(&self.world);
        self.pass(secs(140.0))?;
        let world = &self.world;
        if home(world) > gone {
            return Err("a node went home in peace".to_owned());
        }
        let wrong = world.wrong_pairs();
        if wrong > 0 {
            return Err(format!(
                "{wrong} pairs disagree after 150 s of peace: {}",
                world.describe()
            ));
        }
        (1..world.hosts.len()).try_for_each(|index| self.check_agreement(index))?;
        let mut boots = BTreeMap::new();
        for change in &world.disk {
            let last = boots.insert(change.boot.id, change.boot.incarnation);
            if last.is_some_and(|last| last > change.boot.incarnation) {
                return Err(format!("{} came after a later boot", change.boot));
            }
        }
        Ok(())
    }

    fn check_agreement(&self, index: usize) -> Result<(), String> {
        let world = &self.world;
        let head = world.member(0);
        let boot = world.hosts[index].boot;
        let official = head.table().get(&boot.id);
        let Some(member) = &world.hosts[index].member else {
            if official.is_some_and(|last| matches!(last.state, State::Up | State::Suspect)) {
                return Err(format!("host {index} is off, and {official:?}"));
            }
            return Ok(());
        };
        let left = official.is_some_and(|last| last.boot == boot && last.state == State::GoingHome);
        if !left && official.is_none_or(|last| last.boot != boot || last.state != State::Up) {
            return Err(format!(
                "host {index} is {boot} and up, and {official:?}; {}",
                world.describe()
            ));
        }
        if member.table() != head.table() {
            return Err(format!("host {index} has another table than the head"));
        }
        if !world.acts(index) {
            return Err(format!("host {index} does not trust itself to act"));
        }
        Ok(())
    }
}
