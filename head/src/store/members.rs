//! The membership's tables: who this head is, the group key in force, the history. Must not open or write anything by itself.

use cid_discovery::history::{Change, State};
use cid_discovery::seal::GroupKey;
use cid_discovery::{Boot, NodeId};
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

/// One row for this head; every change of the history since its epoch began, in order; which member a machine is.
pub(super) const TABLES: &str = "CREATE TABLE cluster (
             only INTEGER PRIMARY KEY CHECK (only = 1),
             head_id BLOB NOT NULL, head_incarnation INTEGER NOT NULL,
             history_epoch INTEGER NOT NULL,
             key_epoch INTEGER NOT NULL, key BLOB NOT NULL
         ) STRICT;
         CREATE TABLE history (
             place INTEGER PRIMARY KEY,
             id BLOB NOT NULL, incarnation INTEGER NOT NULL,
             state TEXT NOT NULL, at_unix_ms INTEGER NOT NULL,
             name TEXT NOT NULL, reason TEXT NOT NULL
         ) STRICT;
         ALTER TABLE machine ADD COLUMN node_id BLOB;
         ALTER TABLE machine ADD COLUMN incarnation INTEGER NOT NULL DEFAULT 0;";

/// What a head must find again to be the same head to its members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// Itself: its incarnation rises with every start.
    pub head: Boot,
    /// Which history this is.
    pub history_epoch: u32,
    /// The group key in force.
    pub key: GroupKey,
}

pub(super) fn put_cluster(transaction: &Transaction<'_>, cluster: &Cluster) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("INSERT OR REPLACE INTO cluster VALUES (1, ?1, ?2, ?3, ?4, ?5)")?
        .execute(params![
            cluster.head.id.0.as_slice(),
            signed(cluster.head.incarnation),
            cluster.history_epoch,
            cluster.key.epoch,
            cluster.key.secret.as_slice(),
        ])?;
    Ok(())
}

pub(super) fn cluster(connection: &Connection) -> rusqlite::Result<Option<Cluster>> {
    let read = |row: &Row<'_>| {
        Ok(Cluster {
            head: Boot {
                id: NodeId(row.get("head_id")?),
                incarnation: super::schema::unsigned(row, "head_incarnation")?,
            },
            history_epoch: row.get("history_epoch")?,
            key: GroupKey {
                epoch: row.get("key_epoch")?,
                secret: row.get("key")?,
            },
        })
    };
    connection.query_row("SELECT * FROM cluster", [], read).optional()
}

/// A change that is written again stands where it stood.
pub(super) fn put_change(transaction: &Transaction<'_>, place: u32, change: &Change) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("INSERT OR REPLACE INTO history VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?
        .execute(params![
            place,
            change.boot.id.0.as_slice(),
            signed(change.boot.incarnation),
            change.state.to_string(),
            signed(change.at_unix_ms),
            change.name,
            change.reason,
        ])?;
    Ok(())
}

/// The history is another from `place` on: what stood there is dropped.
pub(super) fn cut_history(transaction: &Transaction<'_>, place: u32) -> rusqlite::Result<()> {
    transaction
        .execute("DELETE FROM history WHERE place >= ?1", [place])
        .map(drop)
}

/// Every change in order, from the first on without a gap: nothing behind a gap was ever told to anybody.
pub(super) fn history(connection: &Connection) -> rusqlite::Result<Vec<Change>> {
    let mut statement = connection.prepare("SELECT * FROM history ORDER BY place")?;
    let mut changes = Vec::new();
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let Some(change) = change_of(row)?.filter(|(place, _)| *place == changes.len()) else {
            break;
        };
        changes.push(change.1);
    }
    Ok(changes)
}

fn change_of(row: &Row<'_>) -> rusqlite::Result<Option<(usize, Change)>> {
    let word: String = row.get("state")?;
    let state = State::ALL.iter().find(|(_, name)| *name == word);
    let place: u32 = row.get("place")?;
    let Some((state, _)) = state else {
        return Ok(None);
    };
    let change = Change {
        boot: Boot {
            id: NodeId(row.get("id")?),
            incarnation: super::schema::unsigned(row, "incarnation")?,
        },
        state: *state,
        at_unix_ms: super::schema::unsigned(row, "at_unix_ms")?,
        name: row.get("name")?,
        reason: row.get("reason")?,
    };
    Ok(Some((place as usize, change)))
}

/// SQLite's integers are signed; these numbers are milliseconds since 1970.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
