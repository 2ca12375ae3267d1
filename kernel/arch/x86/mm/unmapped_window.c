// SPDX-License-Identifier: GPL-2.0
/*
 * Access to pages which are off the direct map: the x86 window.
 *
 * Each possible CPU has an mm of its own for this, with a few pages of address
 * space at a random place in the user half, the page tables for which are
 * allocated up front.  To access a page the CPU disables interrupts, installs
 * the PTE, switches to the mm, copies, clears the PTE, invalidates the
 * translation and switches back.  Only clearing does that for several pages at
 * once, as the switches cost more than a page.
 *
 * What makes this a mapping that nothing else can use:
 *
 *  - The mm is loaded on the one CPU it belongs to, and only with interrupts
 *    disabled; no other CPU ever walks its page tables.
 *  - The PTE is a supervisor PTE without the global bit, so its translation is
 *    tagged with the PCID of the mm.  INVLPG is executed while that PCID is
 *    still the current one: no TLB entry is left behind for the next time the
 *    mm is loaded.  (A bump of the mm's TLB generation, as text_poke() does it,
 *    only has the entry ignored later.)
 *  - Only NMIs and machine checks can interrupt, and tracers have a look at the
 *    functions that switch the mm and flush the TLB (at those here they can't).  Their accesses to
 *    user memory are refused by nmi_uaccess_okay() because the loaded mm is not
 *    the task's; copy_from_kernel_nofault() and the loads of BPF programs do not
 *    accept a user address.
 *
 * With page table isolation the mm has a user page table as every mm has.  It
 * is never loaded, since the CPU does not return to user mode in between.
 */
#include <linux/cache.h>
#include <linux/init.h>
#include <linux/irqflags.h>
#include <linux/kprobes.h>
#include <linux/kvm_types.h>
#include <linux/mm.h>
#include <linux/unmapped_window.h>

#include <asm/asm.h>
#include <asm/cpufeature.h>
#include <asm/mce.h>
#include <asm/mmu_context.h>
#include <asm/pgtable.h>
#include <asm/sections.h>
#include <asm/smap.h>
#include <asm/tlbflush.h>
#include <asm/trapnr.h>

bool arch_unmapped_supported(const char **why)
{
	if (cpu_feature_enabled(X86_FEATURE_XENPV)) {
		*why = "Xen PV guests do not own their page tables";
		return false;
	}
	return true;
}

/*
 * The kernel image has a second alias, the high kernel mapping.  Parts of it
 * are free memory after boot: the init sections, and the padding up to the next
 * 2 MiB which is mapped along with it.
 */
bool arch_unmapped_range_allowed(unsigned long pfn, unsigned long nr)
{
	unsigned long start = ALIGN_DOWN(__pa_symbol(_text), PMD_SIZE) >> PAGE_SHIFT;
	unsigned long end = ALIGN(__pa_symbol(_end), PMD_SIZE) >> PAGE_SHIFT;

	return pfn + nr <= start || pfn >= end;
}

/* Never scheduled, so the CPU leaves its cpumask on its own. */
void arch_unmapped_window_mm(struct mm_struct *mm)
{
	set_notrack_mm(mm);
}

/* A state of the open window, to be carried from open to close. */
struct unmapped_window_state {
	struct unmapped_window	*w;
	struct mm_struct	*prev_mm;
	unsigned long		flags;
};

/* Opens it on @nr consecutive pages. */
static __always_inline void *unmapped_window_open(struct unmapped_window_state *s,
						  struct page *page, unsigned int nr,
						  pgprot_t prot)
{
	struct unmapped_window *w;
	unsigned int i;

	local_irq_save(s->flags);
	w = this_cpu_ptr(&unmapped_windows);
	s->w = w;

	/* Not global: see the INVLPG in unmapped_window_close(). */
	prot = __pgprot(pgprot_val(prot) & ~_PAGE_GLOBAL);
	for (i = 0; i < nr; i++) {
		VM_WARN_ON_ONCE(!pte_none(w->ptep[i]));
		set_pte(&w->ptep[i], pfn_pte(page_to_pfn(page) + i, prot));
	}

	/*
	 * Loading CR3 is serializing: the PTE is visible to the page walker
	 * before the first access.
	 */
	s->prev_mm = use_temporary_mm(w->mm);
	barrier();

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
		pte_clear(w->mm, w->addr + i * PAGE_SIZE, &w->ptep[i]);
	/*
	 * ... and the translation is gone before interrupts are enabled, both
	 * from the current PCID and from its user counterpart.
	 */
	for (i = 0; i < nr; i++)
		flush_tlb_one_user(w->addr + i * PAGE_SIZE);

	unuse_temporary_mm(s->prev_mm);
	local_irq_restore(s->flags);
}

/*
 * Copy with LASS out of the way, in the kernel's own instructions: no function
 * may be called with AC set, and no instrumentation may look at the address.
 * A machine check (or a fault, which only a caller's bug can cause) ends the
 * copy.  An aligned operand of up to eight bytes is accessed at once, which is
 * what the guest's page tables need.  More is copied by a string instruction if
 * @strings, which the caller has from copy_mc_is_fragile(): there are CPUs on which
 * these make a machine check fatal.
 *
 * Return: 0, or the number of the exception, which EX_TYPE_FAULT_MCE_SAFE
 * leaves in RAX.  (A divide error, number 0, can't happen here.)
 */
#define unmapped_window_mov(insn, reg, type)				\
({									\
	unsigned long __trapnr;						\
									\
	asm volatile("1: " insn " (%[src]), %%" reg "\n"		\
		     "2: " insn " %%" reg ", (%[dst])\n"		\
		     "	xorl %%eax, %%eax\n"				\
		     "3:\n"						\
		     _ASM_EXTABLE_TYPE(1b, 3b, EX_TYPE_FAULT_MCE_SAFE)	\
		     _ASM_EXTABLE_TYPE(2b, 3b, EX_TYPE_FAULT_MCE_SAFE)	\
		     : "=&a" (__trapnr)					\
		     : [src] "r" (src), [dst] "r" (dst)			\
		     : "memory", "cc");					\
	src += sizeof(type);						\
	dst += sizeof(type);						\
	len -= sizeof(type);						\
	__trapnr;							\
})

static __always_inline unsigned long unmapped_window_copy(void *dst, const void *src,
							  unsigned int len, bool strings)
{
	unsigned long trapnr = 0;

	lass_stac();
	if (strings && len >= 64) {
		unsigned long n = len / 8;

		asm volatile("1: rep movsq\n"
			     "	xorl %%eax, %%eax\n"
			     "2:\n"
			     _ASM_EXTABLE_TYPE(1b, 2b, EX_TYPE_FAULT_MCE_SAFE)
			     : "=&a" (trapnr), "+S" (src), "+D" (dst), "+c" (n)
			     : : "memory", "cc");
		len %= 8;
	}
	while (!trapnr && len >= 8)
		trapnr = unmapped_window_mov("movq", "rax", u64);
	if (!trapnr && len >= 4)
		trapnr = unmapped_window_mov("movl", "eax", u32);
	if (!trapnr && len >= 2)
		trapnr = unmapped_window_mov("movw", "ax", u16);
	if (!trapnr && len)
		trapnr = unmapped_window_mov("movb", "al", u8);
	lass_clac();

	return trapnr;
}

/* What an exception in the window means.  Only a machine check is the page's fault. */
static int unmapped_window_error(unsigned long trapnr)
{
	if (likely(!trapnr))
		return 0;
	if (trapnr == X86_TRAP_MC)
		return -EHWPOISON;

	WARN_ONCE(1, "exception %lu in the window\n", trapnr);
	return -EFAULT;
}

static __always_inline int unmapped_window_access(struct page *page, unsigned int off,
						 void *buf, unsigned int len,
						 bool write)
{
	bool strings = !copy_mc_is_fragile();
	struct unmapped_window_state s;
	unsigned long trapnr;
	void *p;

	if (!unmapped_window_range_ok(off, len))
		return -EINVAL;

	p = unmapped_window_open(&s, page, 1, write ? PAGE_KERNEL : PAGE_KERNEL_RO);
	if (write)
		trapnr = unmapped_window_copy(p + off, buf, len, strings);
	else
		trapnr = unmapped_window_copy(buf, p + off, len, strings);
	unmapped_window_close(&s, 1);

	return unmapped_window_error(trapnr);
}

/* The kernel survives a memory error in @page, but nobody else is told. */
static int unmapped_window_report(struct page *page, int ret)
{
	if (ret == -EHWPOISON)
		memory_failure_queue(page_to_pfn(page), 0);
	return ret;
}

int unmapped_page_read(struct page *page, unsigned int off, void *dst,
		       unsigned int len)
{
	return unmapped_window_report(page, unmapped_window_access(page, off, dst, len,
								   false));
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

#define unmapped_window_cmpxchg(insn, reg, type)			\
({									\
	type __old = *(type *)old, __new = *(const type *)new;		\
	unsigned long __rax = __old;					\
									\
	asm volatile(							\
		     "1: lock " insn " %" reg "[new], (%[ptr])\n"	\
		     "	sete %[ok]\n"					\
		     "	xorl %[failed], %[failed]\n"			\
		     "2:\n"						\
		     _ASM_EXTABLE_TYPE(1b, 2b, EX_TYPE_FAULT_MCE_SAFE)	\
		     : "+&a" (__rax), [ok] "+&q" (ok), [failed] "+&r" (failed) \
		     : [ptr] "r" (ptr), [new] "q" (__new)		\
		     : "memory", "cc");					\
	if (failed)							\
		*trapnr = __rax;					\
	else								\
		*(type *)old = __rax;					\
})

/* Return: whether it was exchanged; *@trapnr is 0, or the number of an exception. */
static __always_inline bool unmapped_window_do_cmpxchg(void *ptr, void *old,
						       const void *new,
						       unsigned int size,
						       unsigned long *trapnr)
{
	int failed = 1;
	u8 ok = 0;

	*trapnr = 0;
	lass_stac();
	switch (size) {
	case 1:
		unmapped_window_cmpxchg("cmpxchgb", "b", u8);
		break;
	case 2:
		unmapped_window_cmpxchg("cmpxchgw", "w", u16);
		break;
	case 4:
		unmapped_window_cmpxchg("cmpxchgl", "k", u32);
		break;
	case 8:
		unmapped_window_cmpxchg("cmpxchgq", "q", u64);
		break;
	}
	lass_clac();

	return ok;
}

int unmapped_page_cmpxchg(struct page *page, unsigned int off, void *old,
			  const void *new, unsigned int size)
{
	struct unmapped_window_state s;
	unsigned long trapnr;
	bool done;
	void *p;

	if (!unmapped_window_range_ok(off, size))
		return -EINVAL;
	if (!is_power_of_2(size) || size > 8)
		return -EINVAL;
	/* A split lock in the kernel would be the end of it. */
	if (boot_cpu_has(X86_FEATURE_SPLIT_LOCK_DETECT) &&
	    ((off ^ (off + size - 1)) & ~(cache_line_size() - 1)))
		return -EINVAL;

	p = unmapped_window_open(&s, page, 1, PAGE_KERNEL);
	done = unmapped_window_do_cmpxchg(p + off, old, new, size, &trapnr);
	unmapped_window_close(&s, 1);
	if (trapnr)
		return unmapped_window_report(page, unmapped_window_error(trapnr));

	return !done;
}
NOKPROBE_SYMBOL(unmapped_page_cmpxchg);
EXPORT_SYMBOL_FOR_KVM(unmapped_page_cmpxchg);

/* As unmapped_window_copy().  Return: whether there are only zeroes. */
static __always_inline bool unmapped_window_is_zero(const void *p, unsigned long *trapnr)
{
	unsigned long n = PAGE_SIZE / 64, seen;

	lass_stac();
	asm volatile("1: movq    (%[p]), %[seen]\n"
		     "2: orq   8(%[p]), %[seen]\n"
		     "3: orq  16(%[p]), %[seen]\n"
		     "4: orq  24(%[p]), %[seen]\n"
		     "5: orq  32(%[p]), %[seen]\n"
		     "6: orq  40(%[p]), %[seen]\n"
		     "7: orq  48(%[p]), %[seen]\n"
		     "8: orq  56(%[p]), %[seen]\n"
		     "	jnz 9f\n"
		     "	addq $64, %[p]\n"
		     "	decq %[n]\n"
		     "	jnz 1b\n"
		     "9:	xorl %%eax, %%eax\n"
		     "10:\n"
		     _ASM_EXTABLE_TYPE(1b, 10b, EX_TYPE_FAULT_MCE_SAFE)
		     _ASM_EXTABLE_TYPE(2b, 10b, EX_TYPE_FAULT_MCE_SAFE)
		     _ASM_EXTABLE_TYPE(3b, 10b, EX_TYPE_FAULT_MCE_SAFE)
		     _ASM_EXTABLE_TYPE(4b, 10b, EX_TYPE_FAULT_MCE_SAFE)
		     _ASM_EXTABLE_TYPE(5b, 10b, EX_TYPE_FAULT_MCE_SAFE)
		     _ASM_EXTABLE_TYPE(6b, 10b, EX_TYPE_FAULT_MCE_SAFE)
		     _ASM_EXTABLE_TYPE(7b, 10b, EX_TYPE_FAULT_MCE_SAFE)
		     _ASM_EXTABLE_TYPE(8b, 10b, EX_TYPE_FAULT_MCE_SAFE)
		     : "=&a" (*trapnr), [p] "+&r" (p), [n] "+&r" (n), [seen] "=&r" (seen)
		     : : "memory", "cc");
	lass_clac();

	return !n;
}

int unmapped_page_is_zero(struct page *page)
{
	struct unmapped_window_state s;
	unsigned long trapnr;
	bool zero;
	void *p;

	if (!unmapped_window_range_ok(0, PAGE_SIZE))
		return -EINVAL;

	p = unmapped_window_open(&s, page, 1, PAGE_KERNEL_RO);
	zero = unmapped_window_is_zero(p, &trapnr);
	unmapped_window_close(&s, 1);
	if (trapnr)
		return unmapped_window_report(page, unmapped_window_error(trapnr));

	return zero;
}
NOKPROBE_SYMBOL(unmapped_page_is_zero);
EXPORT_SYMBOL_FOR_KVM(unmapped_page_is_zero);

int unmapped_pages_clear(struct page *page, unsigned int nr)
{
	struct unmapped_window_state s;
	unsigned long n = nr * (PAGE_SIZE / 8);
	void *p;

	if (!unmapped_window_range_ok(0, PAGE_SIZE) ||
	    WARN_ON_ONCE(nr > UNMAPPED_CLEAR_PAGES))
		return -EINVAL;

	p = unmapped_window_open(&s, page, nr, PAGE_KERNEL);
	lass_stac();
	asm volatile("rep stosq" : "+D" (p), "+c" (n) : "a" (0) : "memory");
	lass_clac();
	unmapped_window_close(&s, nr);

	return 0;
}
NOKPROBE_SYMBOL(unmapped_pages_clear);
