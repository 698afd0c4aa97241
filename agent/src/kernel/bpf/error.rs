//! What can go wrong, with the object and what to do about it.

use std::{io, path::PathBuf, process::ExitStatus};

/// A BPF object could not be loaded, found or used.
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    /// An operation on a file or directory failed.
    #[error("{op} {}", path.display())]
    Io {
        /// What was tried.
        op: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// There is no bpffs at the pin directory, and none could be mounted.
    #[error("{} is not in a BPF file system: mount one with `mount -t bpf bpf /sys/fs/bpf` (as root), or choose a pin directory below one", path.display())]
    NotBpffs {
        /// The pin directory.
        path: PathBuf,
        /// Why mounting failed, where it was tried.
        source: Option<io::Error>,
    },
    /// The object with the programs that decide is not loadable.
    #[error("load the BPF object `enforce`")]
    Object(#[source] aya::EbpfError),
    /// A program or map is not in the object.
    #[error(
        "the BPF object `enforce` has no {0}: it was built from other sources than the agent; build both again"
    )]
    NotInObject(&'static str),
    /// The verifier or the attachment refused a program.
    #[error("{op} the BPF program {name}")]
    Program {
        /// What was tried.
        op: &'static str,
        /// The program.
        name: &'static str,
        /// The kernel's answer, with the verifier's log.
        source: aya::programs::ProgramError,
    },
    /// Programs of the BPF LSM would never be asked.
    #[error("the BPF LSM cannot be used: {0}")]
    NoLsm(String),
    /// An object could not be pinned.
    #[error("pin {}", path.display())]
    Pin {
        /// Where.
        path: PathBuf,
        /// The kernel's answer.
        source: aya::pin::PinError,
    },
    /// A program that observes could not be loaded, attached or pinned.
    #[error("{op}")]
    Observe {
        /// What was tried, on which object.
        op: String,
        /// libbpf's answer.
        source: libbpf_rs::Error,
    },
    /// A map could not be read or written.
    #[error("{op} the BPF map {name}")]
    Map {
        /// What was tried.
        op: &'static str,
        /// The map.
        name: &'static str,
        /// The kernel's answer.
        source: aya::maps::MapError,
    },
    /// A map has no room left.
    #[error("the BPF map {name} is full: fewer tasks, or grants of fewer scattered ports, fit on this node")]
    Full {
        /// The map.
        name: &'static str,
    },
    /// The loader could not be started.
    #[error("start the loader {program}")]
    Start {
        /// The program.
        program: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The loader failed.
    #[error("the loader ended with {status}: {message}")]
    Loader {
        /// Its exit status.
        status: ExitStatus,
        /// Its standard error.
        message: String,
    },
}

impl BpfError {
    /// Names the file and the operation of an I/O error; for `map_err`.
    pub(super) fn io(op: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { op, path, source }
    }
}
