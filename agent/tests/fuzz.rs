//! A short run of the fuzz targets, without a fuzzer: valid inputs, changed at random. `agent/fuzz` runs the same
//! functions under libFuzzer for as long as somebody likes.

#![expect(clippy::unwrap_used, reason = "tests, also outside test functions")]

use std::io::Write as _;

use bulkhead_agent::fuzzing;
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

fn grants() -> Vec<Vec<u8>> {
    let resources = v1::Resources {
        cpu_milli: 1500,
        mem_bytes: 64 << 20,
        ports: vec![v1::PortRange { first: 31_000, last: 31_010, ..v1::PortRange::default() }],
        disk_bytes: 1 << 30,
        ..v1::Resources::default()
    };
    let plain = v1::Grant { resources: Some(resources), class: 1, ..v1::Grant::default() };
    let full = v1::Grant {
        pids_max: 100,
        cpu: Some(v1::CpuOptions {
            limit_milli: 2000,
            period_usec: 50_000,
            burst_usec: 10_000,
            ..Default::default()
        }),
        mem: Some(v1::MemOptions { limit_bytes: 1 << 30, high_bytes: 1 << 29, ..Default::default() }),
        disk: Some(v1::DiskOptions { inodes: 100, output_bytes: 1 << 20, io_weight: 500 }),
        devices: vec![v1::Device { path: "/dev/fuse".into(), access: "rwm".into() }],
        ..plain.clone()
    };
    [plain, full].iter().map(v1::Grant::encode_to_vec).collect()
}

fn profiles() -> Vec<Vec<u8>> {
    let full = r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "architectures": ["SCMP_ARCH_X86_64"],
        "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
        "syscalls": [
          {"names": ["read", "write", "exit_group", "nonsense"], "action": "SCMP_ACT_ALLOW"},
          {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_SYS_ADMIN"]},
           "args": [{"index": 0, "value": 2114060288, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]},
          {"names": ["socket"], "action": "SCMP_ACT_LOG", "includes": {"arches": ["amd64"], "minKernel": "4.8"},
           "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 2, "op": "SCMP_CMP_GE"}]},
          {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]}"#;
    let short =
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"name":"kill","action":"SCMP_ACT_KILL_PROCESS"}]}"#;
    [full, short].map(|text| text.as_bytes().to_vec()).into()
}

/// A layer as a tar stream with one of each kind of entry.
fn layers() -> Vec<Vec<u8>> {
    let mut stream = Vec::new();
    let entries: [(&str, u8, &str, &[u8]); 7] = [
        ("etc/", b'5', "", b""),
        ("etc/passwd", b'0', "", b"root:x:0:0::/root:/bin/sh\n"),
        ("etc/link", b'2', "passwd", b""),
        ("etc/hard", b'1', "etc/passwd", b""),
        ("etc/.wh.gone", b'0', "", b""),
        ("var/.wh..wh..opq", b'0', "", b""),
        ("pipe", b'6', "", b""),
    ];
    for (name, kind, link, content) in entries {
        let mut header = [0_u8; 512];
        let mut put = |at: usize, text: &[u8]| header[at..at + text.len()].copy_from_slice(text);
        put(0, name.as_bytes());
        put(100, b"0000755\x000000000\x000000000\0");
        put(124, format!("{:011o}\0{:011o}\0", content.len(), 0).as_bytes());
        put(148, b"        ");
        put(156, &[kind]);
        put(157, link.as_bytes());
        put(257, b"ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        stream.write_all(&header).unwrap();
        stream.write_all(content).unwrap();
        stream.resize(stream.len().next_multiple_of(512), 0);
    }
    stream.resize(stream.len() + 1024, 0);
    vec![stream]
}

fn documents() -> Vec<Vec<u8>> {
    let digest = format!("sha256:{}", "a1".repeat(32));
    let manifest = format!(
        r#"{{"schemaVersion": 2, "config": {{"mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": "{digest}", "size": 7}}, "layers": [{{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
            "digest": "{digest}", "size": 32}}]}}"#
    );
    let config = format!(
        r#"{{"architecture": "amd64", "os": "linux", "config": {{"Env": ["A=b"], "Cmd": ["/bin/sh"], "User": "web"}},
            "rootfs": {{"type": "layers", "diff_ids": ["{digest}"]}}}}"#
    );
    let users = "root:x:0:0::/:/bin/sh\nweb:x:33:33::/:/bin/false\n".to_owned();
    [manifest, config, users, "docker://localhost:5000/a/b@".to_owned() + &digest]
        .map(String::into_bytes)
        .into()
}

/// Enough for a few seconds of each.
fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, max_shrink_iters: 2000, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config(60_000))]

    #[test]
    fn any_grant_is_checked(data in input(grants())) {
        fuzzing::grant(&data);
    }
}

proptest! {
    #![proptest_config(config(20_000))]

    #[test]
    fn any_seccomp_profile_is_read(data in input(profiles())) {
        fuzzing::seccomp_profile(&data);
    }

    #[test]
    fn any_document_of_an_image_is_read(data in input(documents())) {
        bulkhead_image::fuzzing::documents(&data);
    }
}

proptest! {
    #![proptest_config(config(3_000))]

    #[test]
    fn any_layer_is_unpacked_inside_or_refused(data in input(layers())) {
        bulkhead_image::fuzzing::layer(&data);
    }
}

/// The inputs that are changed are valid themselves, or the changes would explore nothing.
#[test]
fn the_seeds_are_valid() {
    use bulkhead_agent::launch::{capability::CapSet, seccomp::Filter};
    for profile in profiles() {
        Filter::parse(str::from_utf8(&profile).unwrap(), CapSet::EMPTY).unwrap();
    }
    for grant in grants() {
        assert!(v1::Grant::decode(&*grant).unwrap().resources.is_some());
    }
}
