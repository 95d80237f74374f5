//! `cidctl image`: versions of images, who boots which, rolling updates. Must not decide anything; it watches what the head does.

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use cid_protocol::images::{
    CollectRequest, Collected, GroupImageRow, ImageList, ImportImageRequest, RollPhase, RollReport,
    RollRequest, RollRow, RollState, RollbackRequest, SetImageRequest, StopRollRequest,
};
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::client::{Client, ClientError};
use crate::print::{age, columns, now, plain};
use crate::{Json, commands, wake};

/// How often the head is asked.
const LOOK: Duration = Duration::from_secs(1);

/// What stands behind `image`.
#[derive(Debug, Subcommand)]
pub(crate) enum Image {
    /// List versions: size, age, which groups boot them, how many nodes run them; and what each group boots.
    List {
        #[command(flatten)]
        json: Json,
    },
    /// Take a built image in as a version. Builds that a group names are taken in by themselves.
    #[command(
        after_help = "Example: cidbuild image compute --out build/images; cidctl image import build/images/compute\n\
                      The same bytes are the same version. Nothing boots it before `image set` or `image roll`, but groups that follow."
    )]
    Import {
        /// Folder of the image, with its manifest.json, on the head's machine.
        folder: PathBuf,
        #[command(flatten)]
        json: Json,
    },
    /// Have a group boot a version, from the next boot of each PC on. Nobody is restarted: that is `image roll`.
    #[command(
        after_help = "Examples:\n  cidctl image set lab-a compute@3\n  cidctl image set lab-a compute --follow\n\
                      A group that nothing was set for follows: it boots the newest version of the image that head.toml names."
    )]
    Set {
        /// A group of head.toml.
        group: String,
        /// NAME@VERSION, or NAME for its newest version.
        image: String,
        /// Boot every newer version as soon as there is one.
        #[arg(long)]
        follow: bool,
        #[command(flatten)]
        json: Json,
    },
    /// Restart nodes into another version, a few at a time; stop at the first that does not become healthy, and take it back.
    #[command(
        after_help = "Examples:\n  cidctl image roll @lab-a compute@3 --keep-up 3\n  cidctl image roll @lab-a --at-a-time 4\n  \
                      cidctl image roll            watch the update under way\n  cidctl image roll --stop\n\
                      Without an image: what the nodes' group boots. Each node finishes its work within its group's `patience`, restarts\n\
                      and must stay `up` for --healthy. PCs that are not up boot the version when they boot next. Ctrl-C leaves the update\n\
                      going; it also outlives a restart of the head. When all nodes of a group are through, the group boots the version.\n\
                      Exit code 1 when it failed or was stopped."
    )]
    Roll(Roll),
    /// Have a group boot what it booted before, from the next boot of each PC on; a second rollback takes the first one back.
    Rollback {
        /// A group of head.toml.
        group: String,
        #[command(flatten)]
        json: Json,
    },
    /// Remove versions that nobody needs: no group, node, update or rollback, and not among the newest.
    Gc {
        /// Newest versions of each image that stay.
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
        keep: u32,
        /// Only say what would go.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        json: Json,
    },
}

/// What stands behind `image roll`.
#[derive(Debug, Args)]
pub(crate) struct Roll {
    /// Which nodes; without it, the update under way is shown until it ends.
    nodeset: Option<String>,
    /// NAME@VERSION, or NAME for its newest version.
    image: Option<String>,
    /// Nodes that may be on their way at once.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    at_a_time: u32,
    /// Begin a node only while so many of them stay up.
    #[arg(long, default_value_t = 0, value_name = "N")]
    keep_up: u32,
    /// How long a node must stay up until the next is begun.
    #[arg(long, default_value = "30s", value_parser = wake::duration)]
    healthy: Duration,
    /// Begin no further node; those on their way are waited for.
    #[arg(long, conflicts_with_all = ["nodeset", "image"])]
    stop: bool,
    /// Return as soon as the update has begun.
    #[arg(long)]
    detach: bool,
    #[command(flatten)]
    json: Json,
}

pub(crate) async fn run(client: &Client, image: Image) -> Result<()> {
    match image {
        Image::List { json } => show(&client.get("/v1/images", &[]).await?, json),
        Image::Import { folder, json } => {
            let folder = std::path::absolute(&folder).context("the folder has no path")?;
            let folder = folder.to_string_lossy().into_owned();
            let list: ImageList = client
                .post("/v1/images/import", &ImportImageRequest { folder })
                .await?;
            show(&list, json)
        }
        Image::Set {
            group,
            image,
            follow,
            json,
        } => {
            let request = SetImageRequest { group, image, follow };
            show_groups(&client.post("/v1/images/set", &request).await?, json)
        }
        Image::Rollback { group, json } => {
            let request = RollbackRequest { group };
            show_groups(&client.post("/v1/images/rollback", &request).await?, json)
        }
        Image::Gc { keep, dry_run, json } => {
            let request = CollectRequest { keep, dry_run };
            let collected: Collected = client.post("/v1/images/gc", &request).await?;
            if json.json {
                return commands::document(&collected);
            }
            commands::write(&collection(&collected))
        }
        Image::Roll(asked) => roll(client, asked).await,
    }
}

fn show(list: &ImageList, json: Json) -> Result<()> {
    if json.json {
        return commands::document(list);
    }
    commands::write(&table(list, now()))
}

fn show_groups(list: &ImageList, json: Json) -> Result<()> {
    if json.json {
        return commands::document(list);
    }
    commands::write(&groups(&list.groups))
}

fn table(list: &ImageList, now: u64) -> String {
    let mut rows = vec![["IMAGE", "SIZE", "AGE", "NODES", "GROUPS", "KEPT BECAUSE"].map(str::to_owned)];
    rows.extend(list.images.iter().map(|row| {
        [
            plain(&row.image),
            format!("{} MiB", row.bytes.div_ceil(1 << 20)),
            age(now.saturating_sub(row.imported_unix)),
            row.nodes.to_string(),
            plain(&row.groups.join(",")),
            plain(&row.needed),
        ]
    }));
    let mut out = columns(&rows);
    if !list.groups.is_empty() {
        let _ = write!(out, "\n{}", groups(&list.groups));
    }
    if let Some(roll) = list.roll.as_ref().filter(|roll| roll.ended_unix.is_none()) {
        let _ = write!(out, "\n{}", summary(roll));
    }
    out
}

fn groups(rows: &[GroupImageRow]) -> String {
    let mut lines = vec![["GROUP", "BOOTS", "BEFORE", "NEW VERSIONS"].map(str::to_owned)];
    lines.extend(rows.iter().map(|row| {
        let follows = match (row.follows, row.configured.contains('@')) {
            (true, _) => "boots them by itself",
            (false, true) => "wait: head.toml names this one",
            (false, false) => "wait for `image set` or `image roll`",
        };
        let before = row.previous.as_deref().map_or_else(|| "-".to_owned(), plain);
        [plain(&row.group), plain(&row.image), before, follows.to_owned()]
    }));
    columns(&lines)
}

fn collection(collected: &Collected) -> String {
    let mut out = String::new();
    for kept in &collected.kept {
        let _ = writeln!(out, "{} stays: {}", plain(&kept.image), plain(&kept.reason));
    }
    let verb = if collected.dry_run {
        "would go"
    } else {
        "is removed"
    };
    for image in &collected.removed {
        let _ = writeln!(out, "{} {verb}", plain(image));
    }
    let _ = writeln!(
        out,
        "{} versions, {} MiB",
        collected.removed.len(),
        collected.bytes.div_ceil(1 << 20)
    );
    out
}

async fn roll(client: &Client, asked: Roll) -> Result<()> {
    let list: ImageList = match asked.nodeset {
        Some(nodeset) => {
            let request = RollRequest {
                nodeset,
                image: asked.image,
                at_a_time: asked.at_a_time,
                keep_up: asked.keep_up,
                healthy_secs: asked.healthy.as_secs(),
            };
            client.post("/v1/images/roll", &request).await?
        }
        None if asked.stop => client.post("/v1/images/roll/stop", &StopRollRequest {}).await?,
        None => client.get("/v1/images", &[]).await?,
    };
    let begun = list
        .roll
        .context("there was no update yet; `cidctl image roll NODESET` begins one")?;
    let report = match asked.detach {
        true => begun,
        false => follow(client, begun).await?,
    };
    if asked.json.json {
        commands::document(&report)?;
    } else {
        commands::write(&summary(&report))?;
    }
    match report.state {
        RollState::Failed => bail!(
            "the update to {} failed: {}",
            plain(&report.image),
            plain(&report.reason)
        ),
        RollState::Stopped => bail!("the update to {} was stopped", plain(&report.image)),
        RollState::Running | RollState::Stopping | RollState::Done => Ok(()),
    }
}

/// Watches an update until it ends. A head that is being restarted is asked again: the update goes on with it.
async fn follow(client: &Client, mut report: RollReport) -> Result<RollReport> {
    let progress = Progress::new(report.nodes.len());
    let mut told: Vec<(RollPhase, String)> = Vec::new();
    loop {
        progress.tell(news(&mut told, &report.nodes), &report);
        if report.ended_unix.is_some() {
            progress.end();
            return Ok(report);
        }
        tokio::time::sleep(LOOK).await;
        match client.get::<ImageList>("/v1/images", &[]).await {
            Ok(list) => report = list.roll.context("the head has forgotten the update")?,
            Err(ClientError::Unreachable { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// A line for each node that is somewhere else than it was told last.
fn news(told: &mut Vec<(RollPhase, String)>, rows: &[RollRow]) -> Vec<String> {
    told.resize(rows.len(), (RollPhase::Waiting, String::new()));
    let mut lines = Vec::new();
    for (row, told) in rows.iter().zip(told.iter_mut()) {
        let is = (row.phase, row.reason.clone());
        if *told != is {
            lines.push(line(row));
            *told = is;
        }
    }
    lines
}

fn line(row: &RollRow) -> String {
    let reason = match row.reason.as_str() {
        "" => String::new(),
        reason => format!(": {}", plain(reason)),
    };
    format!("{} is {}{reason}", plain(&row.name), row.phase.word())
}

fn summary(report: &RollReport) -> String {
    let mut rows = vec![["NAME", "PHASE", "FROM", "WHY"].map(str::to_owned)];
    rows.extend(report.nodes.iter().map(|row| {
        [
            plain(&row.name),
            row.phase.word().to_owned(),
            plain(&row.from),
            plain(&row.reason),
        ]
    }));
    let state = match report.state {
        RollState::Running => "goes on",
        RollState::Stopping => "is being stopped",
        RollState::Failed => "failed",
        RollState::Done => "is through",
        RollState::Stopped => "was stopped",
    };
    let reason = match report.reason.as_str() {
        "" => String::new(),
        reason => format!(": {}", plain(reason)),
    };
    let done = report
        .nodes
        .iter()
        .filter(|row| row.phase == RollPhase::Done)
        .count();
    format!(
        "{}the update to {} {state}, {done} of {} nodes run it{reason}\n",
        columns(&rows),
        plain(&report.image),
        report.nodes.len()
    )
}

/// A bar on a terminal, lines elsewhere.
enum Progress {
    Bar(ProgressBar),
    Lines,
}

impl Progress {
    fn new(nodes: usize) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self::Lines;
        }
        let length = u64::try_from(nodes).unwrap_or(u64::MAX);
        let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} {wide_msg}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(LOOK);
        Self::Bar(bar)
    }

    fn tell(&self, lines: Vec<String>, report: &RollReport) {
        match self {
            Self::Bar(bar) => {
                let through = |row: &&RollRow| matches!(row.phase, RollPhase::Done | RollPhase::Skipped);
                let through = report.nodes.iter().filter(through).count();
                bar.set_position(u64::try_from(through).unwrap_or(u64::MAX));
                let under_way = report
                    .nodes
                    .iter()
                    .filter(|row| row.phase.is_under_way() || row.phase == RollPhase::Returning);
                let under_way: Vec<String> = under_way.map(line).take(4).collect();
                bar.set_message(match under_way.is_empty() {
                    true => plain(&report.reason),
                    false => under_way.join(", "),
                });
            }
            Self::Lines => lines.iter().for_each(|line| eprintln!("{line}")),
        }
    }

    fn end(&self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(number: u8, phase: RollPhase, reason: &str) -> RollRow {
        RollRow {
            name: format!("lab-a0{number}"),
            mac: String::new(),
            phase,
            since_unix: 0,
            from: "minimal@1".into(),
            reason: reason.into(),
        }
    }

    #[test]
    fn an_update_is_told_step_by_step() {
        let mut told = Vec::new();
        let first = [row(1, RollPhase::Leaving, ""), row(2, RollPhase::Waiting, "")];
        assert_eq!(news(&mut told, &first), ["lab-a01 is leaving"]);
        assert_eq!(news(&mut told, &first), [""; 0]);
        let failed = [
            row(1, RollPhase::Returning, "no\x1b[2J"),
            row(2, RollPhase::Waiting, ""),
        ];
        assert_eq!(news(&mut told, &failed), ["lab-a01 is returning: no?[2J"]);
        let report = RollReport {
            image: "minimal@2".into(),
            nodeset: "@lab-a".into(),
            begun_unix: 0,
            ended_unix: Some(9),
            state: RollState::Failed,
            reason: "lab-a01: no".into(),
            nodes: failed.to_vec(),
        };
        let text = summary(&report);
        assert!(
            text.ends_with("the update to minimal@2 failed, 0 of 2 nodes run it: lab-a01: no\n"),
            "{text}"
        );
    }
}
