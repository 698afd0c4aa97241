// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/*
 * Counts the TCP connections of tasks, the segments that had to be sent once more, and how long their
 * round trips took. The agent makes an entry for each task; the program adds.
 *
 * A task's sockets are those that were made in its cgroup, or came of one that was: whoever calls at
 * that moment may be anybody, so the socket itself is asked.
 */
#include "task_cgroup.bpf.h"
#include "task_record.bpf.h"

TASK_CPU_RECORDS(connections, struct connection_counters);

/* Atomic, because another connection may interrupt on the same CPU. */
static __always_inline void add(__u64 *word, __u64 by)
{
	__sync_fetch_and_add(word, by);
}

/* NULL for sockets of processes above the level of tasks. */
static __always_inline struct connection_counters *counters_of(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *socket = ctx->sk;
	struct sock *sk;
	__u64 cgroup_id;

	if (!socket)
		return 0;
	sk = (struct sock *)bpf_skc_to_tcp_sock(socket);
	if (!sk)
		return 0;
	cgroup_id = task_cgroup_id(sk->sk_cgrp_data.cgroup);
	return bpf_map_lookup_elem(&connections, &cgroup_id);
}

/*
 * Adds the kernel's smoothed estimate with this round trip in it. Before 6.10 it tells the estimate
 * before this one, which is nothing at first: each is then added when the next one comes.
 */
static __always_inline void add_round_trip(struct bpf_sock_ops *ctx, struct connection_counters *counters)
{
	__u32 eighths = ctx->args[1], bound = RTT_FIRST_BOUND_USEC, bucket = 0, usec;

	if (!eighths)
		eighths = ctx->srtt_us;
	if (!eighths)
		return;
	usec = eighths >> 3;
	for (; bucket < RTT_BUCKETS - 1 && usec > bound; bucket++)
		bound <<= 1;
	add(&counters->rtt[bucket], 1);
	add(&counters->rtt_sum_usec, usec);
}

/* Has this program called for the connection's round trips and retransmissions. Flags of others stay. */
static __always_inline void follow(struct bpf_sock_ops *ctx)
{
	const __u32 ours = BPF_SOCK_OPS_RETRANS_CB_FLAG | BPF_SOCK_OPS_RTT_CB_FLAG;
	__u32 flags = ctx->bpf_sock_ops_cb_flags;

	if ((flags & ours) != ours)
		bpf_sock_ops_cb_flags_set(ctx, flags | ours);
}

SEC("sockops")
int count_connections(struct bpf_sock_ops *ctx)
{
	struct connection_counters *counters;
	__u32 op = ctx->op;

	/* Others ask for a setting; no answer is the kernel's own. */
	if (op != BPF_SOCK_OPS_RTT_CB && op != BPF_SOCK_OPS_RETRANS_CB && op != BPF_SOCK_OPS_TCP_CONNECT_CB &&
	    op != BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB && op != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB)
		return 1;
	counters = counters_of(ctx);
	if (!counters)
		return 1;
	switch (op) {
	case BPF_SOCK_OPS_RTT_CB:
		add_round_trip(ctx, counters);
		break;
	case BPF_SOCK_OPS_RETRANS_CB:
		/* Number of segments. */
		add(&counters->retransmitted, ctx->args[1]);
		break;
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		follow(ctx);
		break;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		add(&counters->opened, 1);
		follow(ctx);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		add(&counters->accepted, 1);
		/* Answers to the first packet, which went out before there was a socket. */
		add(&counters->retransmitted, ctx->total_retrans);
		follow(ctx);
		break;
	}
	return 1;
}
