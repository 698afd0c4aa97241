// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/*
 * Keeps whom the kernel's out-of-memory killer chose in a task, and how large it was, before its
 * memory is taken away. The agent makes an entry for each task; the program fills it.
 *
 * The killer works under one lock, so two victims never come at once.
 */
#include "task_cgroup.bpf.h"
#include "task_record.bpf.h"

TASK_RECORDS(ooms, struct oom_record);

/* As the kernel's own log has it: what single processors have not handed in yet is left out. */
#define PAGES(mm, which)                                                                           \
	({                                                                                         \
		__s64 count = 0;                                                                   \
		struct mm_struct___v6_1 *old = (void *)(mm);                                       \
		if (bpf_core_field_exists((mm)->rss_stat[0].count))                                \
			count = BPF_CORE_READ(mm, rss_stat[which].count);                          \
		else if (bpf_core_type_exists(struct mm_rss_stat))                                 \
			count = BPF_CORE_READ(old, rss_stat.count[which].counter);                 \
		count > 0 ? (__u64)count : 0;                                                      \
	})

/*
 * Called once for each victim, which cannot exit meanwhile. The argument is read as a typed pointer on
 * purpose: kernels that hand over a process id instead refuse the program.
 */
SEC("tp_btf/mark_victim")
int mark_victim(__u64 *ctx)
{
	struct task_struct *victim = (struct task_struct *)ctx[0];
	int tgid = victim->tgid;
	/* The victim's: whoever asked for memory may be any process of the host. */
	__u64 cgroup_id = task_cgroup_id(victim->cgroups->dfl_cgrp);
	__u64 anon, file, shmem, swap;
	struct oom_record *record;
	struct mm_struct *mm;

	record = bpf_map_lookup_elem(&ooms, &cgroup_id);
	if (!record)
		return 0;
	record->victims++;
	record->last_ns = bpf_ktime_get_ns();
	mm = BPF_CORE_READ(victim, mm);
	anon = PAGES(mm, MM_ANONPAGES);
	file = PAGES(mm, MM_FILEPAGES);
	shmem = PAGES(mm, MM_SHMEMPAGES);
	swap = PAGES(mm, MM_SWAPENTS);
	/* When a whole task ends, the kernel's first choice is what counts, and not its helpers. */
	if (record->victims > 1 && anon + file + shmem + swap <= record->anon_pages + record->file_pages +
								       record->shmem_pages + record->swap_pages)
		return 0;
	record->anon_pages = anon;
	record->file_pages = file;
	record->shmem_pages = shmem;
	record->swap_pages = swap;
	record->tgid = tgid;
	record->tid = BPF_CORE_READ(victim, pid);
	BPF_CORE_READ_STR_INTO(&record->comm, victim, comm);
	return 0;
}
