//! The real head among members: thirteen nodes in one process at the other end of a wire, each with the membership's own state machine,
//! its own address, and real datagrams; the head's history is in real SQLite.

#[path = "members/nodes.rs"]
mod nodes;
#[allow(dead_code, reason = "shared with tests that need more of it")]
#[path = "wire/room.rs"]
mod room;

use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use cid_protocol::api::{EventList, NodeRow, NodeState, TopList};

use nodes::Report;
use room::{Process, Room, run, wait_for};

const NODES: u8 = 13;
/// Four times what an idle machine needs.
const LIMIT: Duration = Duration::from_secs(60);

/// The other half of the tests below: thirteen nodes at the PCs' end of the wire, which do what their standard input says.
#[test]
fn child_that_is_thirteen_nodes() {
    if let Some(state_dir) = std::env::var_os("CID_TEST_NODES") {
        nodes::obey(NODES, state_dir.as_ref());
    }
}

/// The nodes, and what steers them.
struct Nodes {
    _process: Process,
    say: ChildStdin,
    hear: std::io::Lines<BufReader<ChildStdout>>,
}

impl Nodes {
    fn start(room: &Room) -> Self {
        for number in 1..=NODES {
            let address = format!("{}/24", nodes::address(number));
            run(room.at_pc("ip").args(["address", "add", &address, "dev", "pc0"]));
        }
        let program = std::env::current_exe().expect("this test");
        let mut child = room.at_pc(program.to_str().expect("plain path"));
        child.args(["child_that_is_thirteen_nodes", "--exact", "--nocapture"]);
        child.env("CID_TEST_NODES", room.path("state"));
        let mut child = child
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let say = child.stdin.take().expect("piped");
        let hear = BufReader::new(child.stdout.take().expect("piped")).lines();
        Self {
            _process: Process(child),
            say,
            hear,
        }
    }

    fn tell(&mut self, line: &str) {
        writeln!(self.say, "{line}").expect("the nodes run");
    }

    /// What each node says of itself.
    fn report(&mut self) -> Vec<Report> {
        self.tell("report");
        let lines = self.hear.by_ref().map_while(Result::ok);
        let mut reports = lines.filter_map(|line| serde_json::from_str(line.strip_prefix("report ")?).ok());
        reports.next().expect("the nodes run")
    }
}

fn room() -> Room {
    Room::new("unknown = \"boot\"\ndefault_group = \"lab-a\"")
}

fn states(room: &Room, state: NodeState) -> usize {
    room.nodes().iter().filter(|node| node.state == state).count()
}

/// Waits until each node holds the whole of one history, in which `up` machines are up; its length and hash.
fn agreed(nodes: &mut Nodes, up: usize) -> (u32, u32, u64) {
    wait_for(&format!("all agree on {up}"), LIMIT, || {
        let reports: Vec<Report> = nodes.report().into_iter().filter(|node| !node.silent).collect();
        let first = reports.first()?;
        let same =
            |node: &Report| (node.epoch, node.length, node.chain) == (first.epoch, first.length, first.chain);
        (first.up == up && reports.iter().all(same)).then_some((first.epoch, first.length, first.chain))
    })
}

fn metric(room: &Room, name: &str) -> u64 {
    let text = room.curl(&["http://head/metrics"]).expect("an answer");
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|value| value.parse().ok())
        .unwrap_or_else(|| panic!("{name} in {text}"))
}

fn changes_of(room: &Room, name: &str) -> Vec<String> {
    let list: EventList = room.get("/v1/events?limit=1000").expect("events");
    let about = list.events.into_iter().filter(|event| event.kind == "state");
    about
        .map(|event| event.text)
        .filter(|text| text.starts_with(name))
        .collect()
}

#[test]
fn a_silent_member_is_suspect_then_lost_and_a_killed_head_finds_everybody_again() {
    let room = room();
    let mut head = room.start_head(&[]);
    let mut nodes = Nodes::start(&room);
    wait_for("thirteen are up", LIMIT, || {
        (states(&room, NodeState::Up) == 13).then_some(())
    });
    let before = agreed(&mut nodes, 13);
    wait_for("everybody's load", LIMIT, || {
        let top: TopList = room.get("/v1/top")?;
        let known = |row: &&cid_protocol::api::TopRow| row.age_ms.is_some_and(|age| age < 60_000);
        (top.nodes.iter().filter(known).count() == 13).then_some(())
    });

    // One is silenced: its TCP connection lives, so nothing but the membership can know.
    let name = nodes::mac(4).to_string();
    let row = |room: &Room| -> NodeRow {
        let found = room.nodes().into_iter().find(|node| node.mac == name);
        found.expect("it is listed")
    };
    let known = changes_of(&room, &name).len();
    let silenced = Instant::now();
    nodes.tell("silence 4");
    let suspect = wait_for("it is suspect", LIMIT, || {
        Some(row(&room)).filter(|row| row.state != NodeState::Up)
    });
    println!(
        "not up any more after {:?}: {}",
        silenced.elapsed(),
        suspect.reason
    );
    let lost = wait_for("it is lost", LIMIT, || {
        Some(row(&room)).filter(|row| row.state == NodeState::Lost)
    });
    println!("lost after {:?}: {}", silenced.elapsed(), lost.reason);
    assert!(lost.reason.contains("silent"), "{}", lost.reason);
    // Suspect if the doubt lasted long enough to be shown, and lost.
    let changes = changes_of(&room, &name);
    assert!((1..=2).contains(&(changes.len() - known)), "{changes:?}");
    let after = agreed(&mut nodes, 12);
    assert!(after.0 == before.0 && after.1 > before.1);

    // The head dies and comes back: one history, nobody is shown lost, everybody holds it.
    let events = room
        .get::<EventList>("/v1/events?limit=1000")
        .expect("events")
        .events;
    head.kill();
    std::thread::sleep(Duration::from_secs(3));
    let back = Instant::now();
    let mut head = room.start_head(&[]);
    wait_for("everybody is heard again", LIMIT, || {
        (metric(&room, "cid_members{liveness=\"alive\"}") == 12).then_some(())
    });
    println!("all twelve are heard {:?} after the start", back.elapsed());
    assert_eq!(states(&room, NodeState::Lost), 1);
    let same = wait_for("everybody holds all of it", LIMIT, || {
        let same = agreed(&mut nodes, 12);
        (u64::from(same.1) == metric(&room, "cid_history_length")).then_some(same)
    });
    assert_eq!(same.0, after.0, "the same history");
    assert!(same.1 >= after.1);
    let news = room
        .get::<EventList>("/v1/events?limit=1000")
        .expect("events")
        .events;
    // A busy machine may doubt somebody for a moment; nobody is taken for dead.
    let news: Vec<_> = news.iter().skip(events.len()).map(|event| &event.text).collect();
    assert!(!news.iter().any(|text| text.contains(" is lost")), "{news:?}");

    // It speaks again, under whatever key is in force by now, and is up again.
    nodes.tell("speak 4");
    wait_for("it is up again", LIMIT, || {
        Some(row(&room)).filter(|row| row.state == NodeState::Up)
    });
    let healed = agreed(&mut nodes, 13);
    assert!(healed.1 > same.1);
    head.kill();
}

#[test]
fn a_flapping_member_makes_two_changes() {
    let room = room();
    let _head = room.start_head(&[]);
    let mut nodes = Nodes::start(&room);
    wait_for("thirteen are up", LIMIT, || {
        (states(&room, NodeState::Up) == 13).then_some(())
    });
    let name = nodes::mac(7).to_string();
    let before = changes_of(&room, &name).len();
    // Two seconds up, two seconds down.
    for _ in 0..6 {
        nodes.tell("silence 7");
        std::thread::sleep(Duration::from_secs(2));
        nodes.tell("speak 7");
        std::thread::sleep(Duration::from_secs(2));
    }
    // Each further doubt, and a busy machine has doubts of its own, makes it wait longer.
    wait_for("it is up in the end", 4 * LIMIT, || {
        let row = room.nodes().into_iter().find(|node| node.mac == name)?;
        (row.state == NodeState::Up).then_some(())
    });
    let changes = changes_of(&room, &name);
    assert!(changes.len() - before <= 2, "{changes:?}");
    agreed(&mut nodes, 13);
}
