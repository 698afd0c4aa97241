//! `enforce`: Rust for the bpf target.
//!
//! Two things are needed that a plain rustup does not bring: a rustc with the source of its own
//! library (core is compiled for bpf, and only the exact source will do), and an LLVM at least as new
//! as that rustc's, to turn the bitcode into a BPF object. No linker: a static library with LTO is
//! one file of bitcode in an archive.

use std::{
    env,
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::Command,
};

use object::read::archive::ArchiveFile;

use crate::{
    btf,
    host::{missing, read, run, runs, stdout, write},
};

const PACKAGES: &str = "rustc-web rust-web-src cargo-web llvm-22";
const MANIFEST: &str = "enforce/Cargo.toml";
const ARCHIVE: &str = "bpfel-unknown-none/release/libbulkhead_enforce.a";
const LLC_ARGS: [&str; 3] = ["-march=bpfel", "-mcpu=v3", "-filetype=obj"];
/// LLVM releases after rustc's own that are looked for.
const NEWER_LLVM: u32 = 6;

/// A compiler that can build core.
struct Rust {
    rustc: PathBuf,
    sysroot: PathBuf,
    host: String,
    llvm: u32,
}

/// Leaves `enforce.bpf.o` in `out`, and returns it.
pub(crate) fn build(out: &Path) -> Result<Vec<u8>, String> {
    let rust = find_rust()?;
    let llc = find_llc(&rust)?;
    let target = target_dir(out);
    let mut cargo = cargo(&rust);
    cargo
        .args(["build", "--release", "--locked", "-Z", "build-std=core", "--target", "bpfel-unknown-none"])
        // The same object wherever it is built: file names are in it.
        .args(["-Z", "trim-paths", "--config", "profile.release.trim-paths='all'"])
        .args(["--manifest-path", MANIFEST, "--target-dir"])
        .arg(&target);
    run(&mut cargo)?;
    let archive = target.join(ARCHIVE);
    let bitcode = out.join("enforce.bc");
    let bytes = read(&archive)?;
    write(&bitcode, member(&bytes).ok_or_else(|| format!("{}: no bitcode in it", archive.display()))?)?;
    let object = out.join("enforce.bpf.o");
    run(Command::new(&llc).args(LLC_ARGS).arg(&bitcode).arg("-o").arg(&object))?;
    // Debug information has done its part: the type information is derived from it.
    run(Command::new(strip_of(&llc)).arg("--strip-debug").arg(&object))?;
    let mut bytes = read(&object)?;
    btf::mend(&mut bytes)?;
    write(&object, &bytes)?;
    Ok(bytes)
}

/// `<target>/bpf`, from `<target>/<profile>/build/<package>/out`: core takes most of the time, and
/// all profiles share it.
fn target_dir(out: &Path) -> PathBuf {
    out.ancestors().nth(4).unwrap_or(out).join("bpf")
}

/// cargo of the same toolchain where there is one, since -Z build-std is not stable; without what
/// the outer cargo told this build script, which is about another target and another compiler.
fn cargo(rust: &Rust) -> Command {
    let own = rust.rustc.with_file_name("cargo");
    let outer = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(if own.exists() { own.into_os_string() } else { outer });
    for (name, _) in env::vars_os().filter(|(name, _)| is_outer(name)) {
        command.env_remove(name);
    }
    command.env("RUSTC", &rust.rustc).env("RUSTC_BOOTSTRAP", "1");
    command
}

/// Set for the outer build only. How to reach the registry (CARGO_HOME, CARGO_NET_*, CARGO_HTTP_*,
/// CARGO_REGISTRIES_*, CARGO_SOURCE_*) is the user's and stays.
fn is_outer(name: &OsStr) -> bool {
    const OTHERS: [&str; 9] = [
        "RUSTC",
        "RUSTC_LINKER",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTDOC",
        "RUSTDOCFLAGS",
        "RUSTFLAGS",
        "RUSTUP_TOOLCHAIN",
        "CLIPPY_ARGS",
    ];
    const USERS: [&str; 5] = ["CARGO_HOME", "CARGO_NET_", "CARGO_HTTP_", "CARGO_REGISTR", "CARGO_SOURCE_"];
    let name = name.to_string_lossy();
    OTHERS.contains(&&*name) || (name.starts_with("CARGO") && !USERS.iter().any(|u| name.starts_with(u)))
}

fn find_rust() -> Result<Rust, String> {
    if let Some(rustc) = env::var_os("BPF_RUSTC") {
        return probe(rustc).map_err(|why| format!("BPF_RUSTC: {why}"));
    }
    let nightly = stdout(Command::new("rustup").args(["which", "--toolchain", "nightly", "rustc"]));
    let candidates = [env::var_os("RUSTC"), nightly.map(OsString::from), Some("/usr/bin/rustc".into())];
    let mut tried = Vec::new();
    for rustc in candidates.into_iter().flatten() {
        match probe(rustc) {
            Ok(rust) => return Ok(rust),
            Err(why) => tried.push(why),
        }
    }
    let what = format!("no rustc with the source of its own library ({})", tried.join("; "));
    Err(missing(&what, PACKAGES) + ", or `rustup toolchain install nightly -c rust-src -c llvm-tools`")
}

fn probe(rustc: OsString) -> Result<Rust, String> {
    let rustc = PathBuf::from(rustc);
    let name = rustc.display();
    let verbose = stdout(Command::new(&rustc).arg("-vV")).ok_or_else(|| format!("{name} does not run"))?;
    let field =
        |key: &str| verbose.lines().find_map(|l| l.strip_prefix(key)).unwrap_or_default().trim().to_owned();
    let sysroot = stdout(Command::new(&rustc).args(["--print", "sysroot"])).unwrap_or_default();
    let sysroot = PathBuf::from(sysroot);
    if !sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs").exists() {
        return Err(format!("{name} {} has no rust-src", field("release:")));
    }
    let llvm = field("LLVM version:").split('.').next().and_then(|v| v.parse().ok());
    let llvm = llvm.ok_or_else(|| format!("{name} does not name its LLVM"))?;
    let host = field("host:");
    Ok(Rust { sysroot, host, llvm, rustc })
}

/// Older LLVM does not read newer bitcode, so the oldest that will do is rustc's own.
fn find_llc(rust: &Rust) -> Result<OsString, String> {
    if let Some(llc) = env::var_os("BPF_LLC") {
        return if runs(&llc) { Ok(llc) } else { Err(format!("BPF_LLC={} does not run", llc.display())) };
    }
    let own = rust.sysroot.join("lib/rustlib").join(&rust.host).join("bin/llc").into_os_string();
    let newest = rust.llvm + NEWER_LLVM;
    std::iter::once(own)
        .chain((rust.llvm..=newest).map(|v| format!("llc-{v}").into()))
        .find(|llc| runs(llc))
        .ok_or_else(|| missing(&format!("no llc-{} or newer", rust.llvm), &format!("llvm-{}", rust.llvm)))
}

/// llvm-strip, which comes with llc.
fn strip_of(llc: &OsStr) -> PathBuf {
    let llc = Path::new(llc);
    let version = llc.file_name().and_then(OsStr::to_str).and_then(|name| name.strip_prefix("llc"));
    llc.with_file_name(format!("llvm-strip{}", version.unwrap_or_default()))
}

/// The one bitcode file in an archive.
fn member(archive: &[u8]) -> Option<&[u8]> {
    let members = ArchiveFile::parse(archive).ok()?;
    members.members().find_map(|member| {
        let data = member.ok()?.data(archive).ok()?;
        data.starts_with(b"BC\xc0\xde").then_some(data)
    })
}
