//! What goes wrong is said in one line, and the previous image stays whole.

mod common;

use std::path::Path;
use std::process::{Command, Output};

use common::{build, cidbuild, digests, kernel_tree, refusal, stand_ins, text};

const PREFIX: &str = "[modules]\nnic = [\"virtio_net\"]\n";

/// Builds `recipe` text and returns the refusal without the recipe's folder.
fn refused(recipe: &str) -> String {
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("try.toml");
    std::fs::write(&file, recipe).expect("recipe");
    let output = image(&file, folder.path(), &[]);
    refusal(&output).replace(&format!("{}/", folder.path().display()), "")
}

fn image(recipe: &Path, folder: &Path, more: &[&str]) -> Output {
    cidbuild(&["image", "--quiet"])
        .arg(recipe)
        .arg("--out")
        .arg(folder)
        .arg("--node-programs")
        .arg(stand_ins(folder, 1000))
        .args(more)
        .output()
        .expect("cidbuild runs")
}

#[test]
fn the_recipes_line_is_named() {
    assert_eq!(
        refused("[modules]\nnic = [\"virtio_nett\"]\n"),
        "cidbuild: try.toml:2: no module \"virtio_nett\" in this kernel; the nearest is \"virtio_net\""
    );
    assert_eq!(
        refused("[modules]\nnic = [\n  \"drivers/net/etherne/*\",\n]\n"),
        "cidbuild: try.toml:3: \"drivers/net/etherne/*\" picks no module of this kernel; the nearest folder is \"drivers/net/ethernet/*\""
    );
    let missing = refused(&format!("{PREFIX}[kernel]\npackage = \"linux-image-none\"\n"));
    assert!(
        missing.starts_with("cidbuild: try.toml:4: package linux-image-none of suite trixie: "),
        "{missing}"
    );
    assert_eq!(
        refused(&format!(
            "{PREFIX}[[file]]\npath = \"/etc/motd\"\nsource = \"motd\"\n"
        )),
        "cidbuild: try.toml:4: source motd: No such file or directory (os error 2)"
    );
    assert_eq!(
        refused(&format!(
            "{PREFIX}[[link]]\npath = \"/bin/sh\"\ntarget = \"dash\"\n"
        )),
        "cidbuild: try.toml:4: /bin/sh: planned twice: choose another path"
    );
    assert_eq!(
        refused(&format!(
            "{PREFIX}[[link]]\npath = \"/bin/sh/../../../x\"\ntarget = \"dash\"\n"
        )),
        "cidbuild: try.toml:4: \"/bin/sh/../../../x\": leaves the root with '..'; give a path inside the image, such as /etc/motd"
    );
}

#[test]
fn a_block_driver_is_refused_unless_named() {
    let ahci = "[modules]\nnic = [\"virtio_net\"]\nother = [\n  \"button\",\n  \"ahci\",\n]\n";
    let line = refused(ahci);
    assert!(
        line.starts_with("cidbuild: try.toml:5: module ahci can make block devices (it imports "),
        "{line}"
    );
    assert!(
        line.ends_with("or say allow_block_drivers = [\"ahci\"]"),
        "{line}"
    );
    // What is brought by a dependency is refused as well, with the line that brought it.
    let line = refused("[modules]\nnic = [\"virtio_net\"]\nother = [\"sd_mod\"]\n");
    assert!(line.starts_with("cidbuild: try.toml:3: module "), "{line}");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("try.toml");
    let names = "\"ahci\", \"libahci\", \"libata\", \"scsi_mod\"";
    std::fs::write(&file, format!("{ahci}allow_block_drivers = [{names}]\n")).unwrap();
    let output = image(&file, folder.path(), &[]);
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[test]
fn modules_of_another_kernel_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let programs = stand_ins(folder.path(), 1000);
    let tree = kernel_tree(&build("pc", folder.path(), &programs));
    let release = tree
        .join("usr/lib/modules")
        .read_dir()
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .file_name();
    let release = release.to_str().unwrap();
    let module = format!("usr/lib/modules/{release}/kernel/drivers/net/virtio_net.ko.xz");
    // The same file under a folder of our own, with a kernel file that says another release.
    let other = folder.path().join("other");
    std::fs::create_dir_all(other.join("kernel/drivers/net")).unwrap();
    std::fs::copy(
        tree.join(module),
        other.join("kernel/drivers/net/virtio_net.ko.xz"),
    )
    .unwrap();
    let mut kernel = vec![0; 0x400];
    kernel[0x202..0x206].copy_from_slice(b"HdrS");
    kernel[0x20e..0x210].copy_from_slice(&0x100_u16.to_le_bytes());
    kernel[0x300..0x307].copy_from_slice(b"5.10.0 ");
    let vmlinuz = folder.path().join("vmlinuz");
    std::fs::write(&vmlinuz, kernel).unwrap();
    let recipe = folder.path().join("try.toml");
    std::fs::write(&recipe, PREFIX).unwrap();
    let output = image(
        &recipe,
        folder.path(),
        &[
            "--kernel",
            vmlinuz.to_str().unwrap(),
            "--modules",
            other.to_str().unwrap(),
        ],
    );
    let line = refusal(&output);
    assert!(
        line.ends_with(&format!(
            "is a module of kernel {release}, but the kernel is 5.10.0: give a matching pair"
        )),
        "{line}"
    );
}

#[test]
fn a_kernel_that_is_not_there_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = folder.path().join("try.toml");
    std::fs::write(&recipe, PREFIX).unwrap();
    let output = image(
        &recipe,
        folder.path(),
        &["--kernel", "/none/vmlinuz", "--modules", "/none"],
    );
    assert_eq!(
        refusal(&output),
        "cidbuild: kernel /none/vmlinuz: No such file or directory (os error 2)"
    );
    let output = cidbuild(&["image", "--kernel", "/none/vmlinuz"])
        .output()
        .unwrap();
    assert_eq!(
        output.status.code(),
        Some(2),
        "--kernel without --modules is wrong usage"
    );
    let output = cidbuild(&["image", "no-such-recipe"]).output().unwrap();
    assert!(refusal(&output).starts_with("cidbuild: no recipe \"no-such-recipe\": looked for images/"));
}

#[test]
fn a_full_disk_leaves_the_previous_image_whole() {
    let folder = tempfile::tempdir().unwrap();
    let programs = stand_ins(folder.path(), 1000);
    let image = build("pc", folder.path(), &programs);
    // A file system of 30 MB of its own (user and mount namespace): one image fits, two do not.
    let script = "mount -t tmpfs -o size=30m none \"$1\" && cp -a \"$2\" \"$1\"/pc && cd \"$1\" && shift 2 && \
                  { \"$@\" --out . ; echo status $?; find . -type f | LC_ALL=C sort | xargs sha256sum; }";
    let small = folder.path().join("small");
    std::fs::create_dir(&small).unwrap();
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("../images/pc.toml");
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"])
        .arg(&small)
        .arg(&image)
        .arg(env!("CARGO_BIN_EXE_cidbuild"))
        .args(["image", "--quiet"])
        .arg(recipe)
        .arg("--node-programs")
        .arg(&programs)
        .env(
            "XDG_CACHE_HOME",
            cidbuild::cache::root().unwrap().parent().unwrap(),
        )
        .output()
        .expect("unshare");
    let (stdout, line) = (text(&output.stdout), text(&output.stderr));
    assert!(stdout.starts_with("status 1\n"), "{stdout}{line}");
    assert_eq!(line.lines().count(), 1, "{line}");
    assert!(
        line.contains("No space left on device") && line.contains("free space there"),
        "{line}"
    );
    for digest in digests(&image).lines() {
        let (digest, name) = digest.split_once("  ./").unwrap();
        assert!(
            stdout.contains(&format!("{digest}  ./pc/{name}")),
            "{name} changed: {stdout}"
        );
    }
    assert!(
        !stdout.contains(".new"),
        "the half-written image is still there: {stdout}"
    );
}

#[test]
fn a_killed_build_leaves_the_previous_image_whole() {
    let folder = tempfile::tempdir().unwrap();
    let programs = stand_ins(folder.path(), 1000);
    let image = build("pc", folder.path(), &programs);
    let before = digests(&image);
    let half_written = folder.path().join(".pc.new");
    for milliseconds in [0, 3, 30, 300, 1000] {
        let mut child = cidbuild(&["image", "pc", "--quiet", "--out"])
            .arg(folder.path())
            .arg("--node-programs")
            .arg(&programs)
            .spawn()
            .unwrap();
        // From the moment that the new image is begun, so much later: each falls into another step, and whichever it
        // is, the outcome must be the same.
        while !half_written.exists() && child.try_wait().unwrap().is_none() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        std::thread::sleep(std::time::Duration::from_millis(milliseconds));
        let _ = child.kill();
        child.wait().unwrap();
        assert_eq!(
            digests(&image),
            before,
            "killed {milliseconds} ms after it began to write"
        );
    }
    std::fs::create_dir_all(&half_written).unwrap();
    build("pc", folder.path(), &programs);
    assert_eq!(digests(&image), before);
    assert!(
        !half_written.exists(),
        "what a killed build left is cleaned by the next"
    );
}

#[test]
fn a_closed_pipe_is_no_failure() {
    let folder = tempfile::tempdir().unwrap();
    let image = build("pc", folder.path(), &stand_ins(folder.path(), 1000));
    for verb in ["ls", "ls --json"] {
        let script = format!("\"$1\" {verb} \"$2\" | true; echo ${{PIPESTATUS[0]}}");
        let output = Command::new("bash")
            .args(["-c", &script, "bash", env!("CARGO_BIN_EXE_cidbuild")])
            .arg(&image)
            .output()
            .unwrap();
        assert_eq!(
            (text(&output.stdout).as_str(), text(&output.stderr).as_str()),
            ("0\n", ""),
            "{verb}"
        );
    }
}
