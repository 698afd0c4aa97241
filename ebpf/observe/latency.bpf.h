// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/* Histograms of how long something took. */
#pragma once

#include "vmlinux_min.h"

#include <bpf/bpf_helpers.h>

#include "bulkhead_abi.h" /* generated from ../abi */

/*
 * The bucket of this time: each takes what is at most its bound, and the bounds are powers of two. The
 * last takes all that is longer.
 */
static __always_inline __u32 latency_bucket(__u64 ns)
{
	__u64 units = ns ? (ns - 1) >> LATENCY_FIRST_BOUND_BITS : 0;
	__u32 bits = 1;

	if (!units)
		return 0;
	if (units >> (LATENCY_BUCKETS - 2))
		return LATENCY_BUCKETS - 1;
	for (__u32 step = 16; step; step >>= 1) {
		if (units >> step) {
			units >>= step;
			bits += step;
		}
	}
	return bits;
}
