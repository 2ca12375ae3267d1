/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the windows of all architectures have in common: an mm for each possible CPU,
 * with a few pages of address space.  For arch/.../mm/unmapped_window.c and the pools;
 * what others may call is in <linux/unmapped_pool.h>.
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

/* The architecture's: what @mm needs besides.  May sleep. */
void arch_unmapped_window_mm(struct mm_struct *mm);

#endif /* _LINUX_UNMAPPED_WINDOW_H */
