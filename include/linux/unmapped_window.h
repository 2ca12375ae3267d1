/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the windows of all architectures have in common, an mm for each possible CPU
 * with a few pages of address space, and what an architecture has to provide for the
 * pools.  For arch/.../mm/unmapped_window.c and mm/unmapped_*.c; what others may call
 * is in <linux/unmapped_pool.h>.
 */
#ifndef _LINUX_UNMAPPED_WINDOW_H
#define _LINUX_UNMAPPED_WINDOW_H

#include <linux/mm.h>
#include <linux/percpu.h>
#include <linux/unmapped_pool.h>

/**
 * struct unmapped_window - the window of one CPU
 * @mm: never scheduled, and loaded by that CPU alone.
 * @addr: of UNMAPPED_CLEAR_PAGES pages, in the user half.
 * @ptep: their PTEs, all in one page table; none are present while it is closed.
 *
 * Set up by unmapped_window_init() and never changed; the PTEs belong to the CPU, with
 * its interrupts disabled.
 */
struct unmapped_window {
	struct mm_struct	*mm;
	unsigned long		addr;
	pte_t			*ptep;
};

DECLARE_PER_CPU(struct unmapped_window, unmapped_windows);

int unmapped_window_init(void);

/* For the architecture: within one page, and not in NMI? */
bool unmapped_window_range_ok(unsigned int off, unsigned int len);

/*
 * What an architecture provides that selects ARCH_HAS_UNMAPPED_WINDOW: the functions
 * below, and unmapped_page_read(), _write(), _cmpxchg(), _is_zero() and
 * unmapped_pages_clear(), which check offset and length by unmapped_window_range_ok().
 * It also calls unmapped_pool_count_fault() for each fault of the kernel on a page that
 * is not present, and unmapped_pool_show_fault() before it oopses.
 */

/*
 * arch_unmapped_supported - can this machine have unmapped pages?
 *
 * Called without locks, any number of times.  If it returns false, @why is the
 * reason, a constant string for the log.
 */
bool arch_unmapped_supported(const char **why);

/*
 * arch_unmapped_range_allowed - may the pool use @nr pages beginning at @pfn?
 *
 * Returns false if one of them has another kernel alias than that in the direct
 * map.  Called in process context, with memory that has just been allocated.
 */
bool arch_unmapped_range_allowed(unsigned long pfn, unsigned long nr);

/* arch_unmapped_window_mm - set up what @mm needs besides; may sleep */
void arch_unmapped_window_mm(struct mm_struct *mm);

#endif /* _LINUX_UNMAPPED_WINDOW_H */
