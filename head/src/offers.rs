//! Images and templates as the head offers them: loaded, watched while it runs, and what is wrong with them, a line each. Must
//! not decide who gets what; that is the boot server's policy.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use cid_bootserver::policy::{ImageFault, Reason};
use cid_bootserver::site::{Assigned, Folders, GroupSettings, Offers};

use crate::config::Config;
use crate::versions::Versions;

fn group_settings(config: &Config) -> BTreeMap<String, GroupSettings> {
    let settings = |group: &crate::config::Group| GroupSettings {
        image: group.image.clone(),
        kernel_args: group.kernel_args.clone(),
        bail_out_secs: group.bail_out.as_secs(),
        patience_secs: group.patience.as_secs(),
    };
    config
        .groups
        .iter()
        .map(|(name, group)| (name.clone(), settings(group)))
        .collect()
}

/// A folder in which a file replaces the built-in template of its name.
fn overrides(config: &Config) -> PathBuf {
    config.state_dir.join("templates")
}

pub(crate) fn folders(config: &Config) -> Folders {
    Folders {
        built: config.images_dir.clone(),
        versions: Versions::new(&config.state_dir).root().to_owned(),
    }
}

/// Reads all of it, with the versions that are assigned.
pub(crate) async fn load(config: &Config, address: Ipv4Addr, assigned: Assigned) -> Result<Arc<Offers>> {
    let (folders, overrides, groups) = (folders(config), overrides(config), group_settings(config));
    let read = move || Offers::load_assigned(address, folders, Some(overrides), groups, assigned);
    let offers = tokio::task::spawn_blocking(read)
        .await
        .context("the images cannot be read")?;
    if let Some(chain) = broken_chain(&offers) {
        bail!("{chain}, then start the head again");
    }
    for finding in findings(&offers) {
        tracing::warn!("{finding}");
    }
    Ok(Arc::new(offers))
}

/// The first group whose UEFI PCs would be led into a chain of loaders that ends before the kernel. A head that starts
/// with it would strand each of them once; one that runs when an image breaks sends them to their disks instead.
fn broken_chain(offers: &Offers) -> Option<String> {
    let current = offers.current();
    current.site.groups.iter().find_map(|(name, group)| {
        let fault = group.image_fault.as_ref()?;
        let broken = matches!(fault, ImageFault::BrokenChain(_));
        broken.then(|| format!("group {name}: {}", fault_text(fault, &group.image)))
    })
}

/// What keeps a group from booting, one line each.
pub(crate) fn findings(offers: &Offers) -> Vec<String> {
    let current = offers.current();
    let mut found: Vec<String> = current.site.templates_broken.iter().cloned().collect();
    for (name, group) in &current.site.groups {
        if let Some(fault) = &group.image_fault {
            found.push(format!("group {name}: {}", fault_text(fault, &group.image)));
        }
    }
    found
}

pub(crate) fn fault_text(fault: &ImageFault, image: &str) -> String {
    match fault {
        ImageFault::Missing(what) => Reason::ImageMissing(what.clone()).to_string(),
        ImageFault::Damaged(what) => Reason::ImageDamaged(what.clone()).to_string(),
        ImageFault::NoUefiLoader => Reason::NoUefiLoader(image.to_owned()).to_string(),
        ImageFault::BrokenChain(what) => {
            let (image, what) = (image.to_owned(), what.clone());
            Reason::BrokenChain { image, what }.to_string()
        }
    }
}

/// What `cidhead check` finds in templates and images. Blocks.
pub fn check(config: &Config) -> Vec<String> {
    let groups = group_settings(config);
    let mut found = findings(&Offers::load_assigned(
        Ipv4Addr::LOCALHOST,
        folders(config),
        Some(overrides(config)),
        groups,
        Assigned::default(),
    ));
    for (name, group) in &config.groups {
        if let Some(command) = &group.wake_command
            && let Err(why) = command.look()
        {
            found.push(format!(
                "group {name}: wake_command: {}: {why}",
                command.program()
            ));
        }
    }
    found
}

/// Why the loader scripts cannot be rendered, if so. Blocks.
pub fn broken_templates(config: &Config) -> Vec<String> {
    let offers = Offers::load(
        Ipv4Addr::LOCALHOST,
        config.images_dir.clone(),
        Some(overrides(config)),
        BTreeMap::new(),
    );
    offers.current().site.templates_broken.iter().cloned().collect()
}
