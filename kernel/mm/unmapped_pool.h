/* SPDX-License-Identifier: GPL-2.0 */
/* mm/unmapped_pool.c as its KUnit tests see it. */
#ifndef _MM_UNMAPPED_POOL_H
#define _MM_UNMAPPED_POOL_H

#include <linux/unmapped_pool.h>

#if IS_ENABLED(CONFIG_KUNIT)
/* Redirected by the tests. */
struct page *unmapped_alloc_order(struct mempolicy *pol, pgoff_t ilx, gfp_t gfp,
				  unsigned int order);
int unmapped_set_valid(unsigned long pfn, unsigned int nr, bool valid);

extern unsigned long unmapped_retry_delay;

u64 unmapped_pool_refused(void);
u64 unmapped_pool_quarantined_bytes(void);
/* Give back idle blocks, as the shrinker's worker does.  Returns the number of pages. */
unsigned long unmapped_pool_shrink(unsigned long nr);
#endif

#endif /* _MM_UNMAPPED_POOL_H */
