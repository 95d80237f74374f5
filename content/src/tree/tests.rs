//! Known answers, and whatever is not the image must be refused.

use proptest::prelude::*;

use super::*;

const CHUNK: u32 = MIN_CHUNK_BYTES;

/// Bytes in which no two chunks are equal.
fn image(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..bytes)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        })
        .collect()
}

fn tree_of(image: &[u8]) -> Tree {
    let mut builder = TreeBuilder::new(Shape::new(image.len() as u64, CHUNK).unwrap());
    builder.update(image).unwrap();
    builder.finish().unwrap()
}

fn sha256(parts: &[&[u8]]) -> Digest {
    let mut context = Context::new(&SHA256);
    parts.iter().for_each(|part| context.update(part));
    digest_of(context)
}

#[test]
fn root_as_rfc_9162_says() {
    // Three chunks: the left two under one node, the third beside it.
    let image = image(2 * CHUNK as usize + 5);
    let chunks: Vec<_> = image.chunks(CHUNK as usize).collect();
    let leaf = |bytes: &[u8]| sha256(&[&[0], bytes]);
    let node = |left: Digest, right: Digest| sha256(&[&[1], &left.0, &right.0]);
    let expected = node(node(leaf(chunks[0]), leaf(chunks[1])), leaf(chunks[2]));
    assert_eq!(tree_of(&image).root(), expected);
    assert_eq!(tree_of(&image[..9]).root(), leaf(&image[..9]));
}

#[test]
fn known_digests_of_certificate_transparency() {
    // The eight leaves of the reference tests of RFC 6962 and 9162, and the roots over the first n of them.
    let leaves = [
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    ];
    let bytes = |hex: &str| -> Vec<u8> {
        let digit = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        (0..hex.len()).step_by(2).map(digit).collect()
    };
    let hashes: Vec<_> = leaves.iter().map(|leaf| leaf_hash(&bytes(leaf))).collect();
    for (count, root) in [
        (
            1,
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        ),
        (
            2,
            "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        ),
        (
            3,
            "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        ),
        (
            5,
            "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        ),
        (
            7,
            "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        ),
        (
            8,
            "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
        ),
    ] {
        assert_eq!(root_of(&hashes[..count]).to_string(), root, "{count} leaves");
    }
}

#[test]
fn chunk_size_by_the_rule() {
    for (bytes, chunk_bytes, chunks) in [
        (1, CHUNK_BYTES, 1),
        (200 << 20, CHUNK_BYTES, 800),
        (LARGE_IMAGE, CHUNK_BYTES, 4_096),
        (LARGE_IMAGE + 1, LARGE_CHUNK_BYTES, 1_025),
        (64 << 30, LARGE_CHUNK_BYTES, MAX_CHUNKS),
    ] {
        let shape = Shape::of(bytes).unwrap();
        assert_eq!((shape.chunk_bytes(), shape.chunks()), (chunk_bytes, chunks));
    }
    for (bytes, chunk_bytes) in [
        (0, CHUNK_BYTES),
        ((64 << 30) + 1, LARGE_CHUNK_BYTES),
        (u64::MAX, LARGE_CHUNK_BYTES),
        (9, 0),
        (9, CHUNK_BYTES + 1),
        (9, MIN_CHUNK_BYTES / 2),
        (9, MAX_CHUNK_BYTES * 2),
    ] {
        assert_eq!(
            Shape::new(bytes, chunk_bytes),
            Err(TreeError::Shape { bytes, chunk_bytes })
        );
    }
}

#[test]
fn every_chunk_is_checked_by_itself() {
    let image = image(5 * CHUNK as usize + 1);
    let tree = tree_of(&image);
    let chunks: Vec<_> = image.chunks(CHUNK as usize).collect();
    for (number, bytes) in (0..).zip(&chunks) {
        assert_eq!(tree.check(number, bytes), Ok(()));
        assert_eq!(tree.shape().range(number).unwrap().1 as usize, bytes.len());
    }
    assert_eq!(
        tree.check(0, chunks[1]),
        Err(ChunkError::Hash { chunk: 0 }),
        "swapped"
    );
    assert_eq!(
        tree.check(1, chunks[0]),
        Err(ChunkError::Hash { chunk: 1 }),
        "swapped"
    );
    assert_eq!(tree.check(6, chunks[5]), Err(ChunkError::NoSuchChunk(6)));
    let expected = ChunkError::Length {
        chunk: 5,
        found: 0,
        expected: 1,
    };
    assert_eq!(tree.check(5, &[]), Err(expected));
    let expected = ChunkError::Length {
        chunk: 0,
        found: CHUNK as usize - 1,
        expected: CHUNK,
    };
    assert_eq!(tree.check(0, &chunks[0][1..]), Err(expected));
    assert_eq!(tree.shape().range(6), None);
}

#[test]
fn an_inner_node_is_no_chunk() {
    // Two chunks. Who passes off the two leaf hashes as the bytes of a single chunk meets the leaf's prefix.
    let tree = tree_of(&image(2 * CHUNK as usize));
    let pair = [tree.leaf(0).unwrap().0, tree.leaf(1).unwrap().0].concat();
    assert_eq!(
        node_hash(tree.leaf(0).unwrap(), tree.leaf(1).unwrap()),
        tree.root()
    );
    assert_ne!(leaf_hash(&pair), tree.root());
    // Control: without prefixes both were one hash.
    assert_eq!(sha256(&[&[NODE], &pair]), tree.root());
    let short = Shape::new(64, CHUNK).unwrap();
    let mut builder = TreeBuilder::new(short);
    builder.update(&pair).unwrap();
    assert_ne!(builder.finish().unwrap().root(), tree.root());
    // Nor does a tree of four chunks pass for one of its two upper nodes.
    let four = tree_of(&image(4 * CHUNK as usize));
    let upper = |at: u32| node_hash(four.leaf(at).unwrap(), four.leaf(at + 1).unwrap());
    let forged = Tree::new(tree.shape(), vec![upper(0), upper(2)]);
    assert_eq!(forged.root(), four.root(), "without the shape it would");
    assert_eq!(
        Tree::decode(&forged.encode(), four.shape(), four.root()),
        Err(TreeError::OtherShape {
            found: tree.shape(),
            expected: four.shape()
        })
    );
}

#[test]
fn a_tree_is_taken_only_when_it_is_the_one_that_was_signed() {
    let image = image(3 * CHUNK as usize);
    let tree = tree_of(&image);
    let bytes = tree.encode();
    let decode = |bytes: &[u8]| Tree::decode(bytes, tree.shape(), tree.root());
    assert_eq!(decode(&bytes), Ok(tree.clone()));
    for end in 0..bytes.len() {
        assert!(decode(&bytes[..end]).is_err(), "cut at {end}");
    }
    assert!(decode(&[&bytes[..], &[0]].concat()).is_err());
    let mut swapped = bytes.clone();
    swapped[HEADER_BYTES..HEADER_BYTES + 2 * HASH].rotate_left(HASH);
    assert!(matches!(decode(&swapped), Err(TreeError::OtherRoot { .. })));
    assert_eq!(decode(b"another file of enough bytes"), Err(TreeError::Magic));
}

#[test]
fn a_stream_of_another_length_makes_no_tree() {
    let shape = Shape::new(100, CHUNK).unwrap();
    let mut builder = TreeBuilder::new(shape);
    builder.update(&[0; 60]).unwrap();
    let expected = TreeError::OtherLength {
        found: 120,
        expected: 100,
    };
    assert_eq!(builder.update(&[0; 60]), Err(expected));
    let mut builder = TreeBuilder::new(shape);
    builder.update(&[0; 99]).unwrap();
    let expected = TreeError::OtherLength {
        found: 99,
        expected: 100,
    };
    assert_eq!(builder.finish().err(), Some(expected));
}

proptest! {
    #[test]
    fn pieces_of_any_length_give_the_same_tree(
        bytes in 1_usize..40_000,
        pieces in prop::collection::vec(1_usize..9_000, 1..40),
    ) {
        let image = image(bytes);
        let mut builder = TreeBuilder::new(Shape::new(bytes as u64, CHUNK).unwrap());
        let mut rest = &image[..];
        for piece in pieces.iter().cycle() {
            let (now, later) = rest.split_at((*piece).min(rest.len()));
            builder.update(now).unwrap();
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(builder.finish().unwrap(), tree_of(&image));
    }

    #[test]
    fn one_flipped_bit_of_the_image_is_seen(bytes in 1_usize..20_000, at: prop::sample::Index, bit in 0_u8..8) {
        let mut image = image(bytes);
        let tree = tree_of(&image);
        let at = at.index(bytes);
        image[at] ^= 1 << bit;
        let hit = (at / CHUNK as usize) as u32;
        for (number, chunk) in (0..).zip(image.chunks(CHUNK as usize)) {
            let expected = if number == hit { Err(ChunkError::Hash { chunk: number }) } else { Ok(()) };
            prop_assert_eq!(tree.check(number, chunk), expected);
        }
    }

    #[test]
    fn one_flipped_bit_of_the_tree_is_seen(bytes in 1_usize..20_000, at: prop::sample::Index, bit in 0_u8..8) {
        let tree = tree_of(&image(bytes));
        let mut encoded = tree.encode();
        let at = at.index(encoded.len());
        encoded[at] ^= 1 << bit;
        prop_assert!(Tree::decode(&encoded, tree.shape(), tree.root()).is_err());
    }

    #[test]
    fn what_is_read_is_written_as_it_came(
        head in prop::sample::select(vec![&b"CIDTREE1\0\0\x10\0\0\0\0\0\0\0"[..], b"CIDTREE1", b""]),
        tail in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let bytes = [head, &tail].concat();
        if let Ok(tree) = Tree::decode_unverified(&bytes) {
            prop_assert_eq!(tree.encode(), bytes);
        }
    }
}
