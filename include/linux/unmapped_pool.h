/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Pools of pages that have no entry in the kernel's direct map nor in any
 * other kernel alias.  See mm/unmapped_pool.c for the design.
 */
#ifndef _LINUX_UNMAPPED_POOL_H
#define _LINUX_UNMAPPED_POOL_H

#include <linux/types.h>
#include <linux/errno.h>
#include <linux/gfp_types.h>
#include <linux/log2.h>
#include <linux/sizes.h>

/*
 * A pool takes its memory in blocks, of this size where there is one: that of one
 * entry of the direct map, where that has a larger size than the page, and is not
 * larger than 2 MiB.  For users of <linux/mm.h>.
 */
#define UNMAPPED_BLOCK_ORDER	MIN(MIN(PMD_ORDER, MAX_PAGE_ORDER), ilog2(SZ_2M) - PAGE_SHIFT)
#define UNMAPPED_BLOCK_PAGES	(1U << UNMAPPED_BLOCK_ORDER)

struct mempolicy;
struct page;
struct pt_regs;
struct unmapped_pool;

/**
 * struct unmapped_pool_ops - callbacks into the owner of a pool
 * @memory_failure: the page that was handed out as @index has an uncorrectable
 *	memory error.  The owner stops using the page, and gives it back with
 *	unmapped_pool_free() like any other; the pool then keeps it for good.
 *	Called in process context with no pool lock held that
 *	unmapped_pool_alloc() or unmapped_pool_free() needs; may sleep.  By the
 *	time it runs the owner may already have given the page back, so @page
 *	has to be compared with what the owner has at @index.
 */
struct unmapped_pool_ops {
	void (*memory_failure)(void *priv, pgoff_t index, struct page *page);
};

#ifdef CONFIG_UNMAPPED_POOL

bool unmapped_pool_supported(const char **why);
struct unmapped_pool *unmapped_pool_create(u64 owner_id,
					   const struct unmapped_pool_ops *ops,
					   void *priv);
void unmapped_pool_unregister(struct unmapped_pool *pool);
void unmapped_pool_put(struct unmapped_pool *pool);

struct page *unmapped_pool_alloc(struct unmapped_pool *pool, u64 gfn,
				 pgoff_t index, bool whole,
				 struct mempolicy *pol, pgoff_t ilx, gfp_t gfp);
struct page *unmapped_pool_alloc_home(struct unmapped_pool *pool, u64 gfn,
				      pgoff_t index, struct mempolicy *pol,
				      pgoff_t ilx, gfp_t gfp, unsigned long *taken);
struct page *unmapped_pool_alloc_mapped(struct unmapped_pool *pool, struct mempolicy *pol,
					pgoff_t ilx, gfp_t gfp);
void unmapped_pool_free(struct unmapped_pool *pool, struct page *page);
void unmapped_pool_free_range(struct unmapped_pool *pool, struct page *page,
			      unsigned int nr);
void unmapped_pool_free_clean(struct unmapped_pool *pool, struct page *page,
			      unsigned int nr);

u64 unmapped_pool_bytes(struct unmapped_pool *pool);
u64 unmapped_pool_bytes_total(void);
bool unmapped_pool_active(void);
bool page_is_unmapped(const struct page *page);

/* For the page fault handler; all of them lock-free and NMI-safe. */
void unmapped_pool_count_fault(struct pt_regs *regs, unsigned long address);
void unmapped_pool_count_lost(unsigned long pfn);
void unmapped_pool_show_fault(struct pt_regs *regs, unsigned long address);

/* For memory_failure(): 0 = now poisoned, -EHWPOISON = was already, -ENOENT. */
int unmapped_pool_memory_failure(struct page *page);

/* unmapped_page_read() and unmapped_page_write() of a whole page */
int unmapped_page_copy_to(struct page *dst_mapped, struct page *src_unmapped);
int unmapped_page_copy_from(struct page *dst_unmapped, struct page *src_mapped);

#else /* !CONFIG_UNMAPPED_POOL */

static inline bool unmapped_pool_active(void)
{
	return false;
}

static inline bool page_is_unmapped(const struct page *page)
{
	return false;
}

static inline void unmapped_pool_count_fault(struct pt_regs *regs,
					     unsigned long address)
{
}

static inline void unmapped_pool_count_lost(unsigned long pfn)
{
}

static inline void unmapped_pool_show_fault(struct pt_regs *regs,
					    unsigned long address)
{
}

static inline int unmapped_pool_memory_failure(struct page *page)
{
	return -ENOENT;
}

#endif /* CONFIG_UNMAPPED_POOL */

/*
 * The window: a mapping which only the current CPU can use and which is gone, TLB
 * entry included, when the function returns; interrupts are off that long.  Callable
 * from any context but NMI.  The caller holds a reference to the page, and serializes
 * with its release.
 */

/*
 * unmapped_page_read - copy @len bytes from @off in an unmapped page to @dst
 *
 * @dst is kernel memory.  An aligned operand of 1, 2, 4 or 8 bytes is read at
 * once.  Also good for a page in the direct map.  Returns 0; -EINVAL for a bad
 * range; -EHWPOISON after a machine check, when a part may have been copied;
 * -EFAULT, after a warning, if @dst is not there.
 */
int unmapped_page_read(struct page *page, unsigned int off, void *dst,
		       unsigned int len);

/* unmapped_page_write - copy @len bytes from @src to @off in an unmapped page */
int unmapped_page_write(struct page *page, unsigned int off, const void *src,
			unsigned int len);

/*
 * unmapped_page_cmpxchg - compare and exchange @size bytes, atomically
 *
 * @size is 1, 2, 4 or 8.  What the architecture doesn't do atomically unless it
 * is aligned has to be.  Returns 0 if it was @old and is @new now; 1 with what
 * was found in @old; or the errors of unmapped_page_read().
 */
int unmapped_page_cmpxchg(struct page *page, unsigned int off, void *old,
			  const void *new, unsigned int size);

/*
 * unmapped_page_is_zero - are there only zeroes in an unmapped page?
 *
 * Returns 1 if so, 0 if not; or an error as unmapped_page_read() has it.
 */
int unmapped_page_is_zero(struct page *page);

/*
 * unmapped_pages_clear - write zeroes over @nr consecutive pages
 *
 * At most UNMAPPED_CLEAR_PAGES: interrupts are off that long.  Returns 0; or -EINVAL
 * in NMI.
 */
#define UNMAPPED_CLEAR_PAGES	(PAGE_SIZE < SZ_32K ? SZ_32K / PAGE_SIZE : 1)
int unmapped_pages_clear(struct page *page, unsigned int nr);

static inline int unmapped_page_clear(struct page *page)
{
	return unmapped_pages_clear(page, 1);
}

#endif /* _LINUX_UNMAPPED_POOL_H */
