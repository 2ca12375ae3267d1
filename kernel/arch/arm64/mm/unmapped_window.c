// SPDX-License-Identifier: GPL-2.0
/*
 * Access to pages which are off the direct map: the arm64 window.
 *
 * Each possible CPU has an mm of its own for this, with a few pages of address
 * space at a random place in the user half, the page tables for which are
 * allocated up front.  To access a page the CPU disables interrupts, installs
 * the PTE, points TTBR0 at the mm, copies, clears the PTE, invalidates the
 * translation and switches back.
 *
 * What makes this a mapping that nothing else can use:
 *
 *  - TTBR0 has the mm on the one CPU that it belongs to, and only with interrupts
 *    disabled; no other CPU ever walks its page tables.
 *  - It is loaded with the reserved ASID 0 and without CnP: no other CPU may use
 *    this one's TLB entries.  The PTE is not global, and the TLBI is executed before
 *    interrupts are on, so that whoever is next to have ASID 0 here finds nothing.
 *  - The PTE is not accessible by EL0.  Pseudo-NMIs can interrupt, and their
 *    accesses to user memory are by unprivileged loads and stores, which this
 *    refuses; copy_from_kernel_nofault(), which tracers use, does not accept a user
 *    address.  Nothing but clear_page() is called while the window is open, and no
 *    probe can be put on that.  (A BPF program of a perf event in a pseudo-NMI could
 *    still be written to read there: the JIT does not check its loads as x86's does.)
 *
 * There is no recovery from a memory error that the kernel meets in the window, as
 * it meets it in any other place on arm64.  While the window is open this counts as
 * hard interrupt context, so that an exception ends the machine: if it ended but
 * the thread, interrupts would be on again with the window open.
 */
#include <linux/init.h>
#include <linux/irqflags.h>
#include <linux/kprobes.h>
#include <linux/kvm_types.h>
#include <linux/mm.h>
#include <linux/preempt.h>
#include <linux/uaccess.h>
#include <linux/unmapped_window.h>

#include <asm/barrier.h>
#include <asm/cmpxchg.h>
#include <asm/mmu_context.h>
#include <asm/pgtable.h>
#include <asm/rsi.h>
#include <asm/sections.h>
#include <asm/sysreg.h>
#include <asm/tlbflush.h>
#include <asm/virt.h>

bool arch_unmapped_supported(const char **why)
{
	if (is_realm_world()) {
		*why = "a realm has its memory from the RMM";
		return false;
	}
	/* On entry of an exception it would take the window for "no user memory". */
	if (system_uses_ttbr0_pan()) {
		*why = "PAN is emulated by TTBR0";
		return false;
	}
	return true;
}

/*
 * The kernel image is mapped once more, outside of the linear map.  What of it is
 * freed after boot has no mapping there any more, but is not worth a closer look.
 * And in nVHE mode EL2 maps what KVM has shared with it, and never unmaps it.
 */
bool arch_unmapped_range_allowed(unsigned long pfn, unsigned long nr)
{
	unsigned long start = __pa_symbol(_text) >> PAGE_SHIFT;
	unsigned long end = PAGE_ALIGN(__pa_symbol(_end)) >> PAGE_SHIFT;

	return (pfn + nr <= start || pfn >= end) && !kvm_hyp_maps(pfn, nr);
}

void arch_unmapped_window_mm(struct mm_struct *mm)
{
}

/* A state of the open window, to be carried from open to close. */
struct unmapped_window_state {
	struct unmapped_window	*w;
	u64			ttbr0;
	u64			ttbr1;	/* has the ASID */
	unsigned long		flags;
};

/* Never the one's ASID, which is in TTBR1, with the other's tables. */
static __always_inline void unmapped_window_switch(u64 ttbr0, u64 ttbr1)
{
	cpu_set_reserved_ttbr0_nosync();
	write_sysreg(ttbr1, ttbr1_el1);
	write_sysreg(ttbr0, ttbr0_el1);
	isb();
}

/* Opens it on @nr consecutive pages. */
static __always_inline void *unmapped_window_open(struct unmapped_window_state *s,
						  struct page *page, unsigned int nr,
						  pgprot_t prot)
{
	struct unmapped_window *w;
	unsigned int i;

	local_irq_save(s->flags);
	__preempt_count_add(HARDIRQ_OFFSET);	/* see die() */
	w = this_cpu_ptr(&unmapped_windows);
	s->w = w;
	s->ttbr0 = read_sysreg(ttbr0_el1);
	s->ttbr1 = read_sysreg(ttbr1_el1);

	/* Not global: see the TLBI in unmapped_window_close(). */
	prot = __pgprot(pgprot_val(prot) | PTE_NG);
	for (i = 0; i < nr; i++) {
		VM_WARN_ON_ONCE(!pte_none(__ptep_get(&w->ptep[i])));
		__set_pte(&w->ptep[i], pfn_pte(page_to_pfn(page) + i, prot));
	}
	/* The page table walker sees it before the first access, after the ISB. */
	dsb(nshst);
	/* As cpu_do_switch_mm(), which can be traced, would do it for ASID 0. */
	unmapped_window_switch(phys_to_ttbr(virt_to_phys(w->mm->pgd)),
			       s->ttbr1 & ~TTBRx_EL1_ASID_MASK);

	return (void *)w->addr;
}

static __always_inline void unmapped_window_close(struct unmapped_window_state *s,
						  unsigned int nr)
{
	struct unmapped_window *w = s->w;
	unsigned int i;

	/* All accesses have been issued before the PTE is cleared ... */
	barrier();
	for (i = 0; i < nr; i++)
		__pte_clear(w->mm, w->addr + i * PAGE_SIZE, &w->ptep[i]);
	dsb(nshst);
	/* ... and the translation, of ASID 0, is gone before interrupts are enabled. */
	for (i = 0; i < nr; i++)
		__tlbi(vale1, (w->addr + i * PAGE_SIZE) >> 12);
	dsb(nsh);

	unmapped_window_switch(s->ttbr0, s->ttbr1);
	/* For both switches: only user space could suffer from the erratum. */
	post_ttbr_update_workaround();

	__preempt_count_sub(HARDIRQ_OFFSET);
	local_irq_restore(s->flags);
}

/*
 * Copies between the window and the caller's buffer.  This file is built without KASAN
 * and KCSAN, which don't know the address of the one; the other may not be there, which
 * is the caller's bug.  An aligned operand of up to eight bytes is accessed at once;
 * not by READ_ONCE(), which with LTO is an instruction that must be aligned.
 * Return: 0 or -EFAULT.
 */
#define unmapped_window_move(type)					\
do {									\
	while (len >= sizeof(type)) {					\
		type __val;						\
									\
		if (write) {						\
			__get_kernel_nofault(&__val, buf, type, fault);	\
			*(volatile type *)p = __val;			\
		} else {						\
			__val = *(const volatile type *)p;		\
			__put_kernel_nofault(buf, &__val, type, fault);	\
		}							\
		p += sizeof(type);					\
		buf += sizeof(type);					\
		len -= sizeof(type);					\
	}								\
} while (0)

static __always_inline int unmapped_window_copy(void *p, void *buf, unsigned int len,
						bool write)
{
	unmapped_window_move(u64);
	unmapped_window_move(u32);
	unmapped_window_move(u16);
	unmapped_window_move(u8);
	return 0;
fault:
	return -EFAULT;
}

static __always_inline int unmapped_window_access(struct page *page, unsigned int off,
						  void *buf, unsigned int len, bool write)
{
	struct unmapped_window_state s;
	void *p;
	int ret;

	if (!unmapped_window_range_ok(off, len))
		return -EINVAL;

	p = unmapped_window_open(&s, page, 1, write ? PAGE_KERNEL : PAGE_KERNEL_RO);
	ret = unmapped_window_copy(p + off, buf, len, write);
	unmapped_window_close(&s, 1);
	WARN_ONCE(ret, "fault in the window\n");

	return ret;
}

int unmapped_page_read(struct page *page, unsigned int off, void *dst,
		       unsigned int len)
{
	return unmapped_window_access(page, off, dst, len, false);
}
NOKPROBE_SYMBOL(unmapped_page_read);
EXPORT_SYMBOL_FOR_KVM(unmapped_page_read);

int unmapped_page_write(struct page *page, unsigned int off, const void *src,
			unsigned int len)
{
	return unmapped_window_access(page, off, (void *)src, len, true);
}
NOKPROBE_SYMBOL(unmapped_page_write);
EXPORT_SYMBOL_FOR_KVM(unmapped_page_write);

#define unmapped_window_cmpxchg(type)					\
({									\
	type __old = *(type *)old, __found;				\
									\
	__found = arch_cmpxchg((type *)(p + off), __old, *(const type *)new); \
	*(type *)old = __found;						\
	__found == __old;						\
})

int unmapped_page_cmpxchg(struct page *page, unsigned int off, void *old,
			  const void *new, unsigned int size)
{
	struct unmapped_window_state s;
	bool done = false;
	void *p;

	if (!unmapped_window_range_ok(off, size))
		return -EINVAL;
	if (!is_power_of_2(size) || size > 8 || !IS_ALIGNED(off, size))
		return -EINVAL;

	p = unmapped_window_open(&s, page, 1, PAGE_KERNEL);
	switch (size) {
	case 1:
		done = unmapped_window_cmpxchg(u8);
		break;
	case 2:
		done = unmapped_window_cmpxchg(u16);
		break;
	case 4:
		done = unmapped_window_cmpxchg(u32);
		break;
	case 8:
		done = unmapped_window_cmpxchg(u64);
		break;
	}
	unmapped_window_close(&s, 1);

	return !done;
}
NOKPROBE_SYMBOL(unmapped_page_cmpxchg);
EXPORT_SYMBOL_FOR_KVM(unmapped_page_cmpxchg);

int unmapped_page_is_zero(struct page *page)
{
	struct unmapped_window_state s;
	const volatile u64 *p;
	unsigned int i;
	u64 seen = 0;

	if (!unmapped_window_range_ok(0, PAGE_SIZE))
		return -EINVAL;

	p = unmapped_window_open(&s, page, 1, PAGE_KERNEL_RO);
	for (i = 0; i < PAGE_SIZE / sizeof(u64) && !seen; i += 4)
		seen = p[i] | p[i + 1] | p[i + 2] | p[i + 3];
	unmapped_window_close(&s, 1);

	return !seen;
}
NOKPROBE_SYMBOL(unmapped_page_is_zero);
EXPORT_SYMBOL_FOR_KVM(unmapped_page_is_zero);

int unmapped_pages_clear(struct page *page, unsigned int nr)
{
	struct unmapped_window_state s;
	unsigned int i;
	void *p;

	if (!unmapped_window_range_ok(0, PAGE_SIZE) ||
	    WARN_ON_ONCE(nr > UNMAPPED_CLEAR_PAGES))
		return -EINVAL;

	p = unmapped_window_open(&s, page, nr, PAGE_KERNEL);
	for (i = 0; i < nr; i++)
		clear_page(p + i * PAGE_SIZE);
	unmapped_window_close(&s, nr);

	return 0;
}
NOKPROBE_SYMBOL(unmapped_pages_clear);
/* The page still has what the guest had in it. */
NOKPROBE_SYMBOL(clear_page);
