//! `observe`: C with CO-RE, compiled by clang, and the libbpf skeletons of the results.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use libbpf_cargo::SkeletonBuilder;

use crate::host::{missing, read, stdout, write};

/// Each is an object of its own: what one of them needs of a kernel must not keep the others from loading.
const OBJECTS: [&str; 7] = ["block_io", "connections", "exits", "foreign", "listen", "ooms", "runqueue"];
/// clang 14 is the first whose objects have everything that CO-RE uses here.
const OLDEST_CLANG: u32 = 14;
const NEWEST_CLANG: u32 = 30;

/// Leaves `<object>.bpf.o` and `<object>.skel.rs` of each in `out`, and returns the objects, one after the other.
pub(crate) fn build(out: &Path) -> Result<Vec<u8>, String> {
    let clang = find_clang()?;
    write(&out.join("bulkhead_abi.h"), header())?;
    let objects = OBJECTS.map(|name| compile(name, &clang, out));
    objects.into_iter().collect::<Result<Vec<_>, _>>().map(|objects| objects.concat())
}

/// What the programs share with the agent.
fn header() -> String {
    let constant = |(name, value): (&str, u32)| format!("#define {name} {value}\n");
    let constants: String = bulkhead_abi::C_CONSTANTS.into_iter().map(constant).collect();
    format!("#pragma once\n{constants}{}", bulkhead_abi::C_HEADER.concat())
}

fn compile(name: &str, clang: &Path, out: &Path) -> Result<Vec<u8>, String> {
    let source = format!("observe/{name}.bpf.c");
    let object = out.join(format!("{name}.bpf.o"));
    SkeletonBuilder::new()
        .source(&source)
        .obj(&object)
        .clang(clang)
        .clang_args([
            "-mcpu=v3".into(),
            format!("-I{}", out.display()),
            "-Wall".into(),
            "-Wextra".into(),
            "-Wno-unused-parameter".into(),
            "-Werror".into(),
        ])
        // rustup's rustfmt fails where the component is not installed, and nobody reads the file.
        .rustfmt("cat")
        .build_and_generate(out.join(format!("{name}.skel.rs")))
        .map_err(|e| format!("{source}: {e:#}"))?;
    read(&object)
}

fn find_clang() -> Result<PathBuf, String> {
    if let Some(clang) = env::var_os("BPF_CLANG").map(PathBuf::from) {
        return match major(&clang) {
            Some(OLDEST_CLANG..) => Ok(clang),
            Some(v) => Err(format!("BPF_CLANG is clang {v}; {OLDEST_CLANG} or newer is needed")),
            None => Err(format!("BPF_CLANG={} does not run or cannot target bpf", clang.display())),
        };
    }
    std::iter::once("clang".to_owned())
        .chain((OLDEST_CLANG..=NEWEST_CLANG).rev().map(|v| format!("clang-{v}")))
        .map(PathBuf::from)
        .find(|clang| major(clang).is_some_and(|v| v >= OLDEST_CLANG))
        .ok_or_else(|| missing(&format!("no clang {OLDEST_CLANG} or newer that targets bpf"), "clang"))
}

/// The major version of a clang that can target bpf.
fn major(clang: &Path) -> Option<u32> {
    stdout(Command::new(clang).args(["--target=bpf", "-dM", "-E", "-x", "c", "/dev/null"]))?
        .lines()
        .find_map(|line| line.strip_prefix("#define __clang_major__ "))?
        .trim()
        .parse()
        .ok()
}
