use std::fs;

use super::super::tree::Entry;
use super::*;

/// An OCI layout with `layers` (tar bytes, gzip when `packed`), written by hand after the specification.
fn layout(folder: &Path, layers: &[Vec<u8>], packed: bool) -> serde_json::Value {
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let blob = |bytes: &[u8]| {
        let digest = sha256_hex(bytes);
        fs::write(blobs.join(&digest), bytes).unwrap();
        (format!("sha256:{digest}"), bytes.len())
    };
    let mut diff_ids = Vec::new();
    let mut descriptors = Vec::new();
    for layer in layers {
        diff_ids.push(format!("sha256:{}", sha256_hex(layer)));
        let stored = if packed {
            zstd::encode_all(layer.as_slice(), 1).unwrap()
        } else {
            layer.clone()
        };
        let (digest, size) = blob(&stored);
        descriptors.push(serde_json::json!({"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": size}));
    }
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "config": {"Env": ["PATH=/bin", "X=1"], "Entrypoint": ["/bin/a"], "Cmd": ["-x"], "User": "7:8", "WorkingDir": "/work"}
    });
    let (digest, size) = blob(config.to_string().as_bytes());
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "layers": descriptors,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest, "size": size}
    });
    let (digest, size) = blob(manifest.to_string().as_bytes());
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [
        {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": size,
         "annotations": {"org.opencontainers.image.ref.name": "latest"}}
    ]});
    fs::write(folder.join("index.json"), index.to_string()).unwrap();
    index
}

fn tar_of(names: &[(&str, &str)]) -> Vec<u8> {
    let mut tree = Tree::default();
    for (name, text) in names {
        tree.put(name, Entry::text(*text, 0o644)).unwrap();
    }
    let mut bytes = Vec::new();
    tree.write_tar(&mut bytes, 10, |_| {}).unwrap();
    bytes
}

fn two_layers() -> Vec<Vec<u8>> {
    vec![
        tar_of(&[("etc/a", "1"), ("etc/b", "2"), ("var/x", "3")]),
        tar_of(&[("etc/.wh.a", ""), ("etc/c", "4"), ("var/.wh..wh..opq", "")]),
    ]
}

fn opened(path: &Path) -> anyhow::Result<(Image, Vec<String>)> {
    let workshop = tempfile::tempdir().unwrap();
    let image = Image::open(path, workshop.path())?;
    let tree = image.tree(workshop.path(), &Progress::silent())?;
    let names = tree.entries().map(|(name, _)| name.to_owned()).collect();
    Ok((image, names))
}

#[test]
fn a_layout_as_folder_and_as_tar_packed_and_plain() {
    for packed in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        layout(folder.path(), &two_layers(), packed);
        let (image, names) = opened(folder.path()).unwrap();
        assert_eq!(names, ["etc", "etc/b", "etc/c", "var"]);
        assert_eq!(image.process.environment, ["PATH=/bin", "X=1"]);
        assert_eq!(
            (image.process.entrypoint, image.process.command),
            (vec!["/bin/a".to_owned()], vec!["-x".to_owned()])
        );
        assert_eq!(
            (image.process.user.as_str(), image.process.folder.as_str()),
            ("7:8", "/work")
        );
        let file = folder.path().join("image.tar");
        let mut builder = tar::Builder::new(File::create(&file).unwrap());
        for part in ["index.json", "blobs"] {
            let path = folder.path().join(part);
            if path.is_dir() {
                builder.append_dir_all(part, path).unwrap();
            } else {
                builder.append_path_with_name(path, part).unwrap();
            }
        }
        builder.into_inner().unwrap();
        let (again, names) = opened(&file).unwrap();
        assert_eq!((again.identity, names.len()), (image.identity, 4));
        let error = format!(
            "{:#}",
            opened(&folder.path().join("image.tar:none")).expect_err("tag")
        );
        assert!(error.contains("tags there: latest"), "{error}");
        opened(&folder.path().join("image.tar:latest")).unwrap();
    }
}

#[test]
fn a_docker_archive() {
    let folder = tempfile::tempdir().unwrap();
    let layers = two_layers();
    let diff_ids: Vec<String> = layers
        .iter()
        .map(|layer| format!("sha256:{}", sha256_hex(layer)))
        .collect();
    let config = serde_json::json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let manifest = serde_json::json!([{"Config": "c.json", "RepoTags": ["my/image:1"], "Layers": ["1/layer.tar", "2/layer.tar"]}]);
    let file = folder.path().join("docker.tar");
    let mut builder = tar::Builder::new(File::create(&file).unwrap());
    let config = config.to_string().into_bytes();
    let manifest = manifest.to_string().into_bytes();
    for (name, bytes) in [
        ("c.json", &config),
        ("manifest.json", &manifest),
        ("1/layer.tar", &layers[0]),
        ("2/layer.tar", &layers[1]),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, bytes.as_slice()).unwrap();
    }
    builder.into_inner().unwrap();
    assert_eq!(opened(&file).unwrap().1, ["etc", "etc/b", "etc/c", "var"]);
    opened(&folder.path().join("docker.tar:1")).unwrap();
    assert!(opened(&folder.path().join("docker.tar:2")).is_err());
}

#[test]
fn one_flipped_byte_anywhere_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    layout(folder.path(), &two_layers(), true);
    for entry in fs::read_dir(folder.path().join("blobs/sha256")).unwrap() {
        let path = entry.unwrap().path();
        let whole = fs::read(&path).unwrap();
        for at in [0, whole.len() / 2, whole.len() - 1] {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(&path, &bytes).unwrap();
            let error = format!("{:#}", opened(folder.path()).expect_err("flipped"));
            assert_eq!(error.lines().count(), 1, "{error}");
        }
        // And bytes behind a layer's end.
        fs::write(&path, [whole.as_slice(), b"more"].concat()).unwrap();
        opened(folder.path()).expect_err("longer");
        fs::write(&path, &whole).unwrap();
    }
    opened(folder.path()).unwrap();
}

#[test]
fn a_digest_is_no_path() {
    let folder = tempfile::tempdir().unwrap();
    let mut index = layout(folder.path(), &two_layers(), false);
    for bad in ["sha256:../../../etc/passwd", "sha512:ab", "x"] {
        index["manifests"][0]["digest"] = bad.into();
        fs::write(folder.path().join("index.json"), index.to_string()).unwrap();
        let error = format!("{:#}", opened(folder.path()).expect_err(bad));
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}
