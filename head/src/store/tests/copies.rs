//! The database's files copied while the head writes, as a backup program does it: `cid.db` first, `cid.db-wal` behind it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use cid_discovery::history::State;
use cid_discovery::{Boot, NodeId};

use super::*;

fn change(place: u32) -> Change {
    Change {
        boot: Boot {
            id: NodeId([1; 16]),
            incarnation: u64::from(place),
        },
        state: State::Up,
        at_unix_ms: u64::from(place),
        name: "lab-a01".into(),
        reason: "joined".into(),
    }
}

/// Writes until it is told to stop; says how many changes, and leases, were acknowledged.
fn write(store: &Store, stop: &AtomicBool, acknowledged: &AtomicU32) {
    let mut place = 0;
    while !stop.load(Ordering::Acquire) {
        let writes = vec![
            Write::Change(place, Box::new(change(place))),
            Write::Lease(lease(place)),
        ];
        store.submit(writes).unwrap().wait().unwrap();
        place += 1;
        acknowledged.store(place, Ordering::Release);
    }
}

/// Where the log begins anew is told by its salts (https://www.sqlite.org/fileformat2.html, 4.1): a copy that spans that moment
/// is not one of a moment, and is made again. So is one of the file alone while SQLite moved pages into it.
fn stamp(folder: &Path) -> (Vec<u8>, Option<std::time::SystemTime>) {
    let log = std::fs::read(folder.join("cid.db-wal")).unwrap_or_default();
    let moved = std::fs::metadata(folder.join(FILE)).and_then(|file| file.modified());
    (log.get(16..24).unwrap_or_default().to_vec(), moved.ok())
}

fn copy(from: &Path, files: &[&str]) -> tempfile::TempDir {
    for _ in 0..100 {
        let to = tempfile::tempdir().unwrap();
        let before = stamp(from);
        let paths = |file: &&str| -> (PathBuf, PathBuf) { (from.join(file), to.path().join(file)) };
        for (source, target) in files.iter().map(paths) {
            std::fs::copy(source, target).unwrap();
        }
        if stamp(from) == before {
            return to;
        }
    }
    panic!("a hundred copies spanned a checkpoint");
}

#[test]
fn a_copy_made_while_the_head_writes_opens_clean_and_has_what_was_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(folder.path()).unwrap();
    let (stop, acknowledged) = (AtomicBool::new(false), AtomicU32::new(0));
    let mut missing_without_log = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| write(&store, &stop, &acknowledged));
        for round in 1..=12 {
            while acknowledged.load(Ordering::Acquire) < round * 20 {
                std::thread::yield_now();
            }
            let promised = acknowledged.load(Ordering::Acquire);
            let whole = copy(folder.path(), &[FILE, "cid.db-wal"]);
            let (_opened, contents) = Store::open(whole.path()).unwrap();
            assert!(contents.history.len() >= promised as usize, "round {round}");
            for place in 0..promised {
                assert_eq!(contents.history[place as usize], change(place));
                assert!(contents.leases.contains(&lease(place)), "round {round}: {place}");
            }
            // The file alone is an earlier moment, and clean; what it lacks shows that the check above can fail.
            let alone = copy(folder.path(), &[FILE]);
            let (_opened, contents) = Store::open(alone.path()).unwrap();
            let expected: Vec<Change> = (0..).take(contents.history.len()).map(change).collect();
            assert_eq!(contents.history, expected, "round {round}: a prefix");
            missing_without_log += u32::from(contents.history.len() < promised as usize);
        }
        stop.store(true, Ordering::Release);
    });
    assert!(
        missing_without_log > 0,
        "the log never held anything: nothing was shown"
    );
}

#[test]
fn a_history_with_a_gap_ends_before_it() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(folder.path()).unwrap();
    let places = [0, 1, 2, 4, 5].map(|place| Write::Change(place, Box::new(change(place))));
    store.submit(places.into()).unwrap().wait().unwrap();
    drop(store);
    let (store, contents) = Store::open(folder.path()).unwrap();
    assert_eq!(contents.history, [change(0), change(1), change(2)]);
    // A start cuts what is behind the gap, so that nothing of it comes back later.
    store
        .submit(vec![Write::CutHistory(3), Write::Change(3, Box::new(change(3)))])
        .unwrap()
        .wait()
        .unwrap();
    drop(store);
    assert_eq!(Store::open(folder.path()).unwrap().1.history.len(), 4);
}
