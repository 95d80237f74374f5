use super::*;

/// A recipe's text in a folder of its own, built.
struct Place {
    folder: tempfile::TempDir,
    cache: Cache,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(&folder.path().join("cache")).unwrap();
        Place { folder, cache }
    }

    fn write(&self, name: &str, text: &str) {
        let file = self.folder.path().join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, text).unwrap();
    }

    /// A base folder with the accounts of every system.
    fn base(&self) {
        self.write(
            "base/etc/passwd",
            "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1::/:/bin/false\n",
        );
        self.write("base/etc/group", "root:x:0:\nvideo:x:44:\naudio:x:29:somebody\n");
        self.write("base/bin/program", "#!/bin/sh\n");
    }

    fn build(&self, section: &str) -> anyhow::Result<RootTree> {
        let text = format!("[modules]\nnic = [\"virtio_net\"]\n[root]\n{section}");
        let recipe = Recipe::parse(&self.folder.path().join("try.toml"), &text)?;
        let tools = Tools {
            cache: &self.cache,
            freshness: Freshness::Pinned,
            progress: &Progress::silent(),
        };
        Ok(build(&recipe, tools)?.expect("a root"))
    }

    fn refused(&self, section: &str) -> String {
        let error = format!("{:#}", self.build(section).expect_err(section));
        assert_eq!(error.lines().count(), 1, "{error}");
        error.replace(&format!("{}/", self.folder.path().display()), "")
    }
}

/// All layers as one.
fn merged(tree: &RootTree) -> Tree {
    let mut all = Tree::default();
    for layer in &tree.layers {
        assert_eq!(sha256_file(&layer.tar).unwrap(), layer.sha256);
        all.read_tar(File::open(&layer.tar).unwrap(), Whiteouts::Keep)
            .unwrap();
    }
    all
}

fn text(tree: &Tree, name: &str) -> String {
    String::from_utf8(tree.read(name).unwrap().unwrap_or_else(|| panic!("no {name}"))).unwrap()
}

#[test]
fn users_services_mounts_and_templates() {
    let place = Place::new();
    place.base();
    place.write("over/etc/motd.tera", "{{ image }} for {{ values.room }}\n");
    place.write("over/etc/node.conf.node.tera", "name = {{ node }}\n");
    place.write("over/bin/tool", "x");
    let section = "base = \"dir:base\"\noverlays = [\"over\"]\nvalues = { room = \"lab a\" }\nhealth = [\"/bin/tool\", \"-q\"]\n\
        [[root.users]]\nname = \"ada\"\ngroups = [\"video\", \"audio\"]\nssh_keys = [\"ssh-ed25519 AAAA ada\"]\n\
        [[root.users]]\nname = \"bob\"\nuid = 2000\n\
        [[root.services]]\nname = \"one\"\ncommand = [\"/bin/program\", \"-x\"]\nuser = \"ada\"\nrestart = \"on-failure\"\n\
        [[root.mounts]]\nsource = \"head:/srv\"\ntarget = \"/srv/work\"\nkind = \"nfs4\"\noptions = \"ro\"\n";
    let built = place.build(section).unwrap();
    assert_eq!(
        built.layers.iter().map(|layer| layer.name).collect::<Vec<_>>(),
        ["base", "top"]
    );
    let tree = merged(&built);
    assert_eq!(text(&tree, "etc/motd"), "try for lab a\n");
    assert_eq!(
        text(&tree, "usr/lib/cid/templates/etc/node.conf"),
        "name = {{ node }}\n"
    );
    assert!(tree.get("etc/node.conf").is_none() && tree.get("etc/motd.tera").is_none());
    assert!(
        text(&tree, "etc/passwd")
            .ends_with("ada:x:1000:1000::/home/ada:/bin/bash\nbob:x:2000:2000::/home/bob:/bin/bash\n")
    );
    assert_eq!(
        text(&tree, "etc/group"),
        "root:x:0:\nvideo:x:44:ada\naudio:x:29:somebody,ada\nada:x:1000:\nbob:x:2000:\n"
    );
    assert!(text(&tree, "etc/shadow").starts_with("ada:*:"));
    let keys = tree.get("home/ada/.ssh/authorized_keys").unwrap();
    assert_eq!((keys.mode, keys.uid, keys.gid), (0o600, 1000, 1000));
    let services: cid_protocol::services::Services =
        serde_json::from_str(&text(&tree, "etc/cid/services.json")).unwrap();
    assert_eq!(services.services[0].command, ["/bin/program", "-x"]);
    assert_eq!(services.mounts[0].target, "/srv/work");
    assert_eq!(services.health, ["/bin/tool", "-q"]);
    // What the head renders for each node.
    let [template] = built.templates.as_slice() else {
        panic!("{:?}", built.templates);
    };
    assert_eq!(
        (template.path.as_str(), template.mode, template.text.as_str()),
        ("etc/node.conf", 0o644, "name = {{ node }}\n")
    );
    assert_eq!(built.values["room"], "lab a");
    assert!(tree.is_folder("srv/work").unwrap());
    // The top layer is small: the base is not in it.
    let mut top = Tree::default();
    top.read_tar(File::open(&built.layers[1].tar).unwrap(), Whiteouts::Keep)
        .unwrap();
    assert!(top.get("bin/tool").is_some() && top.get("bin/program").is_none());
}

#[test]
fn same_inputs_same_bytes_and_a_changed_overlay_leaves_the_base() {
    let (one, two) = (Place::new(), Place::new());
    for place in [&one, &two] {
        place.base();
        place.write("over/a", "1");
        std::os::unix::fs::symlink("a", place.folder.path().join("over/link")).unwrap();
    }
    let section = "base = \"dir:base\"\noverlays = [\"over\"]\n";
    let digests = |tree: &RootTree| {
        tree.layers
            .iter()
            .map(|layer| layer.sha256.clone())
            .collect::<Vec<_>>()
    };
    let first = digests(&one.build(section).unwrap());
    let touched = std::fs::File::open(two.folder.path().join("over/a")).unwrap();
    touched.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    assert_eq!(first, digests(&two.build(section).unwrap()));
    two.write("over/a", "2");
    let changed = digests(&two.build(section).unwrap());
    assert_eq!(first[0], changed[0]);
    assert_ne!(first[1], changed[1]);
    two.write("base/bin/program", "changed");
    assert_ne!(first[0], digests(&two.build(section).unwrap())[0]);
}

#[test]
fn a_tar_base_compressed_or_not_and_what_is_left_out() {
    let place = Place::new();
    let mut tree = Tree::default();
    for name in [
        "usr/share/man/man1/a.1",
        "usr/share/doc/a/README",
        "usr/share/doc/a/copyright",
        "dev/x",
        "tmp/y",
        "bin/z",
    ] {
        tree.put(name, tree::Entry::text(name, 0o644)).unwrap();
    }
    let mut bytes = Vec::new();
    tree.write_tar(&mut bytes, 10, |_| {}).unwrap();
    std::fs::write(place.folder.path().join("a.tar"), &bytes).unwrap();
    std::fs::write(
        place.folder.path().join("a.tar.zst"),
        zstd::encode_all(bytes.as_slice(), 1).unwrap(),
    )
    .unwrap();
    let drops = "drop = [\"/usr/share/man/*\", \"/usr/share/doc/*\"]\n";
    let plain = place.build(&format!("base = \"tar:a.tar\"\n{drops}")).unwrap();
    let packed = place
        .build(&format!("base = \"tar:a.tar.zst\"\n{drops}"))
        .unwrap();
    assert_eq!(plain.layers[0].sha256, packed.layers[0].sha256);
    let tree = merged(&plain);
    let files: Vec<&str> = tree
        .entries()
        .filter(|(_, e)| matches!(e.kind, tree::Kind::File(_)))
        .map(|(name, _)| name)
        .collect();
    assert_eq!(files, ["bin/z", "usr/share/doc/a/copyright"]);
    assert!(tree.is_folder("dev").unwrap());
}

#[test]
fn each_refusal_is_one_line_with_its_place() {
    let place = Place::new();
    place.base();
    place.write("over/etc/x.tera", "{{ values.nothing }}");
    place.write("folder/bin/program/file", "");
    for (section, expected) in [
        (
            "base = \"dir:none\"\n",
            "try.toml:4: base dir:none: none: No such file",
        ),
        (
            "base = \"debian\"\n",
            "try.toml:4: base \"debian\": give \"debian:SUITE\"",
        ),
        (
            "base = \"dir:base\"\nformat = \"squashfs\"\n",
            "try.toml:5: format \"squashfs\": root images are \"erofs\"",
        ),
        (
            "base = \"dir:base\"\npackages = [\"gcc\"]\n",
            "try.toml:5: packages want base",
        ),
        (
            "base = \"dir:base\"\noverlays = [\"none\"]\n",
            "try.toml:5: overlay none: no such folder",
        ),
        (
            "base = \"dir:base\"\noverlays = [\"over\"]\n",
            "try.toml:5: overlay over: template etc/x.tera: ",
        ),
        (
            "base = \"dir:base\"\noverlays = [\"folder\"]\n",
            "try.toml:5: overlay folder: ",
        ),
        (
            "base = \"dir:base\"\n[[root.users]]\nname = \"daemon\"\n",
            "try.toml:6: user daemon: the base has a user of this name",
        ),
        (
            "base = \"dir:base\"\n[[root.users]]\nname = \"a\"\ngroups = [\"vidio\"]\n",
            "try.toml:6: user a: no group \"vidio\" in the root; the nearest is \"video\"",
        ),
        (
            "base = \"dir:base\"\n[[root.users]]\nname = \"a\"\nuid = 0\n",
            "try.toml:7: uid: give one from 1",
        ),
        (
            "base = \"dir:base\"\n[[root.users]]\nname = \"a\"\nssh_keys = [\"-----BEGIN OPENSSH PRIVATE KEY-----\"]\n",
            "try.toml:7: ssh_keys: give public keys",
        ),
        (
            "base = \"dir:base\"\n[[root.services]]\nname = \"s\"\ncommand = [\"/bin/none\"]\n",
            "try.toml:3: service s: no /bin/none in the root",
        ),
        (
            "base = \"dir:base\"\nhealth = [\"/bin/none\"]\n",
            "try.toml:5: health: no /bin/none in the root",
        ),
        (
            "base = \"dir:base\"\nhealth = [\"program\"]\n",
            "try.toml:5: health: give a list that starts",
        ),
        (
            "base = \"dir:base\"\n[[root.services]]\nname = \"s\"\ncommand = [\"none\"]\n",
            "try.toml:7: command: give a list that starts",
        ),
        (
            "base = \"dir:base\"\n[[root.mounts]]\nsource = \"/dev/sda1\"\ntarget = \"/mnt\"\nkind = \"ext4\"\n",
            "try.toml:8: kind \"ext4\": a node mounts ",
        ),
        (
            "base = \"tar:base/bin/program\"\n",
            "try.toml:4: base tar:base/bin/program: ",
        ),
        (
            "base = \"oci:base\"\n",
            "try.toml:4: base oci:base: base: neither an OCI layout",
        ),
        (
            "base = \"dir:base\"\npackeges = []\n",
            "try.toml:5: unknown key \"packeges\"; the nearest known key is \"packages\"",
        ),
    ] {
        let line = place.refused(section);
        assert!(line.starts_with(expected), "wanted {expected}\n   got {line}");
    }
}

#[test]
fn includes_go_on_from_another_recipe() {
    let place = Place::new();
    place.write(
        "small.toml",
        "cmdline = \"quiet\"\n[modules]\nnic = [\n  \"virtio_net\",\n]\n",
    );
    let file = place.folder.path().join("big.toml");
    let text = "include = \"small\"\ncmdline = \"mitigations=off\"\n[modules]\nother = [\"evdev\"]\n";
    let recipe = Recipe::parse(&file, text).unwrap();
    assert_eq!(
        (recipe.name.as_str(), recipe.cmdline.as_str()),
        ("big", "quiet mitigations=off")
    );
    // Each line is found in its own file.
    let at = |line: usize| {
        recipe
            .error(line, "x")
            .to_string()
            .replace(&format!("{}/", place.folder.path().display()), "")
    };
    assert_eq!(at(recipe.nic[0].line), "small.toml:4: x");
    assert_eq!(at(recipe.other[0].line), "big.toml:4: x");
    place.write("small.toml", "include = \"big\"\n");
    place.write("big.toml", "include = \"small\"\n");
    let error = Recipe::parse(&file, text).expect_err("circle").to_string();
    assert!(error.contains("include one another"), "{error}");
    let error = Recipe::parse(&file, "\ninclude = \"none\"\n")
        .expect_err("none")
        .to_string();
    assert!(error.contains("big.toml:2: include \"none\": "), "{error}");
}
