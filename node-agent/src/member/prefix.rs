//! The head's history as far as this node has it, over a restart of the agent: with the head down nobody else could say what a node
//! was. Must never make anything up: what cannot be read is no history.

use cid_discovery::history::replica::Replica;
use cid_discovery::history::{Change, State};
use cid_discovery::{Boot, wire};
use serde::{Deserialize, Serialize};

use super::keep::Keep;

const FILE: &str = "history.json";

#[derive(Serialize, Deserialize)]
struct Kept {
    head_id: String,
    epoch: u32,
    length: u32,
    chain: u64,
    changes: Vec<Line>,
}

#[derive(Serialize, Deserialize)]
struct Line {
    id: String,
    incarnation: u64,
    state: String,
    at_unix_ms: u64,
    name: String,
    reason: String,
}

/// Keeps what `replica` says of every machine. A history too long for a file is not kept.
pub(super) fn keep(keep: &Keep, head_id: &str, replica: &Replica) {
    let wire::Digest { epoch, length } = replica.digest();
    let line = |change: &Change| Line {
        id: change.boot.id.to_string(),
        incarnation: change.boot.incarnation,
        state: change.state.to_string(),
        at_unix_ms: change.at_unix_ms,
        name: change.name.clone(),
        reason: change.reason.clone(),
    };
    let kept = Kept {
        head_id: head_id.to_owned(),
        epoch,
        length,
        chain: replica.chain(),
        changes: replica.table().values().map(line).collect(),
    };
    let written = serde_json::to_string(&kept)
        .map_err(std::io::Error::from)
        .and_then(|text| keep.write(FILE, &text));
    if let Err(error) = written {
        log!("cid-agent: {FILE}: {error}");
    }
}

/// What the agent before this one had of this head's history; none where it had none.
pub(super) fn kept(keep: &Keep, head_id: &str) -> Replica {
    read(keep, head_id).unwrap_or_default()
}

fn read(keep: &Keep, head_id: &str) -> Option<Replica> {
    let kept: Kept = serde_json::from_str(&keep.read(FILE)?).ok()?;
    if kept.head_id != head_id {
        return None;
    }
    let changes: Option<Vec<Change>> = kept.changes.into_iter().map(change).collect();
    let mut replica = Replica::default();
    replica.handle_epoch(kept.epoch, true);
    let place = (kept.epoch, kept.length, kept.chain);
    replica.handle_part(place, (0, 1), changes?).ok()?;
    Some(replica)
}

fn change(line: Line) -> Option<Change> {
    let state = State::ALL.iter().find(|(_, word)| *word == line.state);
    Some(Change {
        boot: Boot {
            id: super::id(&line.id).ok()?,
            incarnation: line.incarnation,
        },
        state: state?.0,
        at_unix_ms: line.at_unix_ms,
        name: line.name,
        reason: line.reason,
    })
}

#[cfg(test)]
mod tests {
    use cid_discovery::NodeId;

    use super::*;

    #[test]
    fn a_history_comes_back_whole_or_not_at_all() {
        let folder = tempfile::tempdir().expect("a folder");
        let place = Keep::new(folder.path());
        let mut replica = Replica::default();
        replica.handle_epoch(7, true);
        let changes = (1..=5).map(|number| Change {
            boot: Boot {
                id: NodeId([number % 3; 16]),
                incarnation: number.into(),
            },
            state: State::Up,
            at_unix_ms: 5,
            name: format!("lab-a0{number}"),
            reason: "joined".into(),
        });
        replica.handle_tail(7, 0, changes.collect()).expect("taken");
        keep(&place, "head", &replica);
        let back = kept(&place, "head");
        assert_eq!(back.digest(), replica.digest());
        assert_eq!((back.chain(), back.table()), (replica.chain(), replica.table()));
        assert!(kept(&place, "another head").table().is_empty());
        let text = std::fs::read_to_string(folder.path().join(FILE)).expect("kept");
        for broken in [
            text.replace("\"up\"", "\"high\""),
            text[..text.len() / 2].to_owned(),
        ] {
            std::fs::write(folder.path().join(FILE), broken).expect("written");
            assert_eq!(kept(&place, "head").digest().length, 0);
        }
    }
}
