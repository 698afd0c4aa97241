//! Compiles the BPF programs: `enforce` (Rust) with a compiler that has its own library source, and
//! `observe` (C) with clang. What is missing is named in one line, with the packages that bring it.

#![expect(clippy::print_stdout, reason = "cargo reads instructions there")]

mod btf;
mod c;
mod host;
mod rust;

use std::{env, path::PathBuf, process::ExitCode};

/// Everything that the outputs depend on, so that nothing else causes a rebuild.
const INPUTS: [&str; 7] = [
    "build",
    "abi/Cargo.toml",
    "abi/src",
    "enforce/Cargo.toml",
    "enforce/Cargo.lock",
    "enforce/src",
    "observe",
];

fn main() -> ExitCode {
    for path in INPUTS {
        println!("cargo::rerun-if-changed={path}");
    }
    for variable in host::VARIABLES {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            println!("cargo::error={}", why.replace('\n', " | "));
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), String> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set: run this through cargo")?);
    let object = rust::build(&out)?;
    println!("cargo::rustc-env=BULKHEAD_ENFORCE_ID={:016x}", host::fnv1a(&object));
    let object = c::build(&out)?;
    println!("cargo::rustc-env=BULKHEAD_OBSERVE_ID={:016x}", host::fnv1a(&object));
    Ok(())
}
