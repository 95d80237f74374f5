//! What the process tests share: running `cidbuild` as people do, with packages from the machine's own archive (the
//! cache is the user's, so that they are fetched once).

#![allow(
    dead_code,
    reason = "each test file is a crate of its own and uses a part of this"
)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// `cidbuild` with stand-ins for the node programs, in the repository's root.
pub(crate) fn cidbuild(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cidbuild"));
    command
        .args(arguments)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
    command
}

/// Node programs of a size that the budget reserves for them, that do not compress: the real ones must be smaller.
pub(crate) fn stand_ins(folder: &Path, bytes: usize) -> PathBuf {
    let programs = folder.join("node-programs");
    std::fs::create_dir_all(&programs).expect("folder");
    for (name, seed) in [("cid-init", 1_u64), ("cid-agent", 2)] {
        let mut state = seed;
        let noise: Vec<u8> = (0..bytes / 2)
            .map(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                (state >> 56) as u8
            })
            .collect();
        std::fs::write(programs.join(name), noise).expect("program");
    }
    programs
}

/// Builds and returns the image's folder.
pub(crate) fn build(recipe: &str, out: &Path, programs: &Path) -> PathBuf {
    let output = cidbuild(&["image", recipe, "--quiet", "--out"])
        .arg(out)
        .arg("--node-programs")
        .arg(programs)
        .output()
        .expect("cidbuild runs");
    assert!(output.status.success(), "{}", text(&output.stderr));
    PathBuf::from(text(&output.stdout).trim())
}

/// The one line that a refused command leaves, checked to be one.
pub(crate) fn refusal(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let line = text(&output.stderr);
    assert_eq!(line.trim_end().lines().count(), 1, "more than one line: {line}");
    line.trim_end().to_owned()
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// SHA-256 of every file below `folder`, as coreutils sees it.
pub(crate) fn digests(folder: &Path) -> String {
    let output = Command::new("sh")
        .args(["-c", "find . -type f | LC_ALL=C sort | xargs sha256sum"])
        .current_dir(folder)
        .output()
        .expect("sha256sum runs");
    text(&output.stdout)
}

/// The kernel package that the last build of a shipped recipe used, unpacked in the cache.
pub(crate) fn kernel_tree(image: &Path) -> PathBuf {
    let manifest: serde_json::Value =
        serde_json::from_slice(&std::fs::read(image.join("manifest.json")).expect("manifest")).expect("JSON");
    let release = manifest["kernel_release"].as_str().expect("release");
    let cache = cidbuild::cache::root().expect("cache folder");
    let trees = std::fs::read_dir(cache.join("unpacked")).expect("unpacked packages");
    let mut trees = trees.flatten().map(|entry| entry.path());
    trees
        .find(|tree| tree.join(format!("boot/vmlinuz-{release}")).is_file())
        .expect("the kernel's package")
}
