//! A version is whole or it is not there; the same bytes are one version; a number is given once.

use super::*;

/// A built image `minimal` of a few bytes below `folder`; `mark` makes it another one.
pub(crate) fn build(folder: &Path, mark: &str) -> PathBuf {
    let image = folder.join("minimal");
    fs::create_dir_all(image.join("efi")).unwrap();
    let files = [
        "vmlinuz",
        "initrd.img",
        "efi/shimx64.efi",
        "efi/grubx64.efi",
        "efi/mmx64.efi",
    ];
    let mut artifacts = serde_json::Map::new();
    for file in files {
        let content = format!("{file} {mark}");
        let _ = fs::remove_file(image.join(file));
        fs::write(image.join(file), &content).unwrap();
        let digest = hex(&Sha256::digest(&content));
        artifacts.insert(
            file.to_owned(),
            serde_json::json!({ "sha256": digest, "size": content.len() }),
        );
    }
    let manifest = serde_json::json!({
        "version": 1, "name": "minimal", "kernel_release": "6.12", "cmdline": "quiet", "recipe_sha256": "",
        "artifacts": artifacts, "files": {}, "nic_drivers": [], "firmware": {},
    });
    fs::write(image.join(MANIFEST), manifest.to_string()).unwrap();
    image
}

fn names(versions: &Versions) -> Vec<String> {
    versions.list().unwrap().iter().map(Version::image).collect()
}

#[test]
fn each_new_digest_is_a_version_and_the_same_bytes_are_one() {
    let folder = tempfile::tempdir().unwrap();
    let versions = Versions::new(&folder.path().join("state"));
    assert!(versions.list().unwrap().is_empty());
    let import = |mark: &str| versions.import(&build(folder.path(), mark), None).unwrap();
    assert!(matches!(import("one"), Imported::New(version) if version.image() == "minimal@1"));
    assert!(matches!(import("one"), Imported::Known(version) if version.number == 1));
    assert!(matches!(import("two"), Imported::New(version) if version.number == 2));
    assert!(
        matches!(import("one"), Imported::Known(version) if version.number == 1),
        "a build that was there before is that version"
    );
    assert_eq!(names(&versions), ["minimal@1", "minimal@2"]);
    versions.remove("minimal", 1).unwrap();
    assert!(matches!(import("three"), Imported::New(version) if version.number == 3));
    assert_eq!(names(&versions), ["minimal@2", "minimal@3"]);
}

#[test]
fn what_was_imported_does_not_change_with_the_folder_it_came_from() {
    let folder = tempfile::tempdir().unwrap();
    let versions = Versions::new(&folder.path().join("state"));
    let built = build(folder.path(), "one");
    versions.import(&built, None).unwrap();
    fs::write(built.join("vmlinuz"), "another").unwrap();
    let kept = versions.root().join("minimal/1/vmlinuz");
    assert_eq!(fs::read_to_string(&kept).unwrap(), "vmlinuz one");
    assert_eq!(fs::metadata(&kept).unwrap().permissions().mode() & 0o222, 0);
}

#[test]
fn a_damaged_build_is_no_version_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let versions = Versions::new(&folder.path().join("state"));
    let built = build(folder.path(), "one");
    fs::write(built.join("initrd.img"), "initrd.img onf").unwrap();
    let refused = versions.import(&built, None).unwrap_err().to_string();
    assert!(
        refused.contains("initrd.img is not the file that was built"),
        "{refused}"
    );
    assert_eq!(names(&versions), Vec::<String>::new());
    assert_eq!(fs::read_dir(versions.root().join("minimal")).unwrap().count(), 0);
    // The control: mended, it is one.
    assert!(versions.import(&build(folder.path(), "one"), None).is_ok());
    let missing = versions.import(&folder.path().join("nowhere"), None).unwrap_err();
    assert!(missing.to_string().contains("`cidbuild image` makes one"));
}

/// Killed in the middle of a copy: the next start clears up, and the number is free.
#[test]
fn half_a_version_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let versions = Versions::new(&folder.path().join("state"));
    let half = versions.root().join("minimal/.new-77-1");
    fs::create_dir_all(&half).unwrap();
    fs::write(half.join("vmlinuz"), "half").unwrap();
    assert!(versions.list().unwrap().is_empty());
    assert!(!half.exists());
    let made = versions.import(&build(folder.path(), "one"), None).unwrap();
    assert_eq!(made.version().image(), "minimal@1");
}

#[test]
fn names_of_versions() {
    assert_eq!(split("compute@3"), Some(("compute", 3)));
    for wrong in ["compute", "compute@", "compute@0", "compute@x", "compute@+3"] {
        assert_eq!(split(wrong), None, "{wrong}");
    }
}
