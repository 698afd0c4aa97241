//! Which task is calling.

use aya_ebpf::helpers::generated::bpf_get_current_ancestor_cgroup_id;

/// The level of task cgroups below the root of the hierarchy. The loader sets it before the
/// programs are verified, which then know it as a constant.
#[unsafe(no_mangle)]
static TASK_LEVEL: i32 = 0;

/// The cgroup id of the calling task, or `None` for processes above the level of tasks.
#[inline(always)]
pub fn current() -> Option<u64> {
    // SAFETY: a static of this object. Volatile, because the compiler takes its value for final.
    let level = unsafe { (&raw const TASK_LEVEL).read_volatile() };
    // SAFETY: the helper has no preconditions.
    match unsafe { bpf_get_current_ancestor_cgroup_id(level) } {
        0 => None,
        id => Some(id),
    }
}
