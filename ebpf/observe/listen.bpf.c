// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/*
 * Refuses two calls that no hook on socket addresses sees: listen() on a socket without a port,
 * which the kernel then chooses, and the making of packet sockets.
 *
 * These read the kernel's own structures, which is why they are C. They look up what the task may do, and
 * count what they refuse, in the maps of `enforce`.
 */
#include "vmlinux_min.h"

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#include "bulkhead_abi.h" /* generated from ../abi */

char LICENSE[] SEC("license") = "GPL";

enum { AF_INET = 2, AF_INET6 = 10, AF_PACKET = 17, AF_XDP = 44 };
enum { IPPROTO_TCP = 6, IPPROTO_MPTCP = 262 };
enum { DENY = 0, ALLOW = 1 };

/* The level of task cgroups below the root of the hierarchy; set by the loader. */
const volatile int task_level = 0;
/* The cookie of the network namespace in which tasks are held, 0 for every one; set by the loader. */
const volatile __u64 host_netns = 0;

/* The loader puts the maps of `enforce` in the place of these. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_TASKS);
	__type(key, __u64); /* cgroup id */
	__type(value, struct task_ports);
} TASK_PORTS SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_TASKS);
	__type(key, __u64); /* cgroup id */
	__type(value, struct task_counters);
} COUNTERS SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_DENIALS);
	__type(key, struct denial_key);
	__type(value, struct denial);
} DENIALS SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, EVENT_RING_BYTES);
} EVENTS SEC(".maps");

/* Counts a denial exactly, reports it at 1, 2, 4, 8 and so on, and is the hook's answer. There are so few kinds of
 * these that a task cannot fill the map with them. */
static int deny(struct denial_key *key)
{
	__u64 now = bpf_ktime_get_ns(), count;
	struct task_counters *counters = bpf_map_lookup_elem(&COUNTERS, &key->cgroup_id);
	struct denial *denial = bpf_map_lookup_elem(&DENIALS, key);
	struct denial_event *event;

	if (counters)
		__sync_fetch_and_add(&counters->denied, 1);
	if (!denial) {
		struct denial first = { .first_ns = now, .last_ns = now };

		bpf_map_update_elem(&DENIALS, key, &first, BPF_NOEXIST);
		denial = bpf_map_lookup_elem(&DENIALS, key);
	}
	if (!denial)
		return DENY;
	denial->last_ns = now;
	count = __sync_fetch_and_add(&denial->count, 1) + 1;
	if (count & (count - 1))
		return DENY;
	event = bpf_ringbuf_reserve(&EVENTS, sizeof(*event), 0);
	if (!event)
		return DENY;
	event->key = *key;
	event->count = count;
	event->time_ns = now;
	event->pid = bpf_get_current_pid_tgid() >> 32;
	event->uid = bpf_get_current_uid_gid();
	bpf_get_current_comm(event->comm, sizeof(event->comm));
	bpf_ringbuf_submit(event, 0);
	return DENY;
}

/* A task without any entry may do what one without ports may. */
static __u32 choice_of(__u64 cgroup_id)
{
	struct task_ports *task = bpf_map_lookup_elem(&TASK_PORTS, &cgroup_id);

	return task ? task->choice : PORT_CHOICE_DEFAULT;
}

SEC("lsm_cgroup/socket_listen")
int BPF_PROG(socket_listen, struct socket *sock, int backlog)
{
	__u64 cgroup_id = bpf_get_current_ancestor_cgroup_id(task_level);
	struct sock *sk = sock->sk;
	struct denial_key key = { .cgroup_id = cgroup_id, .call = DENIED_LISTEN };
	__u16 family;

	if (!cgroup_id || !sk)
		return ALLOW;
	family = BPF_CORE_READ(sk, __sk_common.skc_family);
	key.protocol = BPF_CORE_READ(sk, sk_protocol);
	if (family != AF_INET && family != AF_INET6)
		return ALLOW;
	if (key.protocol != IPPROTO_TCP && key.protocol != IPPROTO_MPTCP)
		return ALLOW;
	if (BPF_CORE_READ(sk, __sk_common.skc_num))
		return ALLOW;
	if (choice_of(cgroup_id) & PORT_CHOICE_LISTEN_EPHEMERAL)
		return ALLOW;
	if (host_netns && BPF_CORE_READ(sk, __sk_common.skc_net.net, net_cookie) != host_netns)
		return ALLOW;
	/* Events tell TCP, whichever way it goes. */
	key.protocol = IPPROTO_TCP;
	key.ip_version = family == AF_INET ? 4 : 6;
	return deny(&key);
}

SEC("lsm_cgroup/socket_create")
int BPF_PROG(socket_create, int family, int type, int protocol, int kern)
{
	__u64 cgroup_id = bpf_get_current_ancestor_cgroup_id(task_level);
	struct denial_key key = { .cgroup_id = cgroup_id, .port = (__u16)type, .call = DENIED_SOCKET };
	struct task_struct *thread;
	struct task_ports *task;

	if (kern || !cgroup_id || (family != AF_PACKET && family != AF_XDP))
		return ALLOW;
	task = bpf_map_lookup_elem(&TASK_PORTS, &cgroup_id);
	if (task && task->sockets & SOCKET_KIND_PACKET)
		return ALLOW;
	/* There is no socket yet; it will be in the namespace of its maker. */
	thread = (struct task_struct *)bpf_get_current_task();
	if (host_netns && BPF_CORE_READ(thread, nsproxy, net_ns, net_cookie) != host_netns)
		return ALLOW;
	return deny(&key);
}
