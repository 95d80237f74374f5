//! Root images among real agents and a real head in network namespaces: a mass boot behind a slow link, and what is refused on the way.
//! `ci/test` runs `covering`; the rest is the slice `image-swarm` of `ci/night`. Figures are printed: `--nocapture`. Wants root and a kernel that mounts
//! EROFS from a file (6.12).

mod mass;
mod refused;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use cidlab::rig::{Agent, Phase, Rig};
use cidlab::rooted::build_silent;

/// Name of the image.
const IMAGE: &str = "swarm";

/// A folder with one built image; gone with this value.
struct Images {
    dir: PathBuf,
}

impl Images {
    /// With a root of so many bytes that do not compress, and a little more.
    fn build(name: &str, bytes: usize) -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("cid-images-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir)?;
        let this = Self { dir };
        build_silent(&this.dir, IMAGE, bytes)?;
        Ok(this)
    }

    fn folder(&self) -> PathBuf {
        self.dir.join("images")
    }

    /// Bytes of the root image as it travels.
    fn bytes(&self) -> Result<u64> {
        Ok(fs::metadata(self.folder().join(IMAGE).join("root.img"))?.len())
    }
}

impl Drop for Images {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// What an agent told its console.
fn log(agent: &Agent) -> Result<String> {
    let path = agent.dir().join("log");
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// Waits until all are up; one that goes home ends it at once, with its log's last lines.
fn all_mounted(rig: &Rig, limit: Duration) -> Result<Duration> {
    let home = |agent: &&Agent| matches!(agent.phase(), Phase::Home(_));
    let took = rig.wait("agent that is up or home", limit, |agent| {
        matches!(agent.phase(), Phase::Up { .. } | Phase::Home(_))
    })?;
    if let Some(agent) = rig.agents().iter().find(home) {
        let log = log(agent)?;
        let last: Vec<&str> = log.lines().rev().take(5).collect();
        bail!("{}: {:?}: {}", agent.mac(), agent.phase(), last.join("; "));
    }
    for agent in rig.agents() {
        anyhow::ensure!(
            agent.ended() == 0,
            "{}'s agent ended: {}",
            agent.mac(),
            log(agent)?
        );
    }
    Ok(took)
}

/// Whether there is a `tc` and the folder it takes: said before anything is built.
fn wants() -> Result<()> {
    anyhow::ensure!(
        rustix::process::geteuid().is_root() && Path::new("/usr/bin/mkfs.erofs").exists(),
        "mass boots mount their images: run as root, with erofs-utils (ci/prepare)"
    );
    Ok(())
}
