//! A short run of the fuzz targets, without a fuzzer: valid inputs, changed at random. `agent/fuzz` runs the same
//! functions under libFuzzer for as long as somebody likes.

#![expect(clippy::unwrap_used, reason = "tests, also outside test functions")]

use std::fs;

use bulkhead_agent::{
    fuzzing,
    grant::Grant,
    launch::{capability::CapSet, seccomp::Filter},
};
use bulkhead_proto::v1;
use proptest::prelude::*;
use prost::Message as _;

/// One change of the input.
#[derive(Clone, Debug)]
enum Change {
    Flip(prop::sample::Index, u8),
    Insert(prop::sample::Index, Vec<u8>),
    Remove(prop::sample::Index, usize),
    Repeat(prop::sample::Index, usize),
    Cut(prop::sample::Index),
}

fn change() -> impl Strategy<Value = Change> {
    let at = any::<prop::sample::Index>;
    prop_oneof![
        4 => (at(), 1..=u8::MAX).prop_map(|(at, bits)| Change::Flip(at, bits)),
        2 => (at(), prop::collection::vec(any::<u8>(), 1..12)).prop_map(|(at, bytes)| Change::Insert(at, bytes)),
        2 => (at(), 1..64_usize).prop_map(|(at, len)| Change::Remove(at, len)),
        1 => (at(), 1..600_usize).prop_map(|(at, len)| Change::Repeat(at, len)),
        1 => at().prop_map(Change::Cut),
    ]
}

fn apply(mut data: Vec<u8>, changes: &[Change]) -> Vec<u8> {
    for change in changes {
        if data.is_empty() {
            break;
        }
        let place = |at: &prop::sample::Index| at.index(data.len());
        match change {
            Change::Flip(at, bits) => {
                let at = place(at);
                data[at] ^= bits;
            }
            Change::Insert(at, bytes) => {
                let at = place(at);
                data.splice(at..at, bytes.iter().copied());
            }
            Change::Remove(at, len) => {
                let at = place(at);
                data.drain(at..(at + len).min(data.len()));
            }
            Change::Repeat(at, len) => {
                let at = place(at);
                let part = data[at..(at + len).min(data.len())].to_vec();
                data.splice(at..at, part);
            }
            Change::Cut(at) => data.truncate(at.index(data.len())),
        }
    }
    data
}

/// Also nothing but noise, now and then.
fn input(seeds: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let changed = (prop::sample::select(seeds), prop::collection::vec(change(), 0..12))
        .prop_map(|(seed, changes)| apply(seed, &changes));
    prop_oneof![15 => changed, 1 => prop::collection::vec(any::<u8>(), 0..2048)]
}

/// The inputs that libFuzzer starts with as well.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let dir = format!("{}/fuzz/seeds/{target}", env!("CARGO_MANIFEST_DIR"));
    let mut files: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

/// Enough for a few seconds of each.
fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, max_shrink_iters: 2000, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config(60_000))]

    #[test]
    fn any_grant_is_checked(data in input(seeds("grant"))) {
        fuzzing::grant(&data);
    }
}

proptest! {
    #![proptest_config(config(20_000))]

    #[test]
    fn any_seccomp_profile_is_read(data in input(seeds("seccomp_profile"))) {
        fuzzing::seccomp_profile(&data);
    }

    #[test]
    fn any_document_of_an_image_is_read(data in input(seeds("image_documents"))) {
        bulkhead_image::fuzzing::documents(&data);
    }
}

proptest! {
    #![proptest_config(config(3_000))]

    #[test]
    fn any_layer_is_unpacked_inside_or_refused(data in input(seeds("image_layer"))) {
        bulkhead_image::fuzzing::layer(&data);
    }
}

/// The inputs that are changed are valid themselves, or the changes would explore nothing.
#[test]
fn the_seeds_are_valid() {
    for profile in seeds("seccomp_profile") {
        Filter::parse(str::from_utf8(&profile).unwrap(), CapSet::EMPTY).unwrap();
    }
    for grant in seeds("grant") {
        let asked = v1::Grant::decode(&*grant).unwrap();
        Grant::check(Some(&asked), &fuzzing::DEFAULTS).unwrap();
    }
    for layer in seeds("image_layer") {
        assert!(bulkhead_image::fuzzing::layer(&layer));
    }
}
