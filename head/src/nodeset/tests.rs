//! The table is ClusterShell's behaviour; the properties hold for any text.

use proptest::prelude::*;

use super::*;

struct Room;

impl Known for Room {
    fn group(&self, name: &str) -> Option<Vec<String>> {
        (name == "lab-a").then(|| vec!["lab-a01".into(), "lab-a02".into(), "lab-a03".into()])
    }

    fn everybody(&self) -> Vec<String> {
        ["lab-a01", "lab-a02", "lab-a03", "lab-b1", "52:54:00:00:00:09"]
            .map(str::to_owned)
            .to_vec()
    }
}

fn check(text: &str, expected: &str) {
    let names = expand(text, &Room).map(|names| names.join(" "));
    match names {
        Ok(names) => assert_eq!(names, expected, "of {text}"),
        Err(error) => assert_eq!(error.to_string(), expected, "of {text}"),
    }
}

#[test]
fn ranges_and_padding() {
    check("lab-a[01-03,25]", "lab-a01 lab-a02 lab-a03 lab-a25");
    check("n[9-11]", "n9 n10 n11");
    check("n[09-11]", "n09 n10 n11");
    check("n[099-101]", "n099 n100 n101");
    check("n[98-101/2]", "n98 n100");
    check("n[0-8/4],m", "n0 n4 n8 m");
    check("r[1-2]n[1-2]-ib", "r1n1-ib r1n2-ib r2n1-ib r2n2-ib");
    check("a[1-2]5", "a15 a25");
    check("n[00-02]", "n00 n01 n02");
    check(
        "n[01-100]",
        &(1..=100)
            .map(|n| format!("n{n:02}"))
            .collect::<Vec<_>>()
            .join(" "),
    );
}

#[test]
fn operators_from_left_to_right() {
    check("n[1-5]!n3", "n1 n2 n4 n5");
    check("n[1-5]!n3,n3", "n1 n2 n4 n5 n3");
    check("n[1-5]&n[4-9]", "n4 n5");
    check("n[1-3]^n[3-4]", "n1 n2 n4");
    check("n1 n2,, n1 ", "n1 n2");
    check("n1 ! n1", "");
    check("n[1-3] & n2 , n9", "n2 n9");
}

#[test]
fn groups_wildcards_and_macs() {
    check("@lab-a!lab-a02", "lab-a01 lab-a03");
    check("@*&@lab-a", "lab-a01 lab-a02 lab-a03");
    check("lab-?1", "lab-b1");
    check("*-b*", "lab-b1");
    check(
        "lab-[a-b]",
        "node set: `a-b` is no range; write 01-20, 7 or 0-8/2",
    );
    check("52:54:00:00:00:09", "52:54:00:00:00:09");
    check("@nobody", "node set: there is no group `nobody`");
}

#[test]
fn mistakes_are_named() {
    check(
        "",
        "node set ``: a name is missing; write it like lab-a[01-20,25]",
    );
    check(
        "a!",
        "node set `a!`: a name is missing; write it like lab-a[01-20,25]",
    );
    check(
        "!a",
        "node set `!a`: a name is missing; write it like lab-a[01-20,25]",
    );
    check(
        "a&&b",
        "node set `a&&b`: a name is missing; write it like lab-a[01-20,25]",
    );
    check("a[1-2", "node set: the brackets of `a[1-2` do not match");
    check("a]1", "node set: the brackets of `a]1` do not match");
    check("a[[1]]", "node set: the brackets of `a[[1]]` do not match");
    check("a[3-1]", "node set: `3-1` is no range; write 01-20, 7 or 0-8/2");
    check(
        "a[1-3/0]",
        "node set: `1-3/0` is no range; write 01-20, 7 or 0-8/2",
    );
    check("a[1/2]", "node set: `1/2` is no range; write 01-20, 7 or 0-8/2");
    check("a[]", "node set: `` is no range; write 01-20, 7 or 0-8/2");
    check(
        "a[01-1]",
        "node set: the ends of `01-1` are padded with zeros differently",
    );
    check(
        "a[1-010]",
        "node set: the ends of `1-010` are padded with zeros differently",
    );
    check("a;b", "node set: `a;b` holds a character that names do not have");
    check("a[0-4000000000]", &NodeSetError::TooLarge.to_string());
    check("a[0-999]b[0-999]", &NodeSetError::TooLarge.to_string());
}

proptest! {
    #[test]
    fn no_text_panics_or_exceeds_the_limit(text in "[a-c0-9\\[\\]\\-,/!&^@*? \\.é]{0,40}") {
        if let Ok(names) = expand(&text, &Room) {
            prop_assert!(names.len() <= MAX_NAMES);
            let distinct: BTreeSet<_> = names.iter().collect();
            prop_assert_eq!(distinct.len(), names.len());
        }
    }

    #[test]
    fn a_range_has_every_number_once(low in 0_u64..2_000, length in 0_u64..300, step in 1_u64..7, width in 1_usize..6) {
        let high = low + length;
        let names = expand(&format!("n[{low:0width$}-{high:0width$}/{step}]"), &Nobody);
        let wanted: Vec<String> = (low..=high).step_by(step as usize).map(|n| format!("n{n:0width$}")).collect();
        prop_assert_eq!(names, Ok(wanted));
    }

    #[test]
    fn the_operators_are_those_of_sets(left in proptest::collection::vec(0_u8..20, 1..12), right in proptest::collection::vec(0_u8..20, 1..12)) {
        let text = |numbers: &[u8]| numbers.iter().map(|n| format!("n{n}")).collect::<Vec<_>>().join(",");
        let set = |text: String| expand(&text, &Nobody).map(|names| names.into_iter().collect::<BTreeSet<_>>());
        let (a, b) = (text(&left), format!("n[{}]", right.iter().map(u8::to_string).collect::<Vec<_>>().join(",")));
        let (left, right) = (set(a.clone()).unwrap(), set(b.clone()).unwrap());
        prop_assert_eq!(set(format!("{b},{a}")).unwrap(), &left | &right);
        prop_assert_eq!(set(format!("{b}&{b}")).unwrap(), right.clone());
        // From left to right: one word on the right of the operator.
        prop_assert_eq!(set(format!("{a}!{b}")).unwrap(), &left - &right);
        prop_assert_eq!(set(format!("{a}&{b}")).unwrap(), &left & &right);
        prop_assert_eq!(set(format!("{a}^{b}")).unwrap(), &left ^ &right);
    }
}
