//! The arrows of ARCHITECTURE.md, checked: who may import whom, what PID 1 is made of, where clocks and sockets
//! may not be. Reads `cargo metadata` and the source text; needs no build.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Crate, and every crate of ours that it may import. Imports run downwards only; cores never import each other.
const ARROWS: &[(&str, &[&str])] = &[
    ("cid-protocol", &[]),
    ("cid-sys", &[]),
    ("cid-initramfs", &[]),
    ("cid-discovery", &[]),
    ("cid-content", &[]),
    ("cid-manual", &[]),
    ("cid-streams", &[]),
    ("cid-trust", &[]),
    ("cid-bootserver", &["cid-protocol"]),
    (
        "cidbuild",
        &["cid-protocol", "cid-initramfs", "cid-manual", "cid-content"],
    ),
    (
        "cidhead",
        &[
            "cid-protocol",
            "cid-sys",
            "cid-bootserver",
            "cid-discovery",
            "cid-content",
            "cid-manual",
            "cid-streams",
            "cid-trust",
        ],
    ),
    ("cid-init", &["cid-protocol", "cid-sys"]),
    (
        "cid-agent",
        &[
            "cid-protocol",
            "cid-sys",
            "cid-discovery",
            "cid-content",
            "cid-streams",
            "cid-trust",
        ],
    ),
    (
        "cidctl",
        &[
            "cid-protocol",
            "cid-manual",
            "cid-streams",
            "cid-sys",
            "cid-trust",
        ],
    ),
    (
        "cidlab",
        &["cid-agent", "cid-protocol", "cid-sys", "cid-trust", "cid-manual"],
    ),
];

/// Everything PID 1 may be linked from: std, system calls, and what those two libraries bring.
const INIT_CLOSURE: &[&str] = &[
    "cid-init",
    "cid-protocol",
    "cid-sys",
    "nix",
    "rustix",
    "libc",
    "bitflags",
    "cfg-if",
    "cfg_aliases",
    "memoffset",
    "autocfg",
    "linux-raw-sys",
    "errno",
];

/// Source files or folders that are cores, and the words that would make them something else.
const PURE: &[&str] = &[
    "discovery/src",
    "content/src",
    "initramfs/src",
    "streams/src",
    "trust/src",
    "bootserver/src/policy.rs",
    "head/src/judge.rs",
    "node-agent/src/measure/path.rs",
    "bootserver/src/dhcp",
    "head/src/registry.rs",
    "head/src/registry",
    "head/src/jobs/place.rs",
    "node-agent/src/core",
    "node-agent/src/root/hosts.rs",
    "node-agent/src/root/memory.rs",
    "node-agent/src/root/services.rs",
    "node-agent/src/root/users.rs",
    "node-init/src/supervise.rs",
];
/// Within the pure folders, the shells: they own the sockets.
const SHELLS: &[&str] = &[
    "bootserver/src/dhcp/socket.rs",
    "bootserver/src/dhcp/proxy_socket.rs",
];
const IMPURE: &[&str] = &[
    "Instant::now",
    "SystemTime::now",
    "UdpSocket",
    "TcpStream",
    "TcpListener",
    // A scope is allowed: its threads have ended when it returns, so the function around it is as pure as without.
    "thread::spawn",
    "thread::sleep",
    "thread::Builder",
    "tokio::",
    "thread_rng",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn metadata(arguments: &[&str]) -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--offline"])
        .args(arguments)
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON")
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().expect(key)
}

/// Workspace crate to the workspace crates in its `[dependencies]` and `[build-dependencies]`.
fn imports(metadata: &Value) -> BTreeMap<String, BTreeSet<String>> {
    let packages = metadata["packages"].as_array().expect("packages");
    let ours: BTreeSet<&str> = packages.iter().map(|package| text(package, "name")).collect();
    let mut map = BTreeMap::new();
    for package in packages {
        let dependencies = package["dependencies"].as_array().expect("dependencies");
        let used = dependencies
            .iter()
            .filter(|dependency| dependency["kind"].as_str() != Some("dev"))
            .map(|dependency| text(dependency, "name"))
            .filter(|name| ours.contains(name))
            .map(str::to_owned)
            .collect();
        map.insert(text(package, "name").to_owned(), used);
    }
    map
}

/// Imports that `arrows` does not allow, as `a -> b`; crates that the table does not know, as `a`.
fn violations(imports: &BTreeMap<String, BTreeSet<String>>, arrows: &[(&str, &[&str])]) -> Vec<String> {
    let mut found = Vec::new();
    for (name, used) in imports {
        match arrows.iter().find(|(known, _)| known == name) {
            None => found.push(name.clone()),
            Some((_, allowed)) => found.extend(
                used.iter()
                    .filter(|target| !allowed.contains(&target.as_str()))
                    .map(|target| format!("{name} -> {target}")),
            ),
        }
    }
    found
}

#[test]
fn no_crate_imports_against_the_arrows() {
    let found = violations(&imports(&metadata(&["--no-deps"])), ARROWS);
    assert!(
        found.is_empty(),
        "against the arrows of ARCHITECTURE.md: {found:?}"
    );
}

#[test]
fn the_check_of_the_arrows_can_fail() {
    let mut imports = imports(&metadata(&["--no-deps"]));
    imports
        .entry("cid-protocol".to_owned())
        .or_default()
        .insert("cidhead".to_owned());
    assert_eq!(violations(&imports, ARROWS), ["cid-protocol -> cidhead"]);
}

#[test]
fn pid_1_is_made_of_std_and_system_calls_only() {
    let output = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--locked",
            "--offline",
            "-p",
            "cid-init",
            "-e",
            "normal",
            "--prefix",
            "none",
            "--format",
            "{p}",
        ])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let listing = String::from_utf8_lossy(&output.stdout);
    let linked: BTreeSet<&str> = listing
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert!(linked.contains("cid-init"), "cargo tree printed: {listing}");
    let strangers: Vec<_> = linked
        .iter()
        .filter(|name| !INIT_CLOSURE.contains(name))
        .collect();
    assert!(strangers.is_empty(), "PID 1 links {strangers:?}");
}

fn rust_files(path: &Path, into: &mut Vec<PathBuf>) {
    if path.is_file() {
        into.push(path.to_owned());
        return;
    }
    for entry in std::fs::read_dir(path).expect("a folder of the tree").flatten() {
        let path = entry.path();
        if path.is_dir() || path.extension().is_some_and(|extension| extension == "rs") {
            rust_files(&path, into);
        }
    }
}

#[test]
fn cores_own_no_socket_clock_thread_or_random_source() {
    let root = root();
    let mut files = Vec::new();
    for path in PURE {
        rust_files(&root.join(path), &mut files);
    }
    assert!(
        files.len() > 5,
        "only {} files found: did a core move?",
        files.len()
    );
    let shells: Vec<PathBuf> = SHELLS.iter().map(|path| root.join(path)).collect();
    let mut found = Vec::new();
    for file in files.iter().filter(|file| !shells.contains(file)) {
        let source = std::fs::read_to_string(file).expect("source text");
        let code = source.lines().filter(|line| !line.trim_start().starts_with("//"));
        for line in code {
            found.extend(
                IMPURE
                    .iter()
                    .filter(|word| line.contains(**word))
                    .map(|word| format!("{}: {word}", file.display())),
            );
        }
    }
    assert!(found.is_empty(), "a core reaches for the world: {found:#?}");
}
