/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * The few kernel types that the programs here read. Fields are found by name when the program is
 * loaded (CO-RE), so the order of fields and what lies between them do not matter, and a build
 * needs neither kernel headers nor the BTF of the machine it runs on.
 */
#pragma once

typedef signed char __s8;
typedef unsigned char __u8;
typedef signed short __s16;
typedef unsigned short __u16;
typedef signed int __s32;
typedef unsigned int __u32;
typedef signed long long __s64;
typedef unsigned long long __u64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u32 __wsum;

enum bpf_map_type {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PERCPU_HASH = 5,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_RINGBUF = 27,
	BPF_MAP_TYPE_TASK_STORAGE = 29,
};
enum { BPF_LOCAL_STORAGE_GET_F_CREATE = 1 };
enum { BPF_NOEXIST = 1 };
enum { BPF_F_NO_PREALLOC = 1 };
/* What a program on sockets is called for. */
enum {
	BPF_SOCK_OPS_TCP_CONNECT_CB = 3,
	BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB = 4,
	BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB = 5,
	BPF_SOCK_OPS_RETRANS_CB = 9,
	BPF_SOCK_OPS_RTT_CB = 12,
};
/* What it asks to be called for besides. */
enum { BPF_SOCK_OPS_RETRANS_CB_FLAG = 2, BPF_SOCK_OPS_RTT_CB_FLAG = 8 };

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

typedef struct {
	int counter;
} atomic_t;

typedef struct {
	__s64 counter;
} atomic_long_t;

struct signal_struct {
	atomic_t live; /* threads that have not begun to exit */
	unsigned int flags;
	int group_exit_code;
};

struct kernfs_node {
	__u64 id;
};

struct cgroup;

struct cgroup_subsys_state {
	struct cgroup *cgroup;
	struct cgroup_subsys_state *parent;
};

struct cgroup {
	struct cgroup_subsys_state self; /* its parent is the parent cgroup's `self` */
	int level;
	struct kernfs_node *kn;
};

struct css_set {
	struct cgroup *dfl_cgrp; /* of the v2 hierarchy */
};

/* Indexes of rss_stat. */
enum { MM_FILEPAGES, MM_ANONPAGES, MM_SWAPENTS, MM_SHMEMPAGES, NR_MM_COUNTERS };

struct percpu_counter {
	__s64 count; /* of all processors together, apart from what each still holds back */
};

struct mm_struct {
	struct percpu_counter rss_stat[NR_MM_COUNTERS];
};

/* Up to Linux 6.1. */
struct mm_rss_stat {
	atomic_long_t count[NR_MM_COUNTERS];
};

struct mm_struct___v6_1 {
	struct mm_rss_stat rss_stat;
};

struct net {
	__u64 net_cookie;
};

typedef struct {
	struct net *net;
} possible_net_t;

struct sock_common {
	unsigned short skc_family;
	possible_net_t skc_net;
	__u16 skc_num; /* the local port, host byte order */
};

struct sock_cgroup_data {
	struct cgroup *cgroup; /* in which the socket was made */
};

struct sock {
	struct sock_common __sk_common;
	__u16 sk_protocol;
	struct sock_cgroup_data sk_cgrp_data;
};

struct socket {
	struct sock *sk;
};

struct tcp_sock; /* begins with its struct sock */
struct bpf_sock; /* what programs see of a socket */

struct bpf_sock_ops {
	__u32 op;
	__u32 args[4];
	__u32 bpf_sock_ops_cb_flags;
	__u32 srtt_us; /* in eighths of a microsecond */
	__u32 total_retrans;
	struct bpf_sock *sk; /* NULL for what is no full socket */
};

struct nsproxy {
	struct net *net_ns;
};

struct rq {
	__u64 clock; /* nanoseconds, set at the begin of each switch */
};

/* A CPU's queue of one cgroup's threads. */
struct cfs_rq {
	struct rq *rq;
	__u64 throttled_clock_pelt_time; /* how long it, or one above it, was throttled */
};

struct sched_entity {
	struct cfs_rq *cfs_rq;
};

struct sched_info {
	unsigned long pcount;		/* how often it got a CPU */
	unsigned long long run_delay;	/* nanoseconds in queues, up to the last run */
	unsigned long long last_queued; /* by the clock of that CPU's queue; 0 is not waiting */
};

struct bpf_local_storage;

struct task_struct {
	unsigned int flags;
	int exit_code;
	int pid;
	int tgid;
	char comm[16];
	struct task_struct *group_leader;
	struct signal_struct *signal;
	struct mm_struct *mm;
	struct css_set *cgroups;
	struct nsproxy *nsproxy;
	struct sched_entity se;
	struct sched_info sched_info;
	struct bpf_local_storage *bpf_storage; /* NULL where no program keeps anything of the thread */
};

struct blkcg {
	struct cgroup_subsys_state css;
};

struct blkcg_gq {
	struct blkcg *blkcg;
};

struct bio {
	struct blkcg_gq *bi_blkg; /* who asked for it */
};

struct request {
	unsigned int cmd_flags;
	unsigned int __data_len;
	struct bio *bio;
	__u64 start_time_ns; /* CLOCK_MONOTONIC; 0 where the queue keeps no statistics */
};

#pragma clang attribute pop
