//! What was acknowledged is there again, whatever happened to the process; what cannot be used says why.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use cid_protocol::api::NodeState;

use super::*;
use crate::hours::{Exception, Kind};
use crate::registry::Opened;

mod copies;

fn lease(number: u32) -> Lease {
    let [_, b, c, d] = number.to_be_bytes();
    Lease {
        mac: Mac([0x52, 0x54, 0, b, c, d]),
        address: std::net::Ipv4Addr::new(10, b, c, d),
        expires_unix: 1_800_000_000,
    }
}

fn record(number: u8) -> Record {
    let mut record = Record::seen(Mac([0x52, 0x54, 0, 0, 0, number]), 1_700_000_000);
    record.address = Some(std::net::Ipv4Addr::new(10, 77, 0, number));
    record.state = NodeState::GoingHome;
    record.hold = Some("released".into());
    record.hold_until = Some(1_800_000_000);
    record.drain = Some("its fan is loud".into());
    record.failed_boots = 2;
    record.hardware = Some(Box::default());
    record
}

fn group(opened: Option<Opened>) -> GroupRecord {
    let second = |second| jiff::Timestamp::from_second(second).unwrap();
    let exception = Exception {
        kind: Kind::Closed,
        from: second(1_700_000_000),
        until: second(1_700_003_600),
    };
    GroupRecord {
        exception: Some(exception),
        opened,
        leave: Some(second(1_700_000_060)),
    }
}

#[test]
fn what_is_kept_of_groups_comes_back_and_nothing_leaves_no_row() {
    let folder = tempfile::tempdir().unwrap();
    let ends = Some(Opened {
        until: jiff::Timestamp::from_second(1_700_000_060).ok(),
    });
    let rows = [
        ("always", group(Some(Opened { until: None }))),
        ("lab-a", group(ends)),
    ];
    let (store, _) = Store::open(folder.path()).unwrap();
    let mut writes: Vec<Write> = rows
        .iter()
        .map(|(name, record)| Write::Group((*name).to_owned(), *record))
        .collect();
    writes.push(Write::Group("gone".into(), group(None)));
    writes.push(Write::Group("gone".into(), GroupRecord::default()));
    store.submit(writes).unwrap().wait().unwrap();
    drop(store);
    let (_store, contents) = Store::open(folder.path()).unwrap();
    let expected = rows.map(|(name, record)| (name.to_owned(), record));
    assert_eq!(contents.groups, expected);
}

/// A database of the version before exceptions keeps its machines, with nothing in the new columns.
#[test]
fn a_database_without_groups_is_brought_up_to_date() {
    let folder = tempfile::tempdir().unwrap();
    let mut connection = Connection::open(folder.path().join(FILE)).unwrap();
    schema::migrations().to_version(&mut connection, 2).unwrap();
    let row = "INSERT INTO machine VALUES (x'525400000001', NULL, NULL, NULL, NULL, NULL, 'lab-a01', 'lab-a', 1, 2, NULL,
               'released', 0, 0, 'home', 'released', 3, NULL, NULL, NULL)";
    connection.execute(row, []).unwrap();
    drop(connection);
    let (_store, contents) = Store::open(folder.path()).unwrap();
    let machine = &contents.machines[0];
    let kept = (machine.hold.as_deref(), machine.hold_until, &machine.drain);
    assert_eq!(kept, (Some("released"), None, &None));
    assert!(contents.groups.is_empty());
}

#[test]
fn everything_comes_back_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let (store, contents) = Store::open(folder.path()).unwrap();
    assert!(contents.machines.is_empty() && contents.leases.is_empty());
    let event = Event {
        seq: 0,
        time_unix_ms: 5,
        mac: String::new(),
        name: String::new(),
        kind: "k".into(),
        text: "t".into(),
    };
    let writes = vec![
        Write::Machine(Box::new(record(1))),
        Write::Lease(lease(7)),
        Write::Event(event.clone()),
    ];
    store.submit(writes).unwrap().wait().unwrap();
    store.submit(vec![Write::Event(event)]).unwrap().wait().unwrap();
    assert_eq!(
        store
            .events(None, 10)
            .unwrap()
            .iter()
            .map(|event| event.seq)
            .collect::<Vec<_>>(),
        [1, 2]
    );
    assert_eq!(store.events(Some(1), 10).unwrap().len(), 1);
    drop(store);
    let (_store, contents) = Store::open(folder.path()).unwrap();
    assert_eq!(contents.machines, [record(1)]);
    assert_eq!(contents.leases, [lease(7)]);
}

#[test]
fn an_address_has_one_lease() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(folder.path()).unwrap();
    let second = Lease {
        mac: Mac([2, 0, 0, 0, 0, 9]),
        ..lease(7)
    };
    store
        .submit(vec![Write::Lease(lease(7)), Write::Lease(second)])
        .unwrap()
        .wait()
        .unwrap();
    drop(store);
    assert_eq!(Store::open(folder.path()).unwrap().1.leases, [second]);
}

#[test]
fn late_writes_are_there_after_a_clean_stop_and_never_overtake() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(folder.path()).unwrap();
    let mut newer = record(1);
    newer.last_seen += 100;
    store.submit_lazily(vec![Write::Machine(Box::new(record(1)))]);
    store
        .submit(vec![Write::Machine(Box::new(newer.clone()))])
        .unwrap()
        .wait()
        .unwrap();
    store.submit_lazily(vec![Write::Machine(Box::new(record(2)))]);
    drop(store);
    assert_eq!(Store::open(folder.path()).unwrap().1.machines, [newer, record(2)]);
}

#[test]
fn one_head_per_state_folder() {
    let folder = tempfile::tempdir().unwrap();
    let _first = Store::open(folder.path()).unwrap();
    let error = Store::open(folder.path()).err().unwrap();
    assert!(
        error.to_string().starts_with("another cidhead runs on "),
        "{error}"
    );
}

#[test]
fn a_newer_database_and_a_damaged_one_are_refused_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    drop(Store::open(folder.path()).unwrap());
    let connection = Connection::open(folder.path().join(FILE)).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    let error = Store::open(folder.path()).err().unwrap().to_string();
    assert!(
        error.contains("newer cidhead") && !error.contains('\n'),
        "{error}"
    );

    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(FILE), [b'x'; 8_192]).unwrap();
    let error = Store::open(folder.path()).err().unwrap().to_string();
    assert!(error.contains("damaged") && !error.contains('\n'), "{error}");
}

/// The child half of the next test: commits leases one by one and prints each number once it is acknowledged.
#[test]
fn child_that_commits_until_killed() {
    let Ok(folder) = std::env::var("CID_TEST_STORE") else {
        return;
    };
    let (store, contents) = Store::open(Path::new(&folder)).unwrap();
    let first = contents.leases.len() as u32;
    // Eight in flight, so that commits carry several.
    let mut flying: std::collections::VecDeque<(u32, Commit)> = std::collections::VecDeque::new();
    for number in first.. {
        flying.push_back((number, store.submit(vec![Write::Lease(lease(number))]).unwrap()));
        if flying.len() == 8 {
            let (number, commit) = flying.pop_front().unwrap();
            commit.wait().unwrap();
            println!("acknowledged {number}");
        }
    }
}

#[test]
fn kill_9_loses_nothing_that_was_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let mut expected = 0;
    for round in 0..10 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "store::tests::child_that_commits_until_killed",
                "--exact",
                "--nocapture",
            ])
            .env("CID_TEST_STORE", folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut last = None;
        let numbers = lines
            .map_while(Result::ok)
            .filter_map(|line| line.strip_prefix("acknowledged ")?.parse().ok());
        for (count, number) in numbers.enumerate() {
            last = Some(number);
            // Killed at another moment in each round; the pipe is read to its end, so every acknowledgement counts.
            if count == 20 + round * 7 {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        let last: u32 = last.expect("the child acknowledged something");
        let (_store, contents) = Store::open(folder.path()).unwrap();
        assert!(last >= expected, "round {round}");
        for number in 0..=last {
            assert!(
                contents.leases.contains(&lease(number)),
                "round {round}: {number} of {last} was acknowledged and is gone"
            );
        }
        expected = last;
    }
}

/// `cidctl trace` tells the same after a restart of the head, and what happens then comes behind it.
#[test]
fn timelines_go_on_over_a_restart() {
    use crate::timeline::Timelines;
    use cid_protocol::trace::What;
    let folder = tempfile::tempdir().unwrap();
    let (mac, other) = (record(1).mac, record(2).mac);
    let left = |reason: &str| What::Left {
        reason: reason.into(),
    };
    let joined = What::Joined {
        name: "lab-a01".into(),
        again: false,
    };
    let mut before = Timelines::default();
    let (store, _) = Store::open(folder.path()).unwrap();
    for (at, about, what) in [
        (10, mac, joined),
        (20, mac, left("released")),
        (30, other, left("key")),
    ] {
        let step = before.add(at, Some(about), what).unwrap();
        let write = Write::Step(Some(about), Box::new(step));
        store.submit(vec![write]).unwrap().wait().unwrap();
    }
    // The control: a step that was not written is not there after the restart.
    before.add(40, Some(other), left("lost"));
    drop(store);
    let (_store, contents) = Store::open(folder.path()).unwrap();
    let mut after = Timelines::new(contents.steps);
    assert_eq!(after.of(mac).len(), 2);
    assert_eq!(after.of(mac), before.of(mac));
    assert_ne!(after.of(other), before.of(other));
    after.add(50, Some(mac), left("silence"));
    let last = after.of(mac).pop().map(|step| step.what);
    assert_eq!(last, Some(left("silence")));
}
