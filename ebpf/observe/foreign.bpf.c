// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/*
 * Counts the CPU time of others on cores that belong to one task.
 *
 * The agent writes which CPU is whose. Whenever a thread leaves a CPU that has an owner, the time
 * since the switch before is counted for the owner, unless the thread was the owner's, or idle.
 * Attached only while some core has an owner.
 */
#include "vmlinux_min.h"

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#include "bulkhead_abi.h" /* generated from ../abi */

char LICENSE[] SEC("license") = "GPL";

/* task_struct.flags: the kernel's own thread. Not in BTF: a macro. */
#define PF_KTHREAD 0x00200000

/* The level of task cgroups below the root of the hierarchy; set by the loader. */
const volatile int task_level = 0;

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); /* the loader says how many: one for each possible CPU */
	__type(key, __u32);	/* CPU */
	__type(value, __u64);	/* cgroup id of the task that owns it; 0 is nobody */
} core_owners SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1); /* the loader says how many */
	__type(key, __u64);	/* cgroup id of the owner */
	__type(value, struct foreign_time);
} foreign_times SEC(".maps");

/* When the thread that runs on this CPU came; 0 is not known. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} switched_ns SEC(".maps");

/* Called on the CPU that switches, while the thread that leaves is still the current one. */
static int note_switch(void)
{
	__u32 cpu = bpf_get_smp_processor_id(), zero = 0;
	__u64 *owner = bpf_map_lookup_elem(&core_owners, &cpu);
	__u64 *since = bpf_map_lookup_elem(&switched_ns, &zero);
	struct foreign_time *time;
	struct task_struct *thread;
	__u64 owner_id, now, ran;

	if (!owner || !since)
		return 0;
	owner_id = *owner;
	if (!owner_id) {
		/* Who owns it next is not charged with what ran before. */
		if (*since)
			*since = 0;
		return 0;
	}
	now = bpf_ktime_get_ns();
	ran = *since ? now - *since : 0;
	*since = now;
	/* Process 0 is idle. */
	if (!ran || !(bpf_get_current_pid_tgid() & 0xffffffff))
		return 0;
	if (bpf_get_current_ancestor_cgroup_id(task_level) == owner_id)
		return 0;
	time = bpf_map_lookup_elem(&foreign_times, &owner_id);
	if (!time)
		return 0;
	thread = (struct task_struct *)bpf_get_current_task();
	if (BPF_CORE_READ(thread, flags) & PF_KTHREAD)
		__sync_fetch_and_add(&time->kernel_ns, ran);
	else
		__sync_fetch_and_add(&time->others_ns, ran);
	return 0;
}

SEC("tp_btf/sched_switch")
int sched_switch_btf(void *ctx)
{
	return note_switch();
}

/* The same without the typed tracepoint, for kernels that refuse it. */
SEC("raw_tp/sched_switch")
int sched_switch_raw(void *ctx)
{
	return note_switch();
}
