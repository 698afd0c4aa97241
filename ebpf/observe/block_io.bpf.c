// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/*
 * Counts how long the requests of tasks for disks took, from the moment that the kernel made them to their
 * completion: waiting for their turn included.
 *
 * A request belongs to the cgroup that the kernel charges it to, which for writeback is that of the memory
 * and not of the thread that writes it. Where the io controller is not on the cgroup v2 hierarchy, that is
 * no task's.
 */
#include "latency.bpf.h"
#include "task_cgroup.bpf.h"
#include "task_record.bpf.h"

/* Of request.cmd_flags. Not in BTF as numbers: macros. */
#define REQ_OP_MASK 0xff
#define REQ_OP_READ 0
#define REQ_OP_WRITE 1

TASK_CPU_RECORDS(block_io, struct block_io_counters);

/* As task_cgroup_id, for pointers that the verifier does not know the type of. */
static __always_inline __u64 untyped_task_cgroup_id(struct cgroup *cgroup)
{
	for (int depth = 0; depth < MAX_DEPTH; depth++) {
		int level = BPF_CORE_READ(cgroup, level);

		if (level < task_level)
			return 0;
		if (level == task_level)
			return BPF_CORE_READ(cgroup, kn, id);
		cgroup = BPF_CORE_READ(cgroup, self.parent, cgroup);
	}
	return 0;
}

static __always_inline int note_completion(struct request *request, __u32 bytes)
{
	__u64 since = BPF_CORE_READ(request, start_time_ns), now, took, task;
	__u32 operation = BPF_CORE_READ(request, cmd_flags) & REQ_OP_MASK, bucket;
	struct block_io_counters *counters;
	struct cgroup *cgroup;

	/* Flushes and discards are nobody's; of a request that completes in parts, the last one counts. */
	if (!since || operation > REQ_OP_WRITE || bytes < BPF_CORE_READ(request, __data_len))
		return 0;
	cgroup = BPF_CORE_READ(request, bio, bi_blkg, blkcg, css.cgroup);
	if (!cgroup)
		return 0;
	task = untyped_task_cgroup_id(cgroup);
	counters = bpf_map_lookup_elem(&block_io, &task);
	if (!counters)
		return 0;
	now = bpf_ktime_get_ns();
	took = now > since ? now - since : 0;
	bucket = latency_bucket(took);
	if (bucket >= LATENCY_BUCKETS)
		return 0;
	/* Atomic, because another completion may interrupt on the same CPU. */
	if (operation == REQ_OP_READ) {
		__sync_fetch_and_add(&counters->reads[bucket], 1);
		__sync_fetch_and_add(&counters->read_ns, took);
	} else {
		__sync_fetch_and_add(&counters->writes[bucket], 1);
		__sync_fetch_and_add(&counters->write_ns, took);
	}
	return 0;
}

SEC("tp_btf/block_rq_complete")
int request_completed_btf(__u64 *ctx)
{
	return note_completion((struct request *)ctx[0], (__u32)ctx[2]);
}

/* The same without the typed tracepoint, for kernels that refuse it. */
SEC("raw_tp/block_rq_complete")
int request_completed_raw(__u64 *ctx)
{
	return note_completion((struct request *)ctx[0], (__u32)ctx[2]);
}
