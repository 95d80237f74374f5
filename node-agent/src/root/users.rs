//! Who a name is inside the root: `/etc/passwd` and `/etc/group` as text. Must never ask this machine's own.

/// A user of the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// All groups that list the user.
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
}

/// Groups of one user, as the kernel's own limit for old NFS servers; more than any image needs.
const MAX_GROUPS: usize = 32;

/// Looks `name` up; a number is taken as it is. `None`: the root has no such user.
pub(crate) fn find(name: &str, passwd: &str, group: &str) -> Option<User> {
    let fields = |line: &'_ str| -> Vec<String> { line.split(':').map(str::to_owned).collect() };
    let row = passwd.lines().map(fields).find(|row| {
        row.first().is_some_and(|word| word == name) || row.get(2).is_some_and(|word| word == name)
    });
    let (uid, gid, home, name) = match row.as_deref() {
        Some([name, _, uid, gid, _, home, ..]) => {
            (uid.parse().ok()?, gid.parse().ok()?, home.clone(), name.clone())
        }
        // A base without /etc/passwd still has its root.
        _ if name == "root" => (0, 0, "/root".to_owned(), name.to_owned()),
        _ => {
            let uid = name.parse().ok()?;
            (uid, uid, "/".to_owned(), name.to_owned())
        }
    };
    let mut groups: Vec<u32> = group
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            let (gid, members) = (fields.nth(2)?, fields.next()?);
            members.split(',').any(|member| member == name).then_some(gid)
        })
        .filter_map(|gid| gid.parse().ok())
        .take(MAX_GROUPS)
        .collect();
    groups.retain(|other| *other != gid);
    groups.insert(0, gid);
    Some(User {
        uid,
        gid,
        groups,
        home,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/bash\nmunge:x:101:103::/nonexistent:/bin/false\nbroken:x:a:b\n";
    const GROUP: &str = "root:x:0:\ndocker:x:5:munge,root\nmunge:x:103:\nssl:x:7:mungex,munge\n";

    #[test]
    fn names_numbers_and_strangers() {
        let munge = User {
            uid: 101,
            gid: 103,
            groups: vec![103, 5, 7],
            home: "/nonexistent".into(),
        };
        assert_eq!(find("munge", PASSWD, GROUP).as_ref(), Some(&munge));
        assert_eq!(find("101", PASSWD, GROUP), Some(munge));
        assert_eq!(
            find("65534", PASSWD, GROUP).map(|user| (user.uid, user.gid)),
            Some((65534, 65534))
        );
        assert_eq!(find("root", "", "").map(|user| user.uid), Some(0));
        for stranger in ["nobody", "broken", "-1", ""] {
            assert_eq!(find(stranger, PASSWD, GROUP), None, "{stranger}");
        }
    }
}
