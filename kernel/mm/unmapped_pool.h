/* SPDX-License-Identifier: GPL-2.0 */
/* What mm/unmapped_pool.c shows to its KUnit tests. */
#ifndef _MM_UNMAPPED_POOL_H
#define _MM_UNMAPPED_POOL_H

#include <linux/unmapped_pool.h>

/* One entry of the direct map, where that has a larger size than the page. */
#define UNMAPPED_BLOCK_ORDER	min_t(unsigned int, PMD_ORDER, MAX_PAGE_ORDER)

#if IS_ENABLED(CONFIG_KUNIT)
/* Redirected by the tests. */
struct page *unmapped_alloc_order(struct mempolicy *pol, pgoff_t ilx, gfp_t gfp,
				  unsigned int order);
int unmapped_set_valid(unsigned long pfn, unsigned int nr, bool valid);

extern unsigned long unmapped_retry_delay;

u64 unmapped_pool_refused(void);
u64 unmapped_pool_quarantined_bytes(void);
/* Give back idle blocks, as the shrinker does.  Returns the number of pages. */
unsigned long unmapped_pool_shrink(unsigned long nr);
#endif

#endif /* _MM_UNMAPPED_POOL_H */
