// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/*
 * What programs that keep one record a task have in common. The agent makes the entry and the program
 * fills it, so that an entry is there exactly while somebody will read it.
 */
#pragma once

#include "vmlinux_min.h"

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#include "bulkhead_abi.h" /* generated from ../abi */

char LICENSE[] SEC("license") = "GPL";

/* The level of task cgroups below the root of the hierarchy; set by the loader. */
const volatile int task_level = 0;

#define TASK_MAP(kind, name, record)                                                               \
	struct {                                                                                   \
		__uint(type, kind);                                                                \
		__uint(map_flags, BPF_F_NO_PREALLOC);                                              \
		__uint(max_entries, 1);                                                            \
		__type(key, __u64);                                                                \
		__type(value, record);                                                             \
	} name SEC(".maps")

/* A map of records by the cgroup id of the task; the loader says how many. */
#define TASK_RECORDS(name, record) TASK_MAP(BPF_MAP_TYPE_HASH, name, record)

/* The same with a record for each CPU, for what is counted often. */
#define TASK_CPU_RECORDS(name, record) TASK_MAP(BPF_MAP_TYPE_PERCPU_HASH, name, record)
