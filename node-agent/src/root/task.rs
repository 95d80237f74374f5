//! The way from the head's promise to a mounted root, as one task beside the agent's loop: a slow mount or a large chunk must not
//! stop the heartbeat. It speaks to nobody but the agent's loop, the head's HTTP server and other nodes' doors.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cid_content::{Bitmap, Promise, RootManifest, Signed, Tree};
use cid_protocol::root::{RootFile, RootOrder, RootPromise, RootReport, tree_path};
use cid_trust::Pin;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::fetch::{Fetch, Fetched, MAX_DECLINED};
use super::memory::{Memory, Peak};
use super::mount;
use super::peer::Caller;
use super::serve::Offer;
use super::store::Store;
use super::{health, http, processes};
use crate::netlink;

/// What the agent's loop tells; more than this never waits, since it says little.
const QUEUE: usize = 64;
/// The first retry of what failed, doubling to the last; each is spread over its second half, so that a room does not come at once.
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LAST_RETRY: Duration = Duration::from_secs(10);
/// Of what is free when the image is mounted, programs in it may write this part to files.
const SCRATCH_PART: u64 = 2;
/// `lo` has this index in every network namespace (`LOOPBACK_IFINDEX` of linux/net_namespace.h).
const LOOPBACK: u32 = 1;
/// Kept beside the image for an agent after this one.
const MARK: &str = "mounted.json";

/// What the agent's loop says.
#[derive(Debug)]
pub(crate) enum Command {
    /// The head promised this; `way` is over which link, and `pin` is whom to believe.
    Promise { promise: RootPromise, pin: Pin },
    /// The head's word to who fetches.
    Order(RootOrder),
    /// The connection to the head is gone.
    HeadGone,
}

/// What the task says to the agent's loop.
#[derive(Debug)]
pub(crate) enum News {
    /// For the head, if it is there.
    Report(RootReport),
    /// For the person at the PC.
    Progress(String),
    /// It is mounted.
    Mounted,
    /// It is not run here, for this reason.
    Refused(String),
}

/// Where the head and other nodes are called from; `None` while there is no link.
#[derive(Debug, Clone)]
pub(crate) struct Way {
    pub(crate) caller: Caller,
    pub(crate) head: std::net::Ipv4Addr,
}

/// The agent's end.
#[derive(Debug)]
pub(crate) struct Handle {
    commands: mpsc::Sender<Command>,
    way: watch::Sender<Option<Way>>,
    /// For the door.
    pub(crate) offered: super::serve::Offered,
}

impl Handle {
    /// Starts the task; its news go to `news`. `started` is what the agent counts its time from.
    pub(crate) fn start(started: Instant, peak: Peak, news: impl Fn(News) + Send + Sync + 'static) -> Self {
        let (commands, inbox) = mpsc::channel(QUEUE);
        let (way, ways) = watch::channel(None);
        let (offer, offered) = watch::channel(None);
        let task = Task {
            started,
            peak,
            inbox,
            ways,
            offer,
            news: Arc::new(news),
            refused: None,
        };
        tokio::spawn(task.run());
        Self {
            commands,
            way,
            offered,
        }
    }

    /// Tells it something. What does not fit is lost: the head says it again.
    pub(crate) fn tell(&self, command: Command) {
        let _ = self.commands.try_send(command);
    }

    /// The link in use from now on.
    pub(crate) fn way(&self, way: Option<Way>) {
        self.way.send_replace(way);
    }
}

/// What is mounted here, for an agent after this one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    image: String,
    sequence: u64,
    tree: String,
    #[serde(default)]
    peak_kib: u64,
    /// Its health command has succeeded, or it has none.
    #[serde(default)]
    healthy: bool,
}

impl Mark {
    /// Of the root that is mounted, if one is.
    fn kept() -> Option<Self> {
        let text = fs::read_to_string(Path::new(mount::FOLDER).join(MARK)).ok()?;
        serde_json::from_str(&text)
            .ok()
            .filter(|_| mount::is_mounted_root())
    }

    fn keep(&self) -> anyhow::Result<()> {
        let path = Path::new(mount::FOLDER).join(MARK);
        Ok(fs::write(path, serde_json::to_string(self)?)?)
    }
}

/// Why, with the word of its counter.
#[derive(Debug, Clone)]
struct Refused {
    counter: &'static str,
    reason: String,
}

struct Task {
    started: Instant,
    peak: Peak,
    inbox: mpsc::Receiver<Command>,
    ways: watch::Receiver<Option<Way>>,
    offer: watch::Sender<Option<Arc<Offer>>>,
    news: Arc<dyn Fn(News) + Send + Sync>,
    /// What is not run here.
    refused: Option<(RootPromise, Refused)>,
}

impl Task {
    async fn run(mut self) {
        self.resume().await;
        while let Some(command) = self.inbox.recv().await {
            let Command::Promise { promise, pin } = command else {
                continue;
            };
            // A promise that comes while one is followed replaces it.
            let mut next = Some((promise, pin));
            while let Some((promise, pin)) = next.take() {
                next = self.follow(promise, &pin).await;
            }
        }
    }

    /// What an agent before this one mounted is used as it is.
    async fn resume(&mut self) {
        if let Some(mark) = Mark::kept() {
            log!("cid-agent: {} is mounted already", mark.image);
            self.begin_services();
        }
    }

    /// Does what it takes until the promise is kept or refused. Returns the promise that came in its place.
    async fn follow(&mut self, promise: RootPromise, pin: &Pin) -> Option<(RootPromise, Pin)> {
        // The same promise is refused in the same words.
        if let Some((_, why)) = self.refused.take_if(|(refused, _)| *refused == promise) {
            self.refuse(&promise, why);
            return None;
        }
        // Another image takes another boot. One that was unhealthy under an earlier promise may have become healthy.
        if let Some(mark) = Mark::kept() {
            if let Err(why) = self.stand(&promise, pin, mark).await {
                self.refuse(&promise, why);
            }
            return None;
        }
        let manifest = match verify(&promise, pin) {
            Ok(manifest) => manifest,
            Err(why) => {
                self.refuse(&promise, why);
                return None;
            }
        };
        match self.fetch_and_mount(&promise, &manifest).await {
            Ok(Some(next)) => return Some(next),
            Ok(None) => {}
            Err(why) => self.refuse(&promise, why),
        }
        None
    }

    /// A promise for what is mounted. A head that was restarted, or has promised it anew since, is told under the sequence that it gave:
    /// the bytes are what it signed.
    async fn stand(&mut self, promise: &RootPromise, pin: &Pin, mut mark: Mark) -> Result<(), Refused> {
        if let Ok(manifest) = verify(promise, pin)
            && manifest.image == mark.image
            && manifest.tree_root.to_string() == mark.tree
        {
            mark.sequence = manifest.sequence;
            self.offer_whole(&manifest);
        }
        self.become_healthy(mark).await
    }

    /// An agent after the one that fetched it gives it to others as that one did.
    fn offer_whole(&self, manifest: &RootManifest) {
        if self.offer.borrow().is_some() {
            return;
        }
        let store = mount::place_for_image().ok().and_then(|folder| {
            let tree = Store::kept_tree(&folder, manifest.shape, manifest.tree_root)?;
            Store::open(&folder, tree).ok()
        });
        if let Some(store) = store {
            let mut have = Bitmap::none(manifest.shape.chunks());
            for chunk in 0..manifest.shape.chunks() {
                have.insert(chunk);
            }
            self.offer.send_replace(Some(Offer::new(Arc::new(store), have)));
        }
    }

    /// Returns a promise that came in the place of this one.
    async fn fetch_and_mount(
        &mut self,
        promise: &RootPromise,
        manifest: &RootManifest,
    ) -> Result<Option<(RootPromise, Pin)>, Refused> {
        let trouble = |error: anyhow::Error| Refused {
            counter: "mount",
            reason: format!("{error:#}"),
        };
        let folder = mount::place_for_image().map_err(trouble)?;
        let kept = Store::kept_tree(&folder, manifest.shape, manifest.tree_root);
        if kept.is_none() {
            Memory::look()
                .takes(manifest.shape.bytes(), manifest.needed_ram_bytes)
                .map_err(|why| Refused {
                    counter: "memory",
                    reason: why.to_string(),
                })?;
        }
        let tree = match kept {
            Some(tree) => tree,
            None => match self.tree(manifest).await? {
                Ok(tree) => tree,
                Err(next) => return Ok(Some(next)),
            },
        };
        let store = Store::open(&folder, tree).map_err(|error| trouble(error.into()))?;
        let store = Arc::new(store);
        let have = store.recheck(async || tokio::task::yield_now().await).await;
        let offer = Offer::new(Arc::clone(&store), have.clone());
        self.offer.send_replace(Some(Arc::clone(&offer)));
        let began = Instant::now();
        let fetch = Fetch::new(manifest, &store, have, &offer);
        match fetch.run(&mut self.inbox, &self.ways, &self.news).await {
            Fetched::Whole(how) => log!(
                "cid-agent: {} fetched in {:.1} s: {how}",
                manifest.image,
                began.elapsed().as_secs_f32()
            ),
            Fetched::Replaced(promise, pin) => return Ok(Some((promise, pin))),
            Fetched::Wrong(reason) => {
                return Err(Refused {
                    counter: "chunk-wrong",
                    reason,
                });
            }
        }
        let mark = self
            .mount(manifest, store.path(), promise.files.clone())
            .await
            .map_err(trouble)?;
        self.become_healthy(mark).await?;
        Ok(None)
    }

    /// The tree, from the head, however often it takes; or the promise that came in its place.
    async fn tree(&mut self, manifest: &RootManifest) -> Result<Result<Tree, (RootPromise, Pin)>, Refused> {
        let (mut retry, mut declined) = (FIRST_RETRY, 0);
        loop {
            let way = self.ways.borrow().clone();
            let why = match way {
                Some(way) => match fetch_tree(&way, manifest).await {
                    Ok(tree) => return Ok(Ok(tree)),
                    Err(NoTree { why, is_final }) => {
                        declined += u32::from(is_final);
                        why
                    }
                },
                None => "there is no link to the head".to_owned(),
            };
            if declined >= MAX_DECLINED {
                return Err(Refused {
                    counter: "tree",
                    reason: why,
                });
            }
            (self.news)(News::Progress(format!("waits for {}: {why}", manifest.image)));
            let (image, of) = (manifest.image.clone(), manifest.shape.bytes());
            (self.news)(News::Report(RootReport::Fetching {
                image,
                have: 0,
                of,
                waits: why,
            }));
            tokio::select! {
                () = tokio::time::sleep(spread(retry)) => {}
                Some(command) = self.inbox.recv() => {
                    if let Command::Promise { promise, pin } = command
                        && promise.sequence != manifest.sequence
                    {
                        return Ok(Err((promise, pin)));
                    }
                }
            }
            retry = (retry * 2).min(LAST_RETRY);
        }
    }

    async fn mount(
        &mut self,
        manifest: &RootManifest,
        image: PathBuf,
        files: Vec<RootFile>,
    ) -> anyhow::Result<Mark> {
        (self.news)(News::Progress(format!("mounts {}", manifest.image)));
        let format = manifest.format;
        let memory = Memory::look();
        self.peak.handle_memory(memory);
        let free = memory.available * 1024;
        let work = move || {
            mount::mount_root(&image, format, free / SCRATCH_PART)?;
            files.iter().try_for_each(mount::write_file)
        };
        tokio::task::spawn_blocking(work).await??;
        // From here on its services use what they use.
        self.peak.handle_memory(Memory::look());
        let mark = Mark {
            image: manifest.image.clone(),
            sequence: manifest.sequence,
            tree: manifest.tree_root.to_string(),
            peak_kib: self.peak.used_kib(),
            healthy: false,
        };
        mark.keep()?;
        log!("cid-agent: {} is mounted", mark.image);
        self.begin_services();
        Ok(mark)
    }

    /// The root is the node's once its health command says so.
    async fn become_healthy(&mut self, mut mark: Mark) -> Result<(), Refused> {
        let refused = |reason| Refused {
            counter: "health",
            reason,
        };
        if !mark.healthy {
            let command = processes::list()
                .map_err(|error| refused(format!("{error:#}")))?
                .health;
            if !command.is_empty() {
                self.tell_checking(&mark, "");
                let waited = health::wait(&command, |why| self.tell_checking(&mark, why)).await;
                waited.map_err(refused)?;
                log!("cid-agent: {} is healthy", mark.image);
            }
            mark.healthy = true;
            mark.keep().map_err(|error| refused(format!("{error:#}")))?;
        }
        self.tell_mounted(&mark);
        Ok(())
    }

    fn tell_checking(&self, mark: &Mark, why: &str) {
        (self.news)(News::Progress(format!("checks whether {} works", mark.image)));
        (self.news)(News::Report(RootReport::Checking {
            image: mark.image.clone(),
            says: why.to_owned(),
        }));
    }

    fn begin_services(&self) {
        // Programs of one PC call one another, by its own addresses, too, as the ranks of MPI do: Linux brings those over `lo`.
        if let Err(error) = netlink::up(LOOPBACK) {
            log!("cid-agent: bring lo up: {error}");
        }
        match processes::list() {
            Ok(list) => {
                for mount in &list.mounts {
                    if let Err(error) = mount::mount_listed(mount) {
                        log!("cid-agent: {error:#}");
                    }
                }
                tokio::spawn(processes::keep(list.services, self.started));
            }
            Err(error) => log!("cid-agent: no services: {error:#}"),
        }
    }

    fn tell_mounted(&self, mark: &Mark) {
        (self.news)(News::Report(RootReport::Mounted {
            image: mark.image.clone(),
            sequence: mark.sequence,
            tree: mark.tree.clone(),
            peak_kib: mark.peak_kib,
        }));
        (self.news)(News::Mounted);
    }

    fn refuse(&mut self, promise: &RootPromise, why: Refused) {
        (self.news)(News::Report(RootReport::Refused {
            image: promise.image.clone(),
            counter: why.counter.to_owned(),
            reason: why.reason.clone(),
        }));
        let text = format!("does not run {}: {}", promise.image, why.reason);
        log!("cid-agent: {text}");
        (self.news)(News::Refused(text));
        self.refused = Some((promise.clone(), why));
    }
}

fn verify(promise: &RootPromise, pin: &Pin) -> Result<RootManifest, Refused> {
    let bytes = STANDARD.decode(&promise.manifest).map_err(|_| Refused {
        counter: "manifest-malformed",
        reason: "the signed manifest is malformed: it is no base64".to_owned(),
    })?;
    let promised = Promise {
        image: &promise.image,
        sequence: promise.sequence,
    };
    Signed::decode(&bytes)
        .and_then(|signed| signed.verify(pin.as_bytes(), promised))
        .map_err(|refusal| Refused {
            counter: refusal.counter(),
            reason: refusal.to_string(),
        })
}

/// Why there is no tree yet; `is_final`: waiting alone will not bring it.
struct NoTree {
    why: String,
    is_final: bool,
}

async fn fetch_tree(way: &Way, manifest: &RootManifest) -> Result<Tree, NoTree> {
    let not_yet = |why: String| NoTree { why, is_final: false };
    let address = std::net::SocketAddrV4::new(way.head, super::HEAD_HTTP_PORT);
    let mut connection = http::dial(&way.caller.link, way.caller.from, address)
        .await
        .map_err(|error| not_yet(format!("the head does not answer: {error}")))?;
    let length = u64::try_from(cid_content::tree::encoded_bytes(manifest.shape)).unwrap_or(u64::MAX);
    let path = tree_path(&manifest.tree_root.to_string());
    let bytes = connection
        .part(&path, 0..length)
        .await
        .map_err(|failure| NoTree {
            is_final: failure.is_final(),
            why: format!("the head does not give the list of its parts: {failure}"),
        })?;
    Tree::decode(&bytes, manifest.shape, manifest.tree_root).map_err(|error| NoTree {
        why: format!("the head's list of its parts is not the signed one: {error}"),
        is_final: true,
    })
}

/// Somewhere in the second half of `delay`.
pub(super) fn spread(delay: Duration) -> Duration {
    let random = cid_trust::random().map_or(0, u32::from_ne_bytes);
    delay / 2 + (delay / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))
}
