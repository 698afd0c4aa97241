// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/*
 * Keeps how a task's main process ended, for an agent that was not there to wait for it.
 *
 * The agent makes an entry for each task it starts; the program completes it when the last thread
 * of the main process exits. Nothing is allocated on the way out of a process, so there is no
 * exit that cannot be recorded for lack of room.
 */
#include "task_record.bpf.h"

/* signal_struct.flags: the whole process exits, with group_exit_code. Not in BTF: a macro. */
#define SIGNAL_GROUP_EXIT 0x00000004

TASK_RECORDS(exits, struct exit_record);

/* What wait(2) will report, as the kernel itself puts it together for a zombie's parent. */
static __u32 wait_status(struct signal_struct *sig, struct task_struct *leader)
{
	if (BPF_CORE_READ(sig, flags) & SIGNAL_GROUP_EXIT)
		return BPF_CORE_READ(sig, group_exit_code);
	return BPF_CORE_READ(leader, exit_code);
}

/* Called in the exiting thread, after its exit code was set and before it leaves its cgroup. */
static int note_exit(void)
{
	__u64 cgroup_id = bpf_get_current_ancestor_cgroup_id(task_level);
	struct task_struct *thread, *leader;
	struct signal_struct *sig;
	struct exit_record *record;

	if (!cgroup_id)
		return 0;
	record = bpf_map_lookup_elem(&exits, &cgroup_id);
	if (!record || record->main_tgid != bpf_get_current_pid_tgid() >> 32)
		return 0;
	thread = (struct task_struct *)bpf_get_current_task();
	sig = BPF_CORE_READ(thread, signal);
	if (BPF_CORE_READ(sig, live.counter) != 0)
		return 0;
	/*
	 * Two threads that exit at the same moment may both find no other alive. The leader's own
	 * exit code is certain only in the leader, so there the record is written over.
	 */
	leader = BPF_CORE_READ(thread, group_leader);
	if (record->exited_ns && thread != leader)
		return 0;
	record->status = wait_status(sig, leader);
	record->exited_ns = bpf_ktime_get_ns();
	return 0;
}

SEC("tp_btf/sched_process_exit")
int process_exit_btf(void *ctx)
{
	return note_exit();
}

/* The same without the typed tracepoint, for kernels that refuse it. */
SEC("raw_tp/sched_process_exit")
int process_exit_raw(void *ctx)
{
	return note_exit();
}
