/* SPDX-License-Identifier: GPL-2.0 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM unmapped_pool

#if !defined(_TRACE_UNMAPPED_POOL_H) || defined(TRACE_HEADER_MULTI_READ)
#define _TRACE_UNMAPPED_POOL_H

#include <linux/tracepoint.h>

/* The kernel tried to access an unmapped page by its direct-map address. */
TRACE_EVENT(unmapped_pool_refused,
	TP_PROTO(unsigned long pfn, unsigned long ip),

	TP_ARGS(pfn, ip),

	TP_STRUCT__entry(
		__field(unsigned long, pfn)
		__field(unsigned long, ip)
	),

	TP_fast_assign(
		__entry->pfn = pfn;
		__entry->ip = ip;
	),

	TP_printk("pfn=0x%lx ip=%pS", __entry->pfn, (void *)__entry->ip)
);

#endif /* _TRACE_UNMAPPED_POOL_H */

/* This part must be outside protection */
#include <trace/define_trace.h>
