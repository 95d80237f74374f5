//! One image from one recipe: inputs -> file plan -> archive -> output folder with manifest. The order of the steps
//! stands here; what each does stands in its own module. Never writes outside the cache and the output folder.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use cid_initramfs::digest::sha256_hex;
use cid_initramfs::{ModuleFacts, ModuleIndex, Node, Plan, compress, index_files, module, write_archive};
use cid_protocol::manifest::{Artifact, FileEntry, MANIFEST_VERSION, Manifest, Root};

use crate::apt::{Apt, Freshness};
use crate::cache::Cache;
use crate::cards;
use crate::deb;
use crate::kernel::Kernel;
use crate::modules::{self, Selection};
use crate::output::Output;
use crate::progress::Progress;
use crate::ram::{Prediction, RootPart};
use crate::recipe::{FileChoice, KernelChoice, Located, Recipe};
use crate::root::RootTree;
use crate::secrets;
use crate::stage2;

/// What the command line adds to the recipe.
#[derive(Debug, Clone)]
pub struct Options {
    /// Folder in which the image's folder appears.
    pub out: PathBuf,
    /// `--kernel` and `--modules`, in place of the recipe's kernel.
    pub kernel: Option<(PathBuf, PathBuf)>,
    /// `--shim`, `--grub`, `--mok`, each in place of the recipe's package.
    pub shim: Option<PathBuf>,
    /// See `shim`.
    pub grub: Option<PathBuf>,
    /// See `shim`.
    pub mok: Option<PathBuf>,
    /// `--ipxe`, in place of the recipe's package.
    pub ipxe: Option<PathBuf>,
    /// Folder with `cid-init` and `cid-agent`.
    pub node_programs: PathBuf,
    /// Whether packages are looked up again.
    pub freshness: Freshness,
    /// `--for`: network cards that the image must drive.
    pub cards: Option<cards::Seen>,
}

/// What was built.
#[derive(Debug)]
pub struct Built {
    /// The image's folder.
    pub folder: PathBuf,
    /// Its manifest.
    pub manifest: Manifest,
    /// Bytes of RAM that the unpacked image takes.
    pub unpacked_size: u64,
    /// What a boot of it takes.
    pub ram: Prediction,
}

/// Everything an image is made from, on disk.
#[derive(Debug)]
struct Inputs {
    kernel: Kernel,
    busybox: PathBuf,
    /// Path in the image's folder to file.
    loaders: BTreeMap<&'static str, PathBuf>,
    firmware: Vec<PathBuf>,
}

/// Builds `recipe`; `root` is the tree of its stage 2, where it has one.
pub fn build(
    recipe: &Recipe,
    root: Option<&RootTree>,
    options: &Options,
    cache: &Cache,
    progress: &Progress,
) -> anyhow::Result<Built> {
    let inputs = gather(recipe, options, cache, progress)?;
    let index = modules::index(cache, &inputs.kernel, progress)?;
    let for_root = if root.is_some() { &stage2::MODULES[..] } else { &[] };
    let selection = modules::select(recipe, for_root, &index)?;
    let packed = root
        .map(|tree| pack_root(recipe, tree, options, cache, progress))
        .transpose()?;
    let output = Output::start(&options.out, &recipe.name)?;
    let (plan, firmware) = lay_out(recipe, options, &inputs, &index, &selection)?;
    if let Some(seen) = &options.cards {
        cards::prove(seen, &index, &selection, &firmware).map_err(|lines| {
            anyhow!(
                "{}: the image would not do for every PC: {}",
                recipe.file.display(),
                lines.join("; ")
            )
        })?;
    }
    // The files that are only copied are copied while the archive is compressed.
    let (initrd, copied) = std::thread::scope(|scope| {
        let copying = scope.spawn(|| copy_through(&inputs, &output));
        (pack(&plan, recipe, cache, progress), copying.join())
    });
    let initrd = initrd?;
    let mut artifacts = copied.map_err(|_| anyhow!("the thread that copies kernel and loaders failed"))??;
    if let Some(limit) = &recipe.max_initrd_bytes
        && initrd.len() as u64 > limit.value
    {
        let problem = format!(
            "initrd.img has {} bytes, more than max_initrd_bytes = {}: leave something out or raise it",
            initrd.len(),
            limit.value
        );
        return Err(recipe.error(limit.line, problem).into());
    }

    output.write("initrd.img", &initrd)?;
    artifacts.insert("initrd.img".to_owned(), artifact(&initrd));
    if let (Some(packed), Some(tree)) = (&packed, root) {
        artifacts.append(&mut write_root(packed, tree, &output)?);
    }
    let root_part = packed.as_ref().map(|packed| RootPart {
        image: packed.root.bytes,
        tree: packed.tree.len() as u64,
    });
    let ram = Prediction::of(&plan, root_part);
    let manifest = Manifest {
        version: MANIFEST_VERSION,
        name: recipe.name.clone(),
        kernel_release: inputs.kernel.release.clone(),
        cmdline: recipe.cmdline.clone(),
        recipe_sha256: recipe.sha256.clone(),
        artifacts,
        files: plan
            .nodes()
            .map(|(path, node)| (path.to_owned(), file_entry(node)))
            .collect(),
        nic_drivers: selection.nic.iter().cloned().collect(),
        nic_ids: modules::pci_ids(&index, &selection.nic),
        firmware,
        needed_ram_bytes: ram.needed(),
        root: packed.map(|packed| Root {
            needed_ram_bytes: ram.needed_for_root(),
            peak_ram_bytes: ram.with_root().unwrap_or(0),
            templates: root.map(|tree| tree.templates.clone()).unwrap_or_default(),
            values: root.map(|tree| tree.values.clone()).unwrap_or_default(),
            ..packed.root
        }),
    };
    let mut text = serde_json::to_string_pretty(&manifest)?;
    text.push('\n');
    output.write("manifest.json", text.as_bytes())?;
    let folder = output.finish()?;
    Ok(Built {
        folder,
        manifest,
        unpacked_size: plan.content_size(),
        ram,
    })
}

/// Kernel and boot loaders, as they came.
fn copy_through(inputs: &Inputs, output: &Output) -> anyhow::Result<BTreeMap<String, Artifact>> {
    let mut artifacts = BTreeMap::new();
    let kernel = ("vmlinuz".to_owned(), &inputs.kernel.vmlinuz);
    let loaders = inputs
        .loaders
        .iter()
        .map(|(path, file)| ((*path).to_owned(), file));
    for (name, file) in std::iter::once(kernel).chain(loaders) {
        let bytes = read(file)?;
        output.write(&name, &bytes)?;
        artifacts.insert(name, artifact(&bytes));
    }
    Ok(artifacts)
}

fn pack_root(
    recipe: &Recipe,
    tree: &RootTree,
    options: &Options,
    cache: &Cache,
    progress: &Progress,
) -> anyhow::Result<stage2::Packed> {
    let mut apt = Apt::new(cache, &recipe.suite, options.freshness);
    stage2::pack(tree, &mut apt, cache, progress)
}

/// `root.img` and what describes it.
fn write_root(
    packed: &stage2::Packed,
    tree: &RootTree,
    output: &Output,
) -> anyhow::Result<BTreeMap<String, Artifact>> {
    output.copy("root.img", &packed.image)?;
    let image = Artifact {
        sha256: packed.sha256.clone(),
        size: packed.root.bytes,
    };
    let mut packages = serde_json::to_vec_pretty(&tree.packages)?;
    packages.push(b'\n');
    let mut artifacts = BTreeMap::from([("root.img".to_owned(), image)]);
    for (name, bytes) in [
        ("root.tree", &packed.tree),
        ("root.list", &packed.list.encode()?),
        ("packages.json", &packages),
    ] {
        output.write(name, bytes)?;
        artifacts.insert(name.to_owned(), artifact(bytes));
    }
    Ok(artifacts)
}

fn artifact(bytes: &[u8]) -> Artifact {
    Artifact {
        sha256: sha256_hex(bytes),
        size: bytes.len() as u64,
    }
}

/// The file plan, and the names of firmware with whether it is inside.
fn lay_out(
    recipe: &Recipe,
    options: &Options,
    inputs: &Inputs,
    index: &ModuleIndex,
    selection: &Selection,
) -> anyhow::Result<(Plan, BTreeMap<String, bool>)> {
    let mut plan = Plan::new();
    add_base(&mut plan, recipe, options, inputs)?;
    add_modules(&mut plan, recipe, &inputs.kernel, index, selection)?;
    let firmware = add_firmware(&mut plan, inputs, index, selection)?;
    add_extras(&mut plan, recipe)?;
    plan.seal()?;
    Ok((plan, firmware))
}

fn pack(plan: &Plan, recipe: &Recipe, cache: &Cache, progress: &Progress) -> anyhow::Result<Vec<u8>> {
    let archive = write_archive(plan).context("newc archive")?;
    let mut initrd = Vec::with_capacity(archive.bytes.len());
    let phase = progress.bytes("compressing", archive.bytes.len() as u64);
    compress(&archive, recipe.compression, cache, &mut initrd, |done| {
        phase.at(done)
    })?;
    phase.finish();
    Ok(initrd)
}

fn gather(recipe: &Recipe, options: &Options, cache: &Cache, progress: &Progress) -> anyhow::Result<Inputs> {
    let mut apt = Apt::new(cache, &recipe.suite, options.freshness);
    let mut unpacked = |name: &Located<String>, follow| -> anyhow::Result<PathBuf> {
        let tree = apt
            .package(&name.value, follow, progress)
            .and_then(|found| deb::unpacked(cache, &found, progress));
        // On one line with the recipe's own: the package may be misspelt there.
        tree.map_err(|error| anyhow::Error::new(recipe.error(name.line, format!("{error:#}"))))
    };
    let kernel = match (&options.kernel, &recipe.kernel) {
        (Some((vmlinuz, modules)), _) => Kernel::from_files(vmlinuz, modules)?,
        (None, KernelChoice::Installed) => Kernel::installed()?,
        (None, KernelChoice::Package(name)) => Kernel::in_package(&unpacked(name, Some("linux-image-"))?)?,
    };
    let busybox = match &recipe.busybox {
        FileChoice::File(file) => file.clone(),
        FileChoice::Package(name) => one_of(&unpacked(name, None)?, &["usr/bin/busybox", "bin/busybox"])?,
    };
    let mut loaders = BTreeMap::new();
    for (target, given, package, places) in [
        (
            "efi/shimx64.efi",
            &options.shim,
            &recipe.loaders.shim,
            SHIM_PLACES,
        ),
        (
            "efi/grubx64.efi",
            &options.grub,
            &recipe.loaders.grub,
            GRUB_PLACES,
        ),
        ("efi/mmx64.efi", &options.mok, &recipe.loaders.mok, MOK_PLACES),
        (
            "bios/undionly.kpxe",
            &options.ipxe,
            &recipe.loaders.ipxe,
            IPXE_PLACES,
        ),
    ] {
        let file = match given {
            Some(file) => file.clone(),
            None => one_of(&unpacked(package, None)?, places)?,
        };
        loaders.insert(target, file);
    }
    let firmware = recipe
        .firmware
        .iter()
        .map(|name| unpacked(name, None))
        .collect::<Result<_, _>>()?;
    Ok(Inputs {
        kernel,
        busybox,
        loaders,
        firmware,
    })
}

const SHIM_PLACES: &[&str] = &["usr/lib/shim/shimx64.efi.signed"];
/// The network build: its own modules know http and tftp.
const GRUB_PLACES: &[&str] = &["usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed"];
const MOK_PLACES: &[&str] = &["usr/lib/shim/mmx64.efi.signed"];
/// For PCs with a plain PXE ROM: iPXE that goes on with the ROM's own driver.
const IPXE_PLACES: &[&str] = &["usr/lib/ipxe/undionly.kpxe"];

fn one_of(tree: &Path, places: &[&str]) -> anyhow::Result<PathBuf> {
    places
        .iter()
        .map(|place| tree.join(place))
        .find(|file| file.is_file())
        .with_context(|| {
            format!(
                "{}: no /{} in this package",
                tree.display(),
                places.join(", no /")
            )
        })
}

/// Programs, devices and folders that every image has.
fn add_base(plan: &mut Plan, recipe: &Recipe, options: &Options, inputs: &Inputs) -> anyhow::Result<()> {
    for folder in [
        "/dev", "/etc", "/mnt", "/proc", "/root", "/run", "/sys", "/tmp", "/var",
    ] {
        plan.add(
            folder,
            Node::Directory {
                permissions: if folder == "/tmp" { 0o1777 } else { 0o755 },
            },
        )?;
    }
    // Before devtmpfs is mounted the kernel opens the console by this node.
    plan.add(
        "/dev/console",
        Node::CharacterDevice {
            permissions: 0o600,
            major: 5,
            minor: 1,
        },
    )?;
    plan.add(
        "/dev/null",
        Node::CharacterDevice {
            permissions: 0o666,
            major: 1,
            minor: 3,
        },
    )?;
    for (path, file) in [("/init", "cid-init"), ("/sbin/cid-agent", "cid-agent")] {
        let file = options.node_programs.join(file);
        let bytes = fs::read(&file).with_context(|| {
            format!(
                "{}: run ci/node-programs first, or give --node-programs DIR",
                file.display()
            )
        })?;
        plan.add(path, Node::program(bytes))?;
    }
    plan.add_supplied("/bin/busybox", Node::program(read(&inputs.busybox)?))?;
    plan.add(
        "/bin/sh",
        Node::Symlink {
            target: "busybox".into(),
        },
    )?;
    plan.add(
        "/etc/cid/image",
        Node::file(format!("{}\n", recipe.name).into_bytes()),
    )?;
    Ok(())
}

fn add_modules(
    plan: &mut Plan,
    recipe: &Recipe,
    kernel: &Kernel,
    index: &ModuleIndex,
    selection: &Selection,
) -> anyhow::Result<()> {
    let root = format!("/lib/modules/{}", kernel.release);
    let unpacks = kernel.unpacks_modules();
    let modules: Vec<&ModuleFacts> = selection
        .closure
        .keys()
        .filter_map(|name| index.module(name))
        .collect();
    // Unpacking is most of the time of a build whose packed blocks are in the cache.
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let share = modules.len().div_ceil(workers).max(1);
    type Stored = anyhow::Result<Vec<(String, Vec<u8>)>>;
    let read: Vec<Stored> = std::thread::scope(|scope| {
        let one = |facts: &&ModuleFacts| stored_module(recipe, kernel, unpacks, facts);
        let threads: Vec<_> = modules
            .chunks(share)
            .map(|chunk| scope.spawn(move || chunk.iter().map(one).collect()))
            .collect();
        let failed = |_| Err(anyhow!("a thread that reads modules failed"));
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(failed))
            .collect()
    });
    let mut stored = BTreeMap::new();
    let mut facts = modules.iter();
    for chunk in read {
        for ((path, bytes), facts) in chunk?.into_iter().zip(facts.by_ref()) {
            plan.add(&format!("{root}/{path}"), Node::file(bytes))?;
            stored.insert(facts.name.clone(), path);
        }
    }
    let names = selection.closure.keys().cloned().collect();
    for (name, text) in index_files(index, &names, |facts| {
        stored.get(&facts.name).cloned().unwrap_or_default()
    }) {
        plan.add(&format!("{root}/{name}"), Node::file(text.into_bytes()))?;
    }
    Ok(())
}

/// Path below the modules folder, and bytes, as the image has them.
fn stored_module(
    recipe: &Recipe,
    kernel: &Kernel,
    unpacks: bool,
    facts: &ModuleFacts,
) -> anyhow::Result<(String, Vec<u8>)> {
    let file = kernel.modules.join(&facts.path);
    let bytes = read(&file)?;
    if sha256_hex(&bytes) != facts.sha256 {
        bail!(
            "{}: changed since its facts were read; delete the cache's 'facts' and build again",
            file.display()
        );
    }
    if unpacks && bytes.len() >= recipe.unpack_below {
        return Ok((facts.path.clone(), bytes));
    }
    let plain = facts.path.split_inclusive(".ko").next().unwrap_or(&facts.path);
    Ok((plain.to_owned(), module::unpack(&facts.path, &bytes)?))
}

/// Firmware that the drivers may ask for: every name, and whether the file is inside.
fn add_firmware(
    plan: &mut Plan,
    inputs: &Inputs,
    index: &ModuleIndex,
    selection: &Selection,
) -> anyhow::Result<BTreeMap<String, bool>> {
    let mut names = BTreeMap::new();
    for module in selection.closure.keys().filter_map(|name| index.module(name)) {
        for name in &module.firmware {
            names.insert(name.clone(), false);
        }
    }
    for (name, inside) in &mut names {
        for tree in &inputs.firmware {
            let places = ["usr/lib/firmware", "lib/firmware"].map(|folder| tree.join(folder).join(name));
            if let Some(file) = places.iter().find(|file| file.is_file()) {
                plan.add_supplied(&format!("/lib/firmware/{name}"), Node::file(read(file)?))?;
                *inside = true;
                break;
            }
        }
    }
    Ok(names)
}

fn add_extras(plan: &mut Plan, recipe: &Recipe) -> anyhow::Result<()> {
    for file in &recipe.files {
        let at = |error: String| recipe.error(file.path.line, error);
        let bytes = fs::read(&file.source)
            .map_err(|error| at(format!("source {}: {error}", file.source.display())))?;
        if let Some(finding) = secrets::findings(&file.path.value, &bytes, &[])
            .into_iter()
            .next()
            && !file.public
        {
            return Err(at(format!("{finding}; if it is no secret, say public = true")).into());
        }
        plan.add(
            &file.path.value,
            Node::File {
                permissions: file.permissions,
                data: bytes.into(),
            },
        )
        .map_err(|error| at(format!("{error}: choose another path")))?;
    }
    for link in &recipe.links {
        plan.add(
            &link.path.value,
            Node::Symlink {
                target: link.target.clone(),
            },
        )
        .map_err(|error| recipe.error(link.path.line, format!("{error}: choose another path")))?;
    }
    Ok(())
}

fn file_entry(node: &Node) -> FileEntry {
    let size = match node {
        Node::File { data, .. } => data.len() as u64,
        Node::Symlink { target } => target.len() as u64,
        Node::Directory { .. } | Node::CharacterDevice { .. } => 0,
    };
    FileEntry {
        mode: format!("{:06o}", node.mode()),
        size,
        sha256: node.sha256(),
    }
}

fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(file).with_context(|| file.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_key_among_the_added_files_is_refused_unless_it_is_said_to_be_public() {
        let folder = tempfile::tempdir().unwrap();
        let pem = format!("-----BEGIN PRIVATE KEY-----\n{}\n", "QUJD".repeat(12));
        fs::write(folder.path().join("a"), pem).unwrap();
        let recipe = |line: &str| {
            let text = format!(
                "[modules]\nnic = [\"virtio_net\"]\n[[file]]\npath = \"/etc/a\"\nsource = \"a\"\n{line}"
            );
            Recipe::parse(&folder.path().join("try.toml"), &text).unwrap()
        };
        let error = add_extras(&mut Plan::default(), &recipe(""))
            .unwrap_err()
            .to_string();
        assert!(error.contains("try.toml:4: /etc/a: a private key"), "{error}");
        assert!(!error.contains("QUJD"), "{error}");
        add_extras(&mut Plan::default(), &recipe("public = true\n")).unwrap();
    }
}
