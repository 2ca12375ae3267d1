// SPDX-License-Identifier: GPL-2.0
/*
 * The windows to pages of unmapped pools, as far as they are the same on all
 * architectures: what is allocated once, which ranges may be accessed, and what is
 * made of single accesses.  How a window is opened and closed is in
 * arch/.../mm/unmapped_window.c.
 */
#include <linux/cpumask.h>
#include <linux/kvm_types.h>
#include <linux/log2.h>
#include <linux/memcontrol.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/preempt.h>
#include <linux/random.h>
#include <linux/sched/mm.h>
#include <linux/sched/task.h>
#include <linux/unmapped_window.h>

#define UNMAPPED_WINDOW_SIZE	(UNMAPPED_CLEAR_PAGES * PAGE_SIZE)

DEFINE_PER_CPU(struct unmapped_window, unmapped_windows);
static DEFINE_MUTEX(unmapped_window_mutex);

static int unmapped_window_init_cpu(struct unmapped_window *w)
{
	unsigned long addr;
	spinlock_t *ptl;	/* get_locked_pte() takes it */
	pte_t *ptep;

	if (!w->mm) {
		w->mm = mm_alloc();
		if (!w->mm)
			return -ENOMEM;
		/*
		 * The mm outlives the task that happens to create it, and is
		 * none of that task's business.
		 */
#ifdef CONFIG_MEMCG
		WRITE_ONCE(w->mm->owner, &init_task);
#endif
		arch_unmapped_window_mm(w->mm);
	}

	/*
	 * Anywhere in the part of the user half that all have, and aligned, so that
	 * all PTEs are in one page table.
	 */
	BUILD_BUG_ON(!is_power_of_2(UNMAPPED_CLEAR_PAGES) || UNMAPPED_WINDOW_SIZE > PMD_SIZE);
	addr = get_random_u64() % (DEFAULT_MAP_WINDOW / UNMAPPED_WINDOW_SIZE - 2);
	addr = (addr + 1) * UNMAPPED_WINDOW_SIZE;

	ptep = get_locked_pte(w->mm, addr, &ptl);
	if (!ptep)
		return -ENOMEM;
	pte_unmap_unlock(ptep, ptl);

	w->addr = addr;
	/* The page table stays as long as the mm exists, which is forever. */
	w->ptep = ptep;
	return 0;
}

/*
 * Set up the windows of all possible CPUs, online or not, so that CPU hotplug
 * needs no attention.  Called before a pool is created; may sleep.  Returns 0, or
 * -ENOMEM, after which it may be called again.
 */
int unmapped_window_init(void)
{
	struct mem_cgroup *old_memcg;
	static bool done;
	int cpu, ret = 0;

	guard(mutex)(&unmapped_window_mutex);
	if (done)
		return 0;

	/* Shared by all: not to be charged to the first user. */
	old_memcg = set_active_memcg(root_mem_cgroup);
	for_each_possible_cpu(cpu) {
		struct unmapped_window *w = per_cpu_ptr(&unmapped_windows, cpu);

		if (w->ptep)
			continue;
		ret = unmapped_window_init_cpu(w);
		if (ret)
			break;
	}
	set_active_memcg(old_memcg);

	done = !ret;
	return ret;
}

/* For the architecture: within one page, and not in NMI? */
bool unmapped_window_range_ok(unsigned int off, unsigned int len)
{
	if (WARN_ON_ONCE(in_nmi()))
		return false;
	return off < PAGE_SIZE && len <= PAGE_SIZE - off;
}

int unmapped_page_copy_to(struct page *dst_mapped, struct page *src_unmapped)
{
	return unmapped_page_read(src_unmapped, 0, page_address(dst_mapped), PAGE_SIZE);
}
EXPORT_SYMBOL_FOR_KVM(unmapped_page_copy_to);

int unmapped_page_copy_from(struct page *dst_unmapped, struct page *src_mapped)
{
	int ret = unmapped_page_write(dst_unmapped, 0, page_address(src_mapped),
				      PAGE_SIZE);

	/* As for those of unmapped pages: see unmapped_page_read(). */
	if (ret == -EHWPOISON)
		memory_failure_queue(page_to_pfn(src_mapped), 0);
	return ret;
}
EXPORT_SYMBOL_FOR_KVM(unmapped_page_copy_from);
