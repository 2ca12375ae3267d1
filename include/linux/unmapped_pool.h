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
void unmapped_pool_free(struct unmapped_pool *pool, struct page *page);
void unmapped_pool_free_clean(struct unmapped_pool *pool, struct page *page);

u64 unmapped_pool_bytes(struct unmapped_pool *pool);
u64 unmapped_pool_bytes_total(void);
bool unmapped_pool_active(void);
bool page_is_unmapped(const struct page *page);

/* For the page fault handler; both lock-free and NMI-safe. */
void unmapped_pool_count_fault(struct pt_regs *regs, unsigned long address);
void unmapped_pool_show_fault(struct pt_regs *regs, unsigned long address);

/* For memory_failure(): 0 = now poisoned, -EHWPOISON = was already, -ENOENT. */
int unmapped_pool_memory_failure(struct page *page);

/*
 * The window: access to the contents of an unmapped page, by a mapping which
 * only the current CPU can use and which is gone, TLB entry included, when the
 * function returns.  At most one page per call, for the length of which
 * interrupts are off.  Callable from any context but NMI.  The caller holds a
 * reference to the page and serializes with its release.
 *
 * Return: 0, -EINVAL if the range is not within one page, -EHWPOISON if a
 * machine check was taken (part of the destination may have been written then).
 */
int unmapped_page_read(struct page *page, unsigned int off, void *dst,
		       unsigned int len);
int unmapped_page_write(struct page *page, unsigned int off, const void *src,
			unsigned int len);
/*
 * As above; @size is 1, 2, 4, 8 or 16 (16: with CPU support only, and aligned).
 * What the architecture does not do atomically unless it is aligned has to be.
 * Returns 1 with the value found in @old on a mismatch.
 */
int unmapped_page_cmpxchg(struct page *page, unsigned int off, void *old,
			  const void *new, unsigned int size);
int unmapped_page_copy_to(struct page *dst_mapped, struct page *src_unmapped);
int unmapped_page_copy_from(struct page *dst_unmapped, struct page *src_mapped);
int unmapped_page_clear(struct page *page);

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

static inline void unmapped_pool_show_fault(struct pt_regs *regs,
					    unsigned long address)
{
}

static inline int unmapped_pool_memory_failure(struct page *page)
{
	return -ENOENT;
}

#endif /* CONFIG_UNMAPPED_POOL */

/* Provided by the architecture. */
bool arch_unmapped_supported(const char **why);
int arch_unmapped_window_init(void);
bool arch_unmapped_range_allowed(unsigned long pfn, unsigned long nr);

#endif /* _LINUX_UNMAPPED_POOL_H */
