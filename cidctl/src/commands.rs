//! One function per command: ask, print. Must not decide anything the head decides.

use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use cid_protocol::api::{
    AdoptRequest, DrainRequest, Event, EventList, Explanation, NodeList, NodeRow, ReleaseRequest, Status,
    UndrainRequest, WakeRequest,
};
use cid_protocol::doctor::{Checkup, Level};
use cid_protocol::trace::Trace;
use serde::Serialize;

use crate::client::{Client, encode};
use crate::{Command, firewall, hours, image, node, print, tell, top, wake};

/// How often the head is asked again by `--watch` and `--follow`.
const AGAIN: Duration = Duration::from_secs(1);

pub(crate) async fn run(client: &Client, command: Command) -> Result<()> {
    match command {
        Command::Documents(documents) => Ok(documents.write::<crate::Cli>("1")?),
        Command::Nodes {
            nodeset,
            why,
            json,
            watch,
        } => {
            let table = if why { print::reasons } else { print::table };
            nodes(client, nodeset, json.json, watch, table).await
        }
        Command::Top { nodeset, once, json } => top::run(client, nodeset, once, json.json).await,
        Command::Adopt {
            seen,
            group,
            name,
            json,
        } => {
            let list: NodeList = client
                .post(
                    "/v1/adopt",
                    &AdoptRequest {
                        machines: seen,
                        group,
                        name,
                    },
                )
                .await?;
            show_changed(&list, json.json)
        }
        Command::Explain { machine, json } => {
            let explanation: Explanation = client
                .get(&format!("/v1/explain/{}", encode(&machine)), &[])
                .await?;
            if json.json {
                document(&explanation)
            } else {
                write(&print::explanation(&explanation))
            }
        }
        Command::Doctor { json } => doctor(client, json.json).await,
        Command::Trace { machine, all, json } => trace(client, &machine, all, json.json).await,
        Command::Drain {
            nodeset,
            reason,
            json,
        } => {
            let request = DrainRequest { nodeset, reason };
            show_changed(&client.post("/v1/drain", &request).await?, json.json)
        }
        Command::Undrain { nodeset, json } => {
            let request = UndrainRequest { nodeset };
            show_changed(&client.post("/v1/undrain", &request).await?, json.json)
        }
        Command::Release { nodeset, json } => show_changed(
            &client.post("/v1/release", &ReleaseRequest { nodeset }).await?,
            json.json,
        ),
        Command::Wake {
            nodeset,
            wait: true,
            timeout,
            json,
        } => {
            let report = wake::wake_and_wait(client, nodeset, timeout).await?;
            if json.json {
                document(&report)?;
            } else {
                write(&wake::text(&report))?;
            }
            wake::verdict(&report)
        }
        Command::Wake { nodeset, json, .. } => show_changed(
            &client.post("/v1/wake", &WakeRequest { nodeset }).await?,
            json.json,
        ),
        // Its status is not ours: `main` starts it.
        Command::Run(_) => Ok(()),
        Command::Hours(hours) => hours::run(client, hours).await,
        Command::Image { command } => image::run(client, command).await,
        Command::Events {
            follow,
            after,
            limit,
            json,
        } => events(client, follow, after, limit, json.json).await,
        Command::Status { json } => {
            let status: Status = client.get("/v1/status", &[]).await?;
            if json.json {
                document(&status)
            } else {
                write(&print::status(&status))
            }
        }
    }
}

/// A node answers in the head's place. It knows who is there, and nothing else.
pub(crate) fn ask_node(address: &str, identity: &Path, command: Command) -> Result<()> {
    let Command::Nodes {
        nodeset: None,
        // Its table says both for every machine.
        why: _,
        json,
        watch: false,
    } = command
    else {
        anyhow::bail!(
            "a node answers `nodes` without a node set and --watch, and nothing else; ask the head, without --node"
        );
    };
    let answer = node::nodes(address, identity)?;
    if json.json {
        document(&answer)
    } else {
        write(&node::table(&answer, print::now()))
    }
}

async fn doctor(client: &Client, json: bool) -> Result<()> {
    let mut checkup: Checkup = client.get("/v1/doctor", &[]).await?;
    checkup.findings.push(firewall::examine());
    if json {
        document(&checkup)?;
    } else {
        write(&tell::checkup(&checkup))?;
    }
    let failed = checkup
        .findings
        .iter()
        .filter(|finding| finding.level == Level::Fail);
    match failed.count() {
        0 => Ok(()),
        1 => anyhow::bail!("one thing must be mended before PCs boot"),
        count => anyhow::bail!("{count} things must be mended before PCs boot"),
    }
}

async fn trace(client: &Client, machine: &str, all: bool, json: bool) -> Result<()> {
    let trace: Trace = client.get(&format!("/v1/trace/{}", encode(machine)), &[]).await?;
    if json {
        document(&trace)?;
    } else {
        write(&tell::trace(&trace, all))?;
    }
    if trace.diagnosis.fault {
        anyhow::bail!("{}: {}", trace.name, trace.diagnosis.verdict);
    }
    Ok(())
}

async fn nodes(
    client: &Client,
    nodeset: Option<String>,
    json: bool,
    watch: bool,
    table: fn(&[NodeRow], u64) -> String,
) -> Result<()> {
    let query: Vec<(&str, String)> = nodeset.into_iter().map(|nodeset| ("nodeset", nodeset)).collect();
    let mut last = String::new();
    loop {
        let list: NodeList = client.get("/v1/nodes", &query).await?;
        let text = if json {
            format!("{}\n", serde_json::to_string_pretty(&list)?)
        } else {
            table(&list.nodes, print::now())
        };
        // Ages change every second; a table is printed again when anything else did.
        let comparable = if json { text.clone() } else { table(&list.nodes, 0) };
        if comparable != last {
            if !last.is_empty() && !json {
                write("\n")?;
            }
            write(&text)?;
            last = comparable;
        }
        if !watch {
            return Ok(());
        }
        tokio::time::sleep(AGAIN).await;
    }
}

fn show_changed(list: &NodeList, json: bool) -> Result<()> {
    if json {
        document(list)
    } else {
        write(&print::table(&list.nodes, print::now()))
    }
}

async fn events(client: &Client, follow: bool, after: Option<u64>, limit: u32, json: bool) -> Result<()> {
    let mut after = after;
    loop {
        let mut query = vec![("limit", limit.to_string())];
        query.extend(after.map(|after| ("after", after.to_string())));
        let list: EventList = client.get("/v1/events", &query).await?;
        for event in &list.events {
            write(&event_line(event, json)?)?;
        }
        after = list.events.last().map(|event| event.seq).or(after).or(Some(0));
        if !follow {
            return Ok(());
        }
        if list.events.is_empty() {
            tokio::time::sleep(AGAIN).await;
        }
    }
}

fn event_line(event: &Event, json: bool) -> Result<String> {
    if json {
        Ok(format!("{}\n", serde_json::to_string(event)?))
    } else {
        Ok(print::event(event))
    }
}

pub(crate) fn document(value: &impl Serialize) -> Result<()> {
    write(&format!("{}\n", serde_json::to_string_pretty(value)?))
}

/// To stdout, at once: a reader of a pipe sees each answer when it comes.
pub(crate) fn write(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}
