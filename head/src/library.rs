//! Versions on disk, what is offered of them, and who boots which, kept in step: a version is loaded before anybody is sent to it, and
//! removed when nobody needs it. Must not decide who boots what; that is the registry's.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use cid_bootserver::policy::ImageFault;
use cid_bootserver::site::Offers;
use cid_protocol::images::{Collected, ImageList, Kept, RollRequest};
use tokio::sync::Mutex;

use crate::config::Config;
use crate::core::{Core, Pending};
use crate::offers::fault_text;
use crate::promises::{Promises, Sign};
use crate::registry::{ImageError, Registry};
use crate::store::StoreError;
use crate::versions::{Imported, VersionError, Versions, split};

/// How often the folder of built images is looked at.
const INTERVAL: Duration = Duration::from_secs(5);

/// Why a change of images was refused.
#[derive(Debug, thiserror::Error)]
pub enum LibraryError {
    /// By the registry.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// By the disk, or what is on it.
    #[error(transparent)]
    Version(#[from] VersionError),
    /// The version cannot be booted.
    #[error("{0}")]
    Fault(String),
    /// Nothing may be acknowledged.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A task was cut off.
    #[error("the head is stopping")]
    Stopping,
}

/// The keeper of versions.
pub struct Library {
    versions: Versions,
    images_dir: PathBuf,
    core: Arc<Core>,
    offers: Arc<Offers>,
    promises: Arc<Promises>,
    /// When each built image was looked at last. Who holds it is the only one to change anything.
    gate: Mutex<BTreeMap<String, SystemTime>>,
}

/// Takes in the built images that groups name and says what versions there are: before anything is offered.
///
/// # Errors
/// The folder of versions cannot be used. A built image that cannot be taken in is a line in the log.
pub async fn begin(config: &Config, core: &Core) -> Result<(), LibraryError> {
    let versions = Versions::new(&config.state_dir);
    let names = core.read(named);
    let images_dir = config.images_dir.clone();
    let read = move || -> Result<_, VersionError> {
        let mut news = Vec::new();
        for name in names {
            match versions.import(&images_dir.join(&name), Some(&name)) {
                Ok(Imported::New(version)) => news.push(format!("{} was taken in", version.image())),
                // Whoever boots it is told that there is none.
                Ok(Imported::Known(_)) | Err(VersionError::Missing { .. }) => {}
                Err(error) => tracing::warn!("{error}"),
            }
        }
        Ok((versions.list()?, news))
    };
    let read = tokio::task::spawn_blocking(read).await;
    let (list, news) = read.map_err(|_| LibraryError::Stopping)??;
    let input = |registry: &mut Registry, now| {
        registry.set_versions(now, list);
        news.into_iter().for_each(|text| registry.note("image", text));
    };
    Ok(core.act(input).1.done().await?)
}

/// Images that groups name, without versions.
fn named(registry: &Registry) -> BTreeSet<String> {
    let assigned = registry.group_image_rows().into_iter();
    let both = assigned.flat_map(|row| [row.configured, row.image]);
    both.map(|image| split(&image).map_or(image.clone(), |(name, _)| name.to_owned()))
        .collect()
}

impl Library {
    /// Behind [`begin`].
    pub fn new(config: &Config, core: Arc<Core>, offers: Arc<Offers>, sign: Sign) -> Arc<Self> {
        let versions = Versions::new(&config.state_dir);
        Arc::new(Self {
            promises: Arc::new(Promises::new(versions.clone(), sign)),
            versions,
            images_dir: config.images_dir.clone(),
            core,
            offers,
            gate: Mutex::default(),
        })
    }

    /// What loaders are offered.
    pub fn offers(&self) -> &Arc<Offers> {
        &self.offers
    }

    /// The folder of versions.
    pub fn versions(&self) -> &Versions {
        &self.versions
    }

    /// Looks for images that were built anew, as long as the head runs.
    pub async fn watch(&self) {
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let mut gate = self.gate.lock().await;
            for name in self.core.read(named) {
                let folder = self.images_dir.join(&name);
                let written =
                    std::fs::metadata(folder.join("manifest.json")).and_then(|file| file.modified());
                let Ok(written) = written else { continue };
                if gate.get(&name) == Some(&written) {
                    continue;
                }
                if let Err(error) = self.take_in(&folder, Some(&name)).await {
                    tracing::warn!("{error}");
                }
                gate.insert(name, written);
            }
            self.settle().await;
            let offers = Arc::clone(&self.offers);
            if let Ok(true) = tokio::task::spawn_blocking(move || offers.refresh()).await {
                tracing::info!("the image folder has changed");
                for finding in crate::offers::findings(&self.offers) {
                    tracing::warn!("{finding}");
                }
            }
        }
    }

    /// Offers what is assigned, and nothing else, and promises its roots. Once before anybody is answered, and after each change.
    pub async fn settle(&self) {
        let (assigned, sequences) = self
            .core
            .read(|registry| (registry.assigned(), registry.sequences()));
        let (offers, promises) = (Arc::clone(&self.offers), Arc::clone(&self.promises));
        let work = move || {
            // First: nobody may be sent to an image before its root is promised.
            let promised = promises.of(sequences);
            offers.assign(assigned);
            promised
        };
        // A failure here is the end of the process, and the next look makes up for it.
        if let Ok(promised) = tokio::task::spawn_blocking(work).await {
            self.core.tell(|registry, _| registry.set_promises(promised));
        }
    }

    /// The image in `folder` is a version from here on.
    async fn take_in(&self, folder: &Path, name: Option<&str>) -> Result<String, LibraryError> {
        let (versions, folder, name) = (self.versions.clone(), folder.to_owned(), name.map(str::to_owned));
        let import = move || -> Result<_, VersionError> {
            let imported = versions.import(&folder, name.as_deref())?;
            Ok((imported, versions.list()?))
        };
        let imported = tokio::task::spawn_blocking(import).await;
        let (imported, list) = imported.map_err(|_| LibraryError::Stopping)??;
        let image = imported.version().image();
        if let Imported::New(_) = imported {
            // Groups that follow send their PCs to it with the next line.
            self.hold(&image).await?;
            let input = |registry: &mut Registry, now| {
                registry.set_versions(now, list);
                registry.note("image", format!("{image} was taken in"));
            };
            self.core.act(input).1.done().await?;
        }
        Ok(image)
    }

    async fn hold(&self, image: &str) -> Result<(), LibraryError> {
        let (offers, named) = (Arc::clone(&self.offers), image.to_owned());
        let held = tokio::task::spawn_blocking(move || offers.hold(&named)).await;
        let text = |fault: ImageFault| LibraryError::Fault(fault_text(&fault, image));
        held.map_err(|_| LibraryError::Stopping)?.map_err(text)
    }

    /// `cidctl image import`.
    ///
    /// # Errors
    /// See [`LibraryError`]; nothing was changed.
    pub async fn import(&self, folder: &Path) -> Result<ImageList, LibraryError> {
        let _gate = self.gate.lock().await;
        let image = self.take_in(folder, None).await?;
        self.settle().await;
        let mut list = self.list();
        list.images.retain(|row| row.image == image);
        Ok(list)
    }

    /// What a person named, loaded. A bare name is its newest build.
    async fn ready(&self, image: &str) -> Result<String, LibraryError> {
        if split(image).is_none() && !image.contains(['/', '@']) && !image.starts_with('.') {
            match self.take_in(&self.images_dir.join(image), Some(image)).await {
                Ok(_) | Err(LibraryError::Version(VersionError::Missing { .. })) => {}
                Err(error) => return Err(error),
            }
        }
        let image = self.core.read(|registry| registry.resolve_image(image))?;
        self.hold(&image).await?;
        Ok(image)
    }

    /// `cidctl image set`.
    ///
    /// # Errors
    /// See [`LibraryError`]; nothing was changed.
    pub async fn set(&self, group: &str, image: &str, follow: bool) -> Result<ImageList, LibraryError> {
        let _gate = self.gate.lock().await;
        let image = self.ready(image).await?;
        let set = self
            .core
            .act(|registry, now| registry.set_image(now, group, &image, follow));
        self.changed(set).await
    }

    /// `cidctl image rollback`.
    ///
    /// # Errors
    /// See [`LibraryError`]; nothing was changed.
    pub async fn rollback(&self, group: &str) -> Result<ImageList, LibraryError> {
        let _gate = self.gate.lock().await;
        let rows = self.core.read(Registry::group_image_rows);
        if let Some(before) = rows
            .into_iter()
            .find(|row| row.group == group)
            .and_then(|row| row.previous)
        {
            self.hold(&before).await?;
        }
        let back = self
            .core
            .act(|registry, now| registry.rollback_image(now, group).map(drop));
        self.changed(back).await
    }

    /// `cidctl image roll`.
    ///
    /// # Errors
    /// See [`LibraryError`]; nothing was changed.
    pub async fn roll(&self, mut asked: RollRequest) -> Result<ImageList, LibraryError> {
        let _gate = self.gate.lock().await;
        if let Some(image) = &asked.image {
            asked.image = Some(self.ready(image).await?);
        }
        let begun = self.core.act(|registry, now| registry.begin_roll(now, &asked));
        self.changed(begun).await
    }

    /// `cidctl image roll --stop`.
    ///
    /// # Errors
    /// None is under way.
    pub async fn stop_roll(&self) -> Result<ImageList, LibraryError> {
        let _gate = self.gate.lock().await;
        let stopped = self.core.act(|registry, now| registry.stop_roll(now));
        self.changed(stopped).await
    }

    async fn changed(
        &self,
        (result, pending): (Result<(), ImageError>, Pending),
    ) -> Result<ImageList, LibraryError> {
        result?;
        pending.done().await?;
        self.settle().await;
        Ok(self.list())
    }

    /// Everything.
    pub fn list(&self) -> ImageList {
        self.core.read(|registry| ImageList {
            images: registry.image_rows(),
            groups: registry.group_image_rows(),
            roll: registry.roll_report(),
        })
    }

    /// `cidctl image gc`: the newest `keep` of each image stay, and whatever somebody needs.
    ///
    /// # Errors
    /// The disk's; what was removed before is gone.
    pub async fn collect(&self, keep: u32, dry_run: bool) -> Result<Collected, LibraryError> {
        let _gate = self.gate.lock().await;
        let rows = self.core.read(Registry::image_rows);
        let mut collected = Collected {
            removed: Vec::new(),
            kept: Vec::new(),
            bytes: 0,
            dry_run,
        };
        let mut gone = Vec::new();
        for row in &rows {
            let newer = rows
                .iter()
                .filter(|other| other.name == row.name && other.version > row.version);
            // The newest stays whatever is asked: its number must not be given again.
            let reason = match newer.count() < keep.max(1) as usize {
                _ if !row.needed.is_empty() => row.needed.clone(),
                true => format!("one of the newest {}", keep.max(1)),
                false => {
                    collected.removed.push(row.image.clone());
                    collected.bytes += row.bytes;
                    gone.push((row.name.clone(), row.version));
                    continue;
                }
            };
            let image = row.image.clone();
            collected.kept.push(Kept { image, reason });
        }
        if dry_run || gone.is_empty() {
            return Ok(collected);
        }
        // Nobody is sent to them from here on, whatever becomes of the files.
        let left = move |versions: &Versions| -> Result<_, VersionError> {
            let all = versions.list()?.into_iter();
            Ok(all
                .filter(|version| !gone.contains(&(version.name.clone(), version.number)))
                .collect::<Vec<_>>())
        };
        let versions = self.versions.clone();
        let removed: Vec<(String, u32)> = collected
            .removed
            .iter()
            .filter_map(|image| split(image).map(|(name, number)| (name.to_owned(), number)))
            .collect();
        let listed = tokio::task::spawn_blocking(move || left(&versions)).await;
        let list = listed.map_err(|_| LibraryError::Stopping)??;
        let text = format!("no longer needed: {} removed", collected.removed.join(", "));
        let input = |registry: &mut Registry, now| {
            registry.set_versions(now, list);
            registry.note("image", text);
        };
        self.core.act(input).1.done().await?;
        self.settle().await;
        let versions = self.versions.clone();
        let remove = move || -> Result<_, VersionError> {
            for (name, number) in &removed {
                versions.remove(name, *number)?;
            }
            Ok(())
        };
        let removed = tokio::task::spawn_blocking(remove).await;
        removed.map_err(|_| LibraryError::Stopping)??;
        Ok(collected)
    }
}
