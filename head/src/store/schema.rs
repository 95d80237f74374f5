//! The tables, and rows to values and back. Must not open or write anything by itself.

use std::net::Ipv4Addr;

use cid_discovery::NodeId;
use cid_protocol::api::{Event, NodeState};
use cid_protocol::trace::Step;
use rusqlite::{Connection, OptionalExtension as _, Row, Transaction, named_params, params};
use rusqlite_migration::{M, Migrations};

use jiff::Timestamp;

use crate::hours::{Exception, Kind};
use crate::mac::Mac;
use crate::registry::{Credential, GroupRecord, ImagesRecord, Opened, Record, STATES, state_word};
use crate::store::Lease;

/// Events kept; older ones make room.
pub(super) const MAX_EVENTS: i64 = 100_000;
/// Steps kept of each machine's timeline.
const MAX_STEPS: i64 = 64;

/// Every step from an empty file to this version. Steps are added at the end, never changed.
pub(super) fn migrations() -> Migrations<'static> {
    Migrations::new(vec![
        M::up(FIRST),
        M::up(TIMELINES),
        M::up(HOURS),
        M::up(LEAVE),
        M::up(TRUST),
        M::up(super::members::TABLES),
        M::up(IMAGES),
    ])
}

const FIRST: &str = "CREATE TABLE lease (
             mac BLOB PRIMARY KEY,
             address INTEGER NOT NULL UNIQUE,
             expires_unix INTEGER NOT NULL
         ) STRICT;
         CREATE TABLE machine (
             mac BLOB PRIMARY KEY,
             uuid TEXT, product TEXT, firmware TEXT, door TEXT,
             address INTEGER,
             name TEXT,
             grp TEXT,
             first_seen INTEGER NOT NULL, last_seen INTEGER NOT NULL,
             decision TEXT,
             hold TEXT,
             failed_boots INTEGER NOT NULL,
             session_counted INTEGER NOT NULL,
             state TEXT NOT NULL, reason TEXT NOT NULL, since INTEGER NOT NULL,
             boot_id TEXT, image TEXT,
             hardware TEXT
         ) STRICT;
         CREATE TABLE event (
             seq INTEGER PRIMARY KEY AUTOINCREMENT,
             time_unix_ms INTEGER NOT NULL,
             mac TEXT NOT NULL, name TEXT NOT NULL, kind TEXT NOT NULL, text TEXT NOT NULL
         ) STRICT;";

/// A blob of no bytes stands for all machines.
const TIMELINES: &str = "CREATE TABLE step (
             id INTEGER PRIMARY KEY AUTOINCREMENT,
             mac BLOB NOT NULL,
             step TEXT NOT NULL
         ) STRICT;
         CREATE INDEX step_by_mac ON step (mac, id);";

/// `exception` is `open`, `closed` or nothing; `opened` whether the group's opening is known, with its end.
const HOURS: &str = "CREATE TABLE grp (
             name TEXT PRIMARY KEY,
             exception TEXT, from_unix INTEGER, until_unix INTEGER,
             opened INTEGER NOT NULL, opened_until INTEGER
         ) STRICT;
         ALTER TABLE machine ADD COLUMN hold_until INTEGER;
         ALTER TABLE machine ADD COLUMN drain TEXT;";

const LEAVE: &str = "ALTER TABLE grp ADD COLUMN leave_unix INTEGER;";

/// The head accepts a node by its row here alone. `leaf` is the certificate in force, DER, or of no bytes when there is none.
const TRUST: &str = "CREATE TABLE credential (
             mac BLOB PRIMARY KEY,
             node BLOB NOT NULL,
             redeemed_unix_ms INTEGER NOT NULL,
             nonce BLOB NOT NULL,
             key_sha256 BLOB NOT NULL,
             leaf BLOB NOT NULL
         ) STRICT;";

/// One row: what groups and machines boot, under which sequence it was promised, the update under way.
const IMAGES: &str = "CREATE TABLE images (
             id INTEGER PRIMARY KEY CHECK (id = 1),
             kept TEXT NOT NULL
         ) STRICT;
         ALTER TABLE machine ADD COLUMN boot_again TEXT;";

pub(super) fn put_images(transaction: &Transaction<'_>, images: &ImagesRecord) -> rusqlite::Result<()> {
    let text = serde_json::to_string(images)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))?;
    transaction
        .prepare_cached("INSERT OR REPLACE INTO images VALUES (1, ?1)")?
        .execute([text])?;
    Ok(())
}

pub(super) fn images(connection: &Connection) -> rusqlite::Result<ImagesRecord> {
    let kept: Option<String> = connection
        .query_row("SELECT kept FROM images", [], |row| row.get(0))
        .optional()?;
    match kept.map(|text| serde_json::from_str(&text)) {
        None => Ok(ImagesRecord::default()),
        Some(Ok(images)) => Ok(images),
        // A sequence that begins anew would break a promise: better not to start.
        Some(Err(error)) => Err(rusqlite::Error::FromSqlConversionFailure(
            0,
            rusqlite::types::Type::Text,
            Box::new(error),
        )),
    }
}

pub(super) fn put_credential(
    transaction: &Transaction<'_>,
    mac: Mac,
    credential: &Credential,
) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("INSERT OR REPLACE INTO credential VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?
        .execute(params![
            mac.0.as_slice(),
            credential.node.as_slice(),
            credential.redeemed_unix_ms as i64,
            credential.nonce.as_slice(),
            credential.key.as_slice(),
            credential.leaf,
        ])?;
    Ok(())
}

pub(super) fn credentials(connection: &Connection) -> rusqlite::Result<Vec<(Mac, Credential)>> {
    let mut statement = connection.prepare("SELECT * FROM credential ORDER BY mac")?;
    let credential_of = |row: &Row<'_>| {
        let credential = Credential {
            node: row.get("node")?,
            redeemed_unix_ms: unsigned(row, "redeemed_unix_ms")?,
            nonce: row.get("nonce")?,
            key: row.get("key_sha256")?,
            leaf: row.get("leaf")?,
        };
        Ok((Mac(row.get("mac")?), credential))
    };
    statement.query_map([], credential_of)?.collect()
}

pub(super) fn put_machine(transaction: &Transaction<'_>, record: &Record) -> rusqlite::Result<()> {
    let hardware = record
        .hardware
        .as_ref()
        .and_then(|hardware| serde_json::to_string(hardware).ok());
    transaction
        .prepare_cached(
            "INSERT OR REPLACE INTO machine VALUES (:mac, :uuid, :product, :firmware, :door, :address, :name, :grp,
             :first_seen, :last_seen, :decision, :hold, :failed_boots, :session_counted, :state, :reason, :since,
             :boot_id, :image, :hardware, :hold_until, :drain, :node_id, :incarnation, :boot_again)",
        )?
        .execute(named_params! {
            ":mac": record.mac.0.as_slice(),
            ":uuid": record.uuid, ":product": record.product, ":firmware": record.firmware, ":door": record.door,
            ":address": record.address.map(Ipv4Addr::to_bits),
            ":name": record.name, ":grp": record.group,
            ":first_seen": record.first_seen as i64, ":last_seen": record.last_seen as i64,
            ":decision": record.decision, ":hold": record.hold,
            ":failed_boots": record.failed_boots, ":session_counted": record.session_counted,
            ":state": state_word(record.state), ":reason": record.reason, ":since": record.since as i64,
            ":boot_id": record.boot_id, ":image": record.image, ":hardware": hardware,
            ":hold_until": record.hold_until.map(|at| at as i64), ":drain": record.drain,
            ":node_id": record.node_id.map(|id| id.0.to_vec()), ":incarnation": record.incarnation as i64,
            ":boot_again": record.boot_again,
        })?;
    Ok(())
}

pub(super) fn forget_machine(transaction: &Transaction<'_>, mac: Mac) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("DELETE FROM machine WHERE mac = ?1")?
        .execute([mac.0.as_slice()])?;
    transaction
        .prepare_cached("DELETE FROM step WHERE mac = ?1")?
        .execute([mac.0.as_slice()])?;
    transaction
        .prepare_cached("DELETE FROM credential WHERE mac = ?1")?
        .execute([mac.0.as_slice()])?;
    Ok(())
}

pub(super) fn put_step(
    transaction: &Transaction<'_>,
    about: Option<Mac>,
    step: &Step,
) -> rusqlite::Result<()> {
    let Ok(text) = serde_json::to_string(step) else {
        return Ok(());
    };
    let mac = about.map(|mac| mac.0.to_vec()).unwrap_or_default();
    transaction
        .prepare_cached("INSERT INTO step (mac, step) VALUES (?1, ?2)")?
        .execute(params![mac, text])?;
    transaction
        .prepare_cached(
            "DELETE FROM step WHERE mac = ?1 AND id <=
             (SELECT id FROM step WHERE mac = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)",
        )?
        .execute(params![mac, MAX_STEPS])?;
    Ok(())
}

/// Oldest first. A step of a kind that this version does not know is passed over.
pub(super) fn steps(connection: &Connection) -> rusqlite::Result<Vec<(Option<Mac>, Step)>> {
    let mut statement = connection.prepare("SELECT mac, step FROM step ORDER BY id")?;
    let step_of = |row: &Row<'_>| {
        let mac: Vec<u8> = row.get("mac")?;
        let step: String = row.get("step")?;
        let step = serde_json::from_str(&step).ok();
        Ok(step.map(|step| (mac.try_into().ok().map(Mac), step)))
    };
    let rows = statement.query_map([], step_of)?;
    rows.filter_map(Result::transpose).collect()
}

pub(super) fn put_lease(transaction: &Transaction<'_>, lease: &Lease) -> rusqlite::Result<()> {
    let values = params![
        lease.mac.0.as_slice(),
        lease.address.to_bits(),
        lease.expires_unix as i64
    ];
    // A renewal, which is what a storm consists of, changes one row in place; replacing it would move it in both indexes too.
    let renewed = transaction
        .prepare_cached("UPDATE lease SET expires_unix = ?3 WHERE mac = ?1 AND address = ?2")?
        .execute(values)?;
    if renewed == 0 {
        transaction
            .prepare_cached("INSERT OR REPLACE INTO lease VALUES (?1, ?2, ?3)")?
            .execute(values)?;
    }
    Ok(())
}

pub(super) fn put_event(transaction: &Transaction<'_>, event: &Event) -> rusqlite::Result<()> {
    transaction
        .prepare_cached(
            "INSERT INTO event (time_unix_ms, mac, name, kind, text) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![
            event.time_unix_ms as i64,
            event.mac,
            event.name,
            event.kind,
            event.text
        ])?;
    let seq = transaction.last_insert_rowid();
    if seq % 512 == 0 {
        transaction.execute("DELETE FROM event WHERE seq <= ?1", [seq - MAX_EVENTS])?;
    }
    Ok(())
}

/// A group of which nothing is to be kept has no row.
pub(super) fn put_group(
    transaction: &Transaction<'_>,
    name: &str,
    group: &GroupRecord,
) -> rusqlite::Result<()> {
    if *group == GroupRecord::default() {
        let mut delete = transaction.prepare_cached("DELETE FROM grp WHERE name = ?1")?;
        return delete.execute([name]).map(drop);
    }
    let exception = group.exception.as_ref();
    transaction
        .prepare_cached("INSERT OR REPLACE INTO grp VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?
        .execute(params![
            name,
            exception.map(|exception| exception.kind.word()),
            exception.map(|exception| exception.from.as_second()),
            exception.map(|exception| exception.until.as_second()),
            group.opened.is_some(),
            group
                .opened
                .and_then(|opened| opened.until)
                .map(|until| until.as_second()),
            group.leave.map(|leave| leave.as_second()),
        ])?;
    Ok(())
}

pub(super) fn groups(connection: &Connection) -> rusqlite::Result<Vec<(String, GroupRecord)>> {
    let mut statement = connection.prepare("SELECT * FROM grp ORDER BY name")?;
    statement.query_map([], group_of)?.collect()
}

fn group_of(row: &Row<'_>) -> rusqlite::Result<(String, GroupRecord)> {
    let moment = |column: &str| {
        let second: Option<i64> = row.get(column)?;
        Ok::<_, rusqlite::Error>(second.and_then(|second| Timestamp::from_second(second).ok()))
    };
    let kind: Option<String> = row.get("exception")?;
    let kind = [Kind::Open, Kind::Closed]
        .into_iter()
        .find(|known| kind.as_deref() == Some(known.word()));
    let exception = match (kind, moment("from_unix")?, moment("until_unix")?) {
        (Some(kind), Some(from), Some(until)) => Some(Exception { kind, from, until }),
        _ => None,
    };
    let (opened, until) = (row.get("opened")?, moment("opened_until")?);
    let opened = Some(Opened { until }).filter(|_| opened);
    let leave = moment("leave_unix")?;
    let group = GroupRecord {
        exception,
        opened,
        leave,
    };
    Ok((row.get("name")?, group))
}

pub(super) fn machines(connection: &Connection) -> rusqlite::Result<Vec<Record>> {
    let mut statement = connection.prepare("SELECT * FROM machine ORDER BY mac")?;
    statement.query_map([], machine_of)?.collect()
}

pub(super) fn leases(connection: &Connection) -> rusqlite::Result<Vec<Lease>> {
    let mut statement = connection.prepare("SELECT * FROM lease ORDER BY address")?;
    let lease_of = |row: &Row<'_>| {
        Ok(Lease {
            mac: Mac(row.get("mac")?),
            address: Ipv4Addr::from_bits(row.get("address")?),
            expires_unix: unsigned(row, "expires_unix")?,
        })
    };
    statement.query_map([], lease_of)?.collect()
}

pub(super) fn events(connection: &Connection, after: u64, limit: u32) -> rusqlite::Result<Vec<Event>> {
    let mut statement =
        connection.prepare_cached("SELECT * FROM event WHERE seq > ?1 ORDER BY seq LIMIT ?2")?;
    statement
        .query_map(params![i64::try_from(after).unwrap_or(i64::MAX), limit], event_of)?
        .collect()
}

/// The newest ones, oldest first.
pub(super) fn last_events(connection: &Connection, limit: u32) -> rusqlite::Result<Vec<Event>> {
    let mut statement = connection
        .prepare_cached("SELECT * FROM (SELECT * FROM event ORDER BY seq DESC LIMIT ?1) ORDER BY seq")?;
    statement.query_map([limit], event_of)?.collect()
}

fn event_of(row: &Row<'_>) -> rusqlite::Result<Event> {
    Ok(Event {
        seq: unsigned(row, "seq")?,
        time_unix_ms: unsigned(row, "time_unix_ms")?,
        mac: row.get("mac")?,
        name: row.get("name")?,
        kind: row.get("kind")?,
        text: row.get("text")?,
    })
}

fn machine_of(row: &Row<'_>) -> rusqlite::Result<Record> {
    let state: String = row.get("state")?;
    let hardware: Option<String> = row.get("hardware")?;
    Ok(Record {
        mac: Mac(row.get("mac")?),
        uuid: row.get("uuid")?,
        product: row.get("product")?,
        firmware: row.get("firmware")?,
        door: row.get("door")?,
        address: row.get::<_, Option<u32>>("address")?.map(Ipv4Addr::from_bits),
        name: row.get("name")?,
        group: row.get("grp")?,
        first_seen: unsigned(row, "first_seen")?,
        last_seen: unsigned(row, "last_seen")?,
        decision: row.get("decision")?,
        hold: row.get("hold")?,
        hold_until: row
            .get::<_, Option<i64>>("hold_until")?
            .map(|at| at.max(0).cast_unsigned()),
        drain: row.get("drain")?,
        boot_again: row.get("boot_again")?,
        failed_boots: row.get("failed_boots")?,
        session_counted: row.get("session_counted")?,
        // A state that a later version removed: the machine is known, the next packet says what it is.
        state: STATES
            .into_iter()
            .find(|known| state_word(*known) == state)
            .unwrap_or(NodeState::Known),
        reason: row.get("reason")?,
        since: unsigned(row, "since")?,
        boot_id: row.get("boot_id")?,
        image: row.get("image")?,
        // A report of an earlier shape is not worth refusing the machine for.
        hardware: hardware.and_then(|text| serde_json::from_str(&text).ok()),
        node_id: row.get::<_, Option<[u8; 16]>>("node_id")?.map(NodeId),
        incarnation: unsigned(row, "incarnation")?,
    })
}

pub(super) fn unsigned(row: &Row<'_>, column: &str) -> rusqlite::Result<u64> {
    Ok(row.get::<_, i64>(column)?.max(0).cast_unsigned())
}
