// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* Which task a cgroup belongs to, for programs that are not called by the task itself. */
#pragma once

#include "task_record.bpf.h"

/* How far below its task's cgroup another one is looked for. */
#define MAX_DEPTH 64

/*
 * The id of this cgroup's ancestor at the level of tasks; 0 above it. The pointer must be one that the
 * verifier knows the type of: its fields are then read without a call.
 */
static __always_inline __u64 task_cgroup_id(struct cgroup *cgroup)
{
	for (int depth = 0; depth < MAX_DEPTH; depth++) {
		int level = cgroup->level;

		if (level < task_level)
			return 0;
		if (level == task_level)
			return cgroup->kn->id;
		cgroup = cgroup->self.parent->cgroup;
	}
	return 0;
}
