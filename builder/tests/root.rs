//! An image with a root: the same bytes in two folders, looked into, spoilt and found out, and no way for a block driver to come along.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use cidbuild::apt::Freshness;
use cidbuild::cache::Cache;
use cidbuild::image::{Options, build};
use cidbuild::progress::Progress;
use cidbuild::recipe::Recipe;
use cidbuild::root::{Layer, PackageFacts, RootTree};
use common::{cidbuild, digests, stand_ins, text};

/// A tar of these files, and what the builder wants to know of it.
fn layer(file: &Path, name: &'static str, files: &[(&str, &[u8])]) -> Layer {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(if bytes.is_empty() { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000);
        header.set_size(bytes.len() as u64);
        // A new header has an old NUL in this place, of which mkfs.erofs takes no notice.
        header.set_entry_type(match bytes.is_empty() {
            true => tar::EntryType::Directory,
            false => tar::EntryType::Regular,
        });
        builder.append_data(&mut header, path, *bytes).expect("tar");
    }
    let bytes = builder.into_inner().expect("tar");
    fs::write(file, &bytes).expect("tar");
    Layer {
        name,
        tar: file.to_owned(),
        sha256: cid_initramfs::digest::sha256_hex(&bytes),
        bytes: bytes.len() as u64,
    }
}

/// Bytes that do not compress, so that a file has chunks of its own.
fn noise(count: usize) -> Vec<u8> {
    let mut state = 7_u64;
    let next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(count).collect()
}

fn tree(folder: &Path, motd: &[u8], version: &str) -> RootTree {
    let noise = noise(900_000);
    let base = layer(
        &folder.join("base.tar"),
        "base",
        &[
            ("etc", b""),
            ("etc/motd", b"below\n"),
            ("usr", b""),
            ("usr/data", b""),
            ("usr/data/noise", &noise),
            ("usr/data/small", b"small\n"),
        ],
    );
    let top = layer(
        &folder.join("top.tar"),
        "top",
        &[("etc", b""), ("etc/motd", motd)],
    );
    RootTree {
        layers: vec![base, top],
        packages: vec![PackageFacts {
            name: "thing".into(),
            version: version.into(),
            architecture: "amd64".into(),
            licence: "MIT".into(),
        }],
        epoch: 1_000_000,
        process: None,
        templates: Vec::new(),
        values: std::collections::BTreeMap::new(),
    }
}

const RECIPE: &str = "name = \"rooted\"\n[modules]\nnic = [\"e1000\"]\n";

fn build_in(folder: &Path, out: &str, recipe: &str, tree: &RootTree) -> anyhow::Result<PathBuf> {
    let file = folder.join("rooted.toml");
    fs::write(&file, recipe)?;
    let options = Options {
        out: folder.join(out),
        kernel: None,
        shim: None,
        grub: None,
        mok: None,
        ipxe: None,
        node_programs: stand_ins(folder, 10_000),
        freshness: Freshness::Pinned,
        cards: None,
    };
    let recipe = Recipe::load(&file)?;
    let built = build(
        &recipe,
        Some(tree),
        &options,
        &Cache::open()?,
        &Progress::silent(),
    )?;
    Ok(built.folder)
}

fn run(arguments: &[&str]) -> (bool, String) {
    let output = cidbuild(arguments).output().expect("cidbuild");
    (
        output.status.success(),
        text(&output.stdout) + &text(&output.stderr),
    )
}

#[test]
fn built_looked_into_and_spoilt() {
    let folder = tempfile::tempdir().expect("folder");
    let one = tree(folder.path(), b"above\n", "1.0");
    let image = build_in(folder.path(), "here", RECIPE, &one).expect("built");
    let again = build_in(folder.path(), "some/where", RECIPE, &one).expect("built");
    assert_eq!(digests(&image), digests(&again), "same input, same bytes");
    let path = image.to_str().expect("UTF-8");

    let (fine, said) = run(&["verify", path]);
    assert!(
        fine && said.contains("chunks of root.img as its tree says"),
        "{said}"
    );
    let modules = run(&["ls", path]).1;
    assert!(
        modules.contains("/erofs.ko") && modules.contains("/overlay.ko"),
        "{modules}"
    );
    assert!(
        !modules.contains("/loop.ko"),
        "a root takes no block device: {modules}"
    );
    let (_, listing) = run(&["ls", path, "--root"]);
    assert!(listing.contains("100644          6 /etc/motd\n"), "{listing}");
    assert_eq!(run(&["cat", path, "/etc/motd", "--root"]).1, "above\n");
    assert_eq!(
        run(&["cat", &format!("{path}/root.img"), "/usr/data/small"]).1,
        "small\n"
    );
    let (fine, said) = run(&["cat", path, "/etc/none", "--root"]);
    assert!(
        !fine && said.contains("no /etc/none that can be read in it"),
        "{said}"
    );
    let (_, usage) = run(&["du", path, "/usr", "--root"]);
    assert_eq!(
        usage,
        "      900006       3 /usr/data\n      900006       3 /usr\n"
    );

    let target = folder.path().join("unpacked");
    let (fine, said) = run(&["unpack", path, target.to_str().expect("UTF-8"), "--root"]);
    assert!(fine, "{said}");
    assert_eq!(
        fs::read(target.join("usr/data/noise")).expect("unpacked"),
        noise(900_000)
    );
    let (fine, said) = run(&["unpack", path, target.to_str().expect("UTF-8"), "--root"]);
    assert!(!fine && said.contains("not empty"), "{said}");

    let two = tree(folder.path(), b"above!\n", "1.1");
    let other = build_in(folder.path(), "other", RECIPE, &two).expect("built");
    let (same, said) = run(&["diff", path, other.to_str().expect("UTF-8")]);
    assert!(
        !same && said.contains("root:/etc/motd") && said.contains("package thing:amd64: 1.0 -> 1.1"),
        "{said}"
    );
    assert!(!said.contains("root:/usr/data"), "{said}");

    // One bit, in the middle of what does not compress.
    let file = image.join("root.img");
    let mut bytes = fs::read(&file).expect("root.img");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&file, bytes).expect("root.img");
    let (fine, said) = run(&["verify", path]);
    assert!(!fine, "{said}");
    let chunk = format!("root.img: chunk {} (from byte", middle / (256 * 1024));
    assert!(
        said.contains(&chunk) && said.contains("/usr/data/noise is spoilt"),
        "{said}"
    );
    assert!(!said.contains("/usr/data/small is"), "{said}");
}

#[test]
fn a_root_brings_no_block_driver_along() {
    let folder = tempfile::tempdir().expect("folder");
    let tree = tree(folder.path(), b"above\n", "1.0");
    for module in ["loop", "ahci", "sd_mod"] {
        let recipe = format!("{RECIPE}other = [\"{module}\"]\n");
        let error = build_in(folder.path(), "out", &recipe, &tree).expect_err(module);
        let line = format!("{error:#}");
        assert!(line.contains("can make block devices"), "{line}");
    }
}
