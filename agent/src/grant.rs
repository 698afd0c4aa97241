//! A grant that was checked: the set of limits that the isolators turn into kernel state. Pure.

use bulkhead_proto::{
    resources::{PortSet, PortSetError},
    v1,
};

/// How firmly a grant is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// The promise: held until the task ends.
    Guaranteed,
    /// CPU that is idle otherwise; may be taken back.
    Revocable,
}

/// What a task may use, checked once on arrival.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Thousandths of a CPU; at least [`MIN_CPU_MILLI`].
    pub cpu_milli: u64,
    /// Bytes of memory, page cache included; at least [`MIN_MEM_BYTES`].
    pub mem_bytes: u64,
    /// Ports it may bind, TCP and UDP alike.
    pub ports: PortSet,
    /// How firmly all this is held.
    pub class: Class,
    /// May it use more CPU than granted while there is some idle?
    pub cpu_burst: bool,
    /// Processes and threads at once.
    pub pids_max: u64,
}

/// The smallest quota that `cpu.max` takes is 1 ms, a hundredth of the default period.
pub const MIN_CPU_MILLI: u64 = 10;
/// Below this no dynamically linked program gets as far as its `main`.
pub const MIN_MEM_BYTES: u64 = 512 * 1024;
/// Larger requests are mistakes in a unit: no machine has a million CPUs or an exbibyte of memory.
const MAX_CPU_MILLI: u64 = 1_000_000_000;
const MAX_MEM_BYTES: u64 = 1 << 60;

/// PID_MAX_LIMIT of 64-bit kernels.
const MAX_PIDS: u64 = 4_194_304;

/// A grant that no kernel can hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    /// There is no grant in the task.
    #[error("the task names no grant: say how much CPU and memory it may use")]
    Missing,
    /// The class is not one of the two.
    #[error("class {0} is neither guaranteed (1) nor revocable (2)")]
    Class(i32),
    /// Too little or too much CPU.
    #[error("{0} thousandths of a CPU: ask for {MIN_CPU_MILLI} to {MAX_CPU_MILLI}")]
    Cpu(u64),
    /// Too little or too much memory.
    #[error("{0} bytes of memory: ask for {MIN_MEM_BYTES} to {MAX_MEM_BYTES}")]
    Memory(u64),
    /// More processes than any kernel numbers.
    #[error("{0} processes: ask for 1 to {MAX_PIDS}")]
    Pids(u64),
    /// Ports that do not exist.
    #[error(transparent)]
    Ports(#[from] PortSetError),
}

impl Grant {
    /// Checks a grant from outside; `default_pids_max` stands in where it names none.
    ///
    /// # Errors
    /// [`GrantError`] says what is impossible about it.
    pub fn check(grant: Option<&v1::Grant>, default_pids_max: u64) -> Result<Self, GrantError> {
        let grant = grant.ok_or(GrantError::Missing)?;
        let resources = grant.resources.as_ref().ok_or(GrantError::Missing)?;
        let class = match v1::ResourceClass::try_from(grant.class) {
            Ok(v1::ResourceClass::Guaranteed) => Class::Guaranteed,
            Ok(v1::ResourceClass::Revocable) => Class::Revocable,
            Ok(v1::ResourceClass::Unspecified) | Err(_) => return Err(GrantError::Class(grant.class)),
        };
        if !(MIN_CPU_MILLI..=MAX_CPU_MILLI).contains(&resources.cpu_milli) {
            return Err(GrantError::Cpu(resources.cpu_milli));
        }
        if !(MIN_MEM_BYTES..=MAX_MEM_BYTES).contains(&resources.mem_bytes) {
            return Err(GrantError::Memory(resources.mem_bytes));
        }
        let pids_max = if grant.pids_max == 0 { default_pids_max } else { grant.pids_max };
        if pids_max > MAX_PIDS {
            return Err(GrantError::Pids(pids_max));
        }
        Ok(Self {
            cpu_milli: resources.cpu_milli,
            mem_bytes: resources.mem_bytes,
            ports: resources.port_set()?,
            class,
            cpu_burst: grant.cpu_burst,
            pids_max,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(cpu_milli: u64, mem_bytes: u64) -> v1::Grant {
        let resources = v1::Resources { cpu_milli, mem_bytes, ports: vec![] };
        v1::Grant {
            resources: Some(resources),
            class: v1::ResourceClass::Guaranteed.into(),
            ..Default::default()
        }
    }

    #[test]
    fn impossible_grants_are_named() {
        let check = |grant: &v1::Grant| Grant::check(Some(grant), 9);
        assert_eq!(check(&asked(0, 1 << 20)), Err(GrantError::Cpu(0)));
        assert_eq!(check(&asked(u64::MAX, 1 << 20)), Err(GrantError::Cpu(u64::MAX)));
        assert_eq!(check(&asked(100, 4096)), Err(GrantError::Memory(4096)));
        assert_eq!(check(&asked(100, u64::MAX)), Err(GrantError::Memory(u64::MAX)));
        assert_eq!(Grant::check(None, 9), Err(GrantError::Missing));
        let class = v1::Grant { class: 7, ..asked(100, 1 << 20) };
        assert_eq!(check(&class), Err(GrantError::Class(7)));
        let pids = v1::Grant { pids_max: u64::MAX, ..asked(100, 1 << 20) };
        assert_eq!(check(&pids), Err(GrantError::Pids(u64::MAX)));
        let mut ports = asked(100, 1 << 20);
        ports.resources.as_mut().unwrap().ports.push(v1::PortRange { first: 0, last: 70_000 });
        assert!(matches!(check(&ports), Err(GrantError::Ports(_))));
    }

    #[test]
    fn the_default_number_of_processes_is_the_agents() {
        assert_eq!(Grant::check(Some(&asked(100, 1 << 20)), 9).unwrap().pids_max, 9);
        let own = v1::Grant { pids_max: 3, ..asked(100, 1 << 20) };
        assert_eq!(Grant::check(Some(&own), 9).unwrap().pids_max, 3);
    }
}
