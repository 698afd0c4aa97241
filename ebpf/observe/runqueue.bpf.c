// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/*
 * Counts how long threads of tasks waited for a CPU, and whom they had to leave one to.
 *
 * The kernel itself adds up for each thread how long it waited, at every switch; the program takes the
 * difference to what it saw at the switch before, so it needs no second program where threads wake, and no
 * clock. What it saw is kept with the thread. Room for that is made when the thread is, because nothing may
 * be allocated where threads are switched; so threads that were there before the program are not counted.
 *
 * To be called at each switch costs more than what is done then, so the agent attaches `switched` for a
 * part of the time only.
 */
#include "latency.bpf.h"
#include "task_cgroup.bpf.h"
#include "task_record.bpf.h"

/* task_struct.flags: the kernel's own thread. Not in BTF: a macro. */
#define PF_KTHREAD 0x00200000

TASK_CPU_RECORDS(runqueue, struct runqueue_counters);

/* What is known of a thread of a task. */
struct thread {
	__u64 task; /* cgroup id */
	__u64 revocable;
	__u64 runs;		  /* how often it had got a CPU, with the last one that was seen */
	__u64 waited_ns;	  /* in its life until then */
	__u64 queue;		  /* that it came out of: its address */
	__u64 queue_throttled_ns; /* in the life of that queue */
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct thread);
} threads SEC(".maps");

SEC("tp_btf/sched_process_fork")
int thread_made(__u64 *ctx)
{
	struct task_struct *child = (struct task_struct *)ctx[1];
	__u64 task = task_cgroup_id(child->cgroups->dfl_cgrp);
	struct runqueue_counters *counters;
	struct thread *thread;

	if (!task)
		return 0;
	counters = bpf_map_lookup_elem(&runqueue, &task);
	if (!counters)
		return 0;
	thread = bpf_task_storage_get(&threads, child, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!thread)
		return 0;
	thread->task = task;
	thread->revocable = counters->revocable;
	return 0;
}

/*
 * How long a thread that gets a CPU now has waited. The kernel adds its stay in this queue a moment later, by
 * the same clock. Stays in other queues, which it was moved out of, are added already; where runs went
 * unseen, these are not known.
 */
static __always_inline __u64 waited(struct thread *thread, struct task_struct *next)
{
	__u64 queued = next->sched_info.last_queued, now = next->se.cfs_rq->rq->clock;
	__u64 stay = queued && now > queued ? now - queued : 0;
	__u64 all = next->sched_info.run_delay + stay, runs = next->sched_info.pcount;
	__u64 wait = runs == thread->runs ? all - thread->waited_ns : stay;

	thread->waited_ns = all;
	thread->runs = runs + 1;
	return wait;
}

static __always_inline void count_wait(struct task_struct *next)
{
	struct thread *thread = bpf_task_storage_get(&threads, next, 0, 0);
	struct runqueue_counters *counters;
	struct cfs_rq *queue;
	__u64 wait, before;
	_Bool moved;
	__u32 bucket;

	if (!thread)
		return;
	wait = waited(thread, next);
	queue = next->se.cfs_rq;
	before = thread->queue_throttled_ns;
	moved = thread->queue != (__u64)queue;
	thread->queue = (__u64)queue;
	thread->queue_throttled_ns = queue->throttled_clock_pelt_time;
	counters = bpf_map_lookup_elem(&runqueue, &thread->task);
	if (!counters)
		return;
	/*
	 * The queue was throttled since the thread came out of it last: the cap was in the way, whoever else
	 * was too. Threads in queues that are throttled are not moved to others.
	 */
	if (!moved && thread->queue_throttled_ns != before) {
		counters->throttled_waits++;
		counters->throttled_wait_ns += wait;
		return;
	}
	bucket = latency_bucket(wait);
	if (bucket >= LATENCY_BUCKETS)
		return;
	counters->waits[bucket]++;
	counters->wait_ns += wait;
}

/* A thread that would go on leaves its CPU to another. */
static __always_inline void count_preemption(struct task_struct *prev, struct task_struct *next)
{
	struct thread *thread = bpf_task_storage_get(&threads, prev, 0, 0), *other = 0;
	struct runqueue_counters *counters;
	__u32 by;

	/* Process 0 is idle: the thread was throttled, or moved to another CPU. */
	if (!thread || !next->pid)
		return;
	if (next->bpf_storage)
		other = bpf_task_storage_get(&threads, next, 0, 0);
	if (other && other->task == thread->task)
		return;
	if (other)
		by = other->revocable ? PREEMPTED_BY_REVOCABLE : PREEMPTED_BY_GUARANTEED;
	else
		by = next->flags & PF_KTHREAD ? PREEMPTED_BY_KERNEL : PREEMPTED_BY_STRANGERS;
	counters = bpf_map_lookup_elem(&runqueue, &thread->task);
	if (counters)
		counters->preempted_by[by]++;
}

SEC("tp_btf/sched_switch")
int switched(__u64 *ctx)
{
	struct task_struct *prev = (struct task_struct *)ctx[1], *next = (struct task_struct *)ctx[2];

	/* Of strangers nothing is kept. */
	if (next->bpf_storage)
		count_wait(next);
	/* Preempted in the kernel, or by the state that it left in: 0 is running. */
	if (prev->bpf_storage && ((ctx[0] & 1) || !(__u32)ctx[3]))
		count_preemption(prev, next);
	return 0;
}
