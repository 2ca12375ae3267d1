// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM protected memory: which pages of a guest_memfd are private to the guest,
 * where their contents are, and what may change that.
 *
 * A page is either shared, then its contents are a folio in the page cache
 * like those of any mmap-able guest_memfd, or private, then they are a page of
 * an unmapped pool (mm/unmapped_pool.c), which has no kernel alias, no user
 * mapping and no pin.  A conversion copies from the one to the other; a page
 * without contents is empty in either state and converting it moves nothing.
 *
 * Memory that is hidden from the kernel alone (KVM_PROTMEM_HIDE_ONLY) has no
 * states: all of it are pages of the pool, and userspace maps them by special
 * page table entries, which nothing but a fault makes and GUP refuses.
 *
 * With the latch closed userspace may not take a private page from the guest:
 * every way to do so asks protmem_may_drop().
 *
 * Lock order, from the outside in:
 *
 *	mf_mutex			memory_failure()
 *	  pool->ops_lock (read)		around protmem_memory_failure()
 *	    invalidate_lock
 *	  invalidate_lock		kvm_gmem_error_folio(), which lets go of
 *					the folio lock for it
 *
 *	kvm->lock
 *	  vcpu->mutex			all of them: kvm_protmem_reset()
 *	    kvm->slots_lock
 *	      xen_lock			x86: kvm_arch_protmem_enable()
 *	      kvm->srcu			(read)
 *	        mmap_lock		a fault of userspace's
 *	          invalidate_lock	of the inode
 *	            fill_lock		of a block of the inode
 *	              pool->grow_lock	see mm/unmapped_pool.c
 *	                pool->lock
 *	            folio lock, then i_mmap_rwsem
 *	            kvm->mmu_lock
 *	            acct_lock		kvm_protmem_inode; innermost
 *
 * Pages are also allocated and given back without the invalidate_lock.  The
 * locks of the maple trees are the invalidate_lock.
 *
 * Faults from both sides take the invalidate_lock shared and look at the state
 * under it; conversions hold it exclusive from before the second-stage zap
 * until the new contents are in place.  Neither user memory nor SRCU is waited
 * for under it.
 *
 * See Documentation/virt/kvm/protected-memory.rst.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/file.h>
#include <linux/kvm_host.h>
#include <linux/pagemap.h>
#include <linux/sched/signal.h>
#include <linux/unmapped_pool.h>

#include <trace/events/kvm.h>

#include "protected_memory.h"

/* The populated pages that are converted under one hold of the lock. */
#define PROTMEM_BATCH		16

/*
 * What is dropped under one hold of the lock, in pages of address space; only
 * populated pages cost anything.
 */
#define PROTMEM_DROP_SPAN	(SZ_64M >> PAGE_SHIFT)

/* kvm_protmem_inode.gfns holds gfn - index, biased to make it positive. */
#define PROTMEM_GFN_BIAS	(1UL << (BITS_PER_LONG - 3))

/* A guest_memfd without these is not what KVM and userspace both map. */
#define PROTMEM_GMEM_FLAGS	(GUEST_MEMFD_FLAG_MMAP | \
				 GUEST_MEMFD_FLAG_INIT_SHARED)

/* The gfns for which the pool can set a block aside. */
#define PROTMEM_BLOCK_PAGES	((pgoff_t)UNMAPPED_BLOCK_PAGES)

/* A block is left in small entries so many jiffies after pages of it were shared. */
#define PROTMEM_SWING		(HZ / 4)

static bool protmem_all_private(struct kvm_protmem_inode *pi, pgoff_t first,
				pgoff_t last)
{
	MA_STATE(mas, &pi->state, first, first);

	/* Neighbouring private ranges are always merged. */
	return mas_walk(&mas) && mas.last >= last;
}

/* The first private index in [@start, @end), or @end. */
static pgoff_t protmem_find_private(struct kvm_protmem_inode *pi,
				    pgoff_t start, pgoff_t end)
{
	MA_STATE(mas, &pi->state, start, start);

	if (start >= end || !mas_find(&mas, end - 1))
		return end;

	return max(start, mas.index);
}

/*
 * The rule of the latch: once the guest has made a page private, userspace may
 * not drop or replace the contents of private pages, nor share them.  Returns 0,
 * or -EPERM with *@first moved to the first page of [@start, @end) that it is
 * not to have.  The guest can close the latch, and make pages private, as soon
 * as the caller gives up the invalidate_lock.
 */
static int protmem_may_drop(struct kvm_protmem_inode *pi, pgoff_t start,
			    pgoff_t end, pgoff_t *first)
{
	pgoff_t private;

	lockdep_assert_held(&pi->inode->i_mapping->invalidate_lock);

	if (!READ_ONCE(pi->kvm->protmem.latched))
		return 0;

	private = protmem_find_private(pi, start, end);
	if (private >= end)
		return 0;

	*first = private;
	return -EPERM;
}

/* The end of the run of pages in the same state as @start, at most @end. */
static pgoff_t protmem_run_end(struct kvm_protmem_inode *pi, pgoff_t start,
			       pgoff_t end, bool *private)
{
	MA_STATE(mas, &pi->state, start, start);

	*private = mas_walk(&mas);
	if (!*private)
		return protmem_find_private(pi, start, end);

	return min(end, mas.last + 1);
}

/* The gfn that @index is bound to for good, or ~0ULL if it never was bound. */
static gfn_t protmem_gfn(struct kvm_protmem_inode *pi, pgoff_t index)
{
	MA_STATE(mas, &pi->gfns, index, index);
	void *entry = mas_walk(&mas);

	return entry ? index + xa_to_value(entry) - PROTMEM_GFN_BIAS : ~0ULL;
}

/*
 * Can a block be dedicated to the range of gfns around that of @index?
 * Only if all of its gfns are bound to one range of this inode, and are
 * private, or about to become so, being in [@start, @end).  Nothing in this
 * depends on an offset which userspace chose: the block is laid out by gfn.
 *
 * Never for slots without KVM_MEM_UNMAP_DIRECT, the gfns of which are not
 * recorded: __kvm_gmem_invalidate_start() relies on it.
 */
static bool protmem_block_uniform(struct kvm_protmem_inode *pi, pgoff_t index,
				  gfn_t gfn, pgoff_t start, pgoff_t end)
{
	MA_STATE(mas, &pi->gfns, index, index);
	pgoff_t off = gfn & (PROTMEM_BLOCK_PAGES - 1);
	pgoff_t first = index - off;
	pgoff_t last = first + PROTMEM_BLOCK_PAGES - 1;

	if (index < off || !mas_walk(&mas) || mas.index > first || mas.last < last)
		return false;
	if (pi->hidden)
		return true;

	if (first < start && !protmem_all_private(pi, first, min(last, start - 1)))
		return false;

	return last < end || protmem_all_private(pi, max(first, end), last);
}

/* Brings kvm->stat in line with the pool after this inode has changed it. */
static void protmem_account_blocks(struct kvm_protmem_inode *pi)
{
	struct kvm *kvm = pi->kvm;
	u64 bytes;

	if (!kvm)
		return;

	guard(spinlock)(&pi->acct_lock);
	bytes = unmapped_pool_bytes(pi->pool);
	atomic64_add(bytes - pi->acct_bytes,
		     &kvm->stat.generic.protmem_block_bytes);
	pi->acct_bytes = bytes;
}

static void protmem_account_pool(struct kvm_protmem_inode *pi, long nr)
{
	atomic_long_add(nr, &pi->nr_pool);
	if (pi->kvm)
		atomic64_add(nr * (long)PAGE_SIZE,
			     &pi->kvm->stat.generic.protmem_private_bytes);
}

static void protmem_account_shared(struct kvm_protmem_inode *pi, long nr)
{
	if (pi->kvm)
		atomic64_add(nr * (long)PAGE_SIZE,
			     &pi->kvm->stat.generic.protmem_shared_bytes);
}

/*
 * Removes all shared folios of [@start, @end).  The caller holds the
 * invalidate_lock exclusive, so that no folio can be added meanwhile, and all
 * of them are accounted for: protmem_shared_folio() does that under the
 * shared lock.
 */
static void protmem_drop_shared(struct kvm_protmem_inode *pi, pgoff_t start,
				pgoff_t end)
{
	struct address_space *mapping = pi->inode->i_mapping;
	unsigned long nr = mapping->nrpages;

	lockdep_assert_held_write(&mapping->invalidate_lock);

	truncate_inode_pages_range(mapping, (loff_t)start << PAGE_SHIFT,
				   ((loff_t)end << PAGE_SHIFT) - 1);
	protmem_account_shared(pi, (long)mapping->nrpages - (long)nr);
}

/*
 * Gives the pool's pages in [@start, @end) back to it, which scrubs them.  The
 * second stage is zapped, and either the invalidate_lock is held exclusive or
 * nobody else can reach the inode any more.
 */
static void protmem_drop_pool(struct kvm_protmem_inode *pi, pgoff_t start,
			      pgoff_t end)
{
	struct page *page, *run = NULL;
	unsigned int len = 0;
	unsigned long index;
	long nr = 0;

	if (start >= end)
		return;

	/* These entries hold no reference. */
	if (pi->hidden)
		unmap_mapping_pages(pi->inode->i_mapping, start, end - start,
				    false);

	xa_for_each_range(&pi->pages, index, page, start, end - 1) {
		xa_erase(&pi->pages, index);
		nr++;
		if (len && (page != run + len || len == PROTMEM_BLOCK_PAGES)) {
			unmapped_pool_free_range(pi->pool, run, len);
			len = 0;
		}
		if (!len)
			run = page;
		len++;
		cond_resched();
	}
	if (len)
		unmapped_pool_free_range(pi->pool, run, len);

	protmem_account_pool(pi, -nr);
	protmem_account_blocks(pi);
}

/*
 * Records [@start, @end) as @private.  On error (-ENOMEM) nothing is changed.
 * Ranges that are next to each other are merged, which bounds the tree by the
 * number of runs and makes protmem_all_private() one look-up.
 */
static int protmem_store_state(struct kvm_protmem_inode *pi, pgoff_t start,
			       pgoff_t end, bool private)
{
	MA_STATE(mas, &pi->state, start, start);
	pgoff_t first = start, last = end - 1;

	lockdep_assert_held_write(&pi->inode->i_mapping->invalidate_lock);

	if (private) {
		if (start) {
			mas_set(&mas, start - 1);
			if (mas_walk(&mas))
				first = mas.index;
		}
		if (end) {
			mas_set(&mas, end);
			if (mas_walk(&mas))
				last = mas.last;
		}
	}

	mas_set_range(&mas, first, last);
	return mas_store_gfp(&mas, private ? xa_mk_value(1) : NULL,
			     GFP_KERNEL_ACCOUNT);
}

/*
 * A new page of the pool for @index, without contents.  May be called with or
 * without the invalidate_lock; @uniform, from protmem_block_uniform(), is a
 * hint.
 */
static struct page *protmem_alloc_page(struct kvm_protmem_inode *pi,
				       pgoff_t index, gfn_t gfn, bool uniform)
{
	struct mempolicy *policy;
	struct page *page;

	policy = mpol_shared_policy_lookup(&GMEM_I(pi->inode)->policy, index);
	page = unmapped_pool_alloc(pi->pool, gfn, index, uniform, policy, index,
				   GFP_KERNEL_ACCOUNT);
	mpol_cond_put(policy);

	return page;
}

/*
 * Makes @page and those after it the pages of @first and those after it, as far as
 * @taken has them and there is none yet.  What it has done is no longer in @taken.
 * Returns how many.
 */
static long protmem_store_pages(struct kvm_protmem_inode *pi, pgoff_t first,
				struct page *page, unsigned long *taken)
{
	unsigned int i = find_first_bit(taken, UNMAPPED_BLOCK_PAGES), last;
	XA_STATE(xas, &pi->pages, first + i);
	long nr = 0;

	do {
		last = i - 2;	/* not the one before */
		xas_lock(&xas);
		while (i < UNMAPPED_BLOCK_PAGES) {
			void *old;

			/* xas_next() is for the same node only. */
			if (i != last + 1 || !((first + i) % XA_CHUNK_SIZE)) {
				xas_set(&xas, first + i);
				old = xas_load(&xas);
			} else {
				old = xas_next(&xas);
			}
			if (!old) {
				xas_store(&xas, page + i);
				if (xas_error(&xas))
					break;
				__clear_bit(i, taken);
				nr++;
			}
			last = i;
			i = find_next_bit(taken, UNMAPPED_BLOCK_PAGES, i + 1);
		}
		xas_unlock(&xas);
	} while (xas_nomem(&xas, GFP_KERNEL_ACCOUNT));

	return nr;
}

/*
 * Populates all of the block around @index, which is uniform, as far as it has a
 * home block: complete it can be mapped by one entry.  What the guest does not
 * touch of it can't be lent to other gfns any more.  The caller holds the
 * invalidate_lock, so that the block stays uniform.  On an error some of it, or
 * nothing, is populated.
 */
static void protmem_fill_block(struct kvm_protmem_inode *pi, pgoff_t index,
			       gfn_t gfn)
{
	pgoff_t first = index - (gfn & (PROTMEM_BLOCK_PAGES - 1));
	DECLARE_BITMAP(taken, UNMAPPED_BLOCK_PAGES);
	struct mempolicy *policy;
	unsigned long at;
	struct page *page;
	unsigned int i;
	long nr;

	gfn = ALIGN_DOWN(gfn, PROTMEM_BLOCK_PAGES);

	/* Two vCPUs that fault at once: the second finds what the first did. */
	guard(mutex)(&pi->fill_lock[(gfn >> UNMAPPED_BLOCK_ORDER) %
				    ARRAY_SIZE(pi->fill_lock)]);
	if (xa_load(&pi->pages, index))
		return;

	bitmap_fill(taken, UNMAPPED_BLOCK_PAGES);
	xa_for_each_range(&pi->pages, at, page, first, first + PROTMEM_BLOCK_PAGES - 1)
		__clear_bit(at - first, taken);

	policy = mpol_shared_policy_lookup(&GMEM_I(pi->inode)->policy, first);
	page = unmapped_pool_alloc_home(pi->pool, gfn, first, policy, first,
					GFP_KERNEL_ACCOUNT, taken);
	mpol_cond_put(policy);

	nr = protmem_store_pages(pi, first, page, taken);
	/* Out of memory, or one who got a single page was faster. */
	for_each_set_bit(i, taken, UNMAPPED_BLOCK_PAGES)
		unmapped_pool_free_clean(pi->pool, page + i);

	protmem_account_pool(pi, nr);
}

/*
 * Can the block around @index, with @page for @gfn there, be mapped by one entry?
 * Yes if all of its pages are what this inode has for its gfns, one after the
 * other, whatever the pool thinks of them, and are sound.
 *
 * The caller holds the invalidate_lock, and by the time that it makes the entry
 * has seen that nothing was invalidated since: kvm_gmem_invalidate_start() has the
 * whole block in its range if it changes a page of it.
 */
static unsigned int protmem_max_order(struct kvm_protmem_inode *pi, pgoff_t index,
				      gfn_t gfn, struct page *page)
{
	pgoff_t off = gfn & (PROTMEM_BLOCK_PAGES - 1), i;
	XA_STATE(xas, &pi->pages, index - off);
	void *shared_at;

	if ((page_to_pfn(page) & (PROTMEM_BLOCK_PAGES - 1)) != off ||
	    !protmem_block_uniform(pi, index, gfn, index, index + 1))
		return 0;

	shared_at = xa_load(&pi->shared_at, gfn >> UNMAPPED_BLOCK_ORDER);
	if (shared_at) {
		if ((u32)jiffies - (u32)xa_to_value(shared_at) < PROTMEM_SWING)
			return 0;
		xa_erase(&pi->shared_at, gfn >> UNMAPPED_BLOCK_ORDER);
	}

	page -= off;

	guard(rcu)();
	for (i = 0; i < PROTMEM_BLOCK_PAGES; i++) {
		struct page *found;

		do {
			found = i ? xas_next(&xas) : xas_load(&xas);
		} while (xas_retry(&xas, found));
		if (found != page + i || PageHWPoison(found))
			return 0;
	}

	return UNMAPPED_BLOCK_ORDER;
}

/**
 * kvm_protmem_pool_page - the page with the contents of a private or hidden index
 * @pi: the inode.
 * @index: an index for which kvm_protmem_in_pool() is true.
 *
 * An empty page gets its backing now.  The page stays for as long as the
 * caller holds the invalidate_lock, shared or exclusive; afterwards only a
 * second-stage mapping may be made of it, and only if mmu_invalidate_seq says
 * that nothing has changed.  May sleep.
 *
 * Return: the page, or an ERR_PTR: -ENOMEM, or -EHWPOISON if it is broken.
 */
struct page *kvm_protmem_pool_page(struct kvm_protmem_inode *pi,
				   pgoff_t index)
{
	struct page *page, *other;
	gfn_t gfn;

	lockdep_assert_held(&pi->inode->i_mapping->invalidate_lock);

	page = xa_load(&pi->pages, index);
	if (page)
		goto found;

	gfn = protmem_gfn(pi, index);
	if (protmem_block_uniform(pi, index, gfn, index, index + 1)) {
		protmem_fill_block(pi, index, gfn);
		page = xa_load(&pi->pages, index);
		if (page)
			goto filled;
	}
	/* No home, or not with this page in it: then any page will do. */
	page = protmem_alloc_page(pi, index, gfn, false);
	if (IS_ERR(page))
		return page;

	/* Only other faults, which hold the lock shared too, can be faster. */
	other = xa_cmpxchg(&pi->pages, index, NULL, page, GFP_KERNEL_ACCOUNT);
	if (other)
		unmapped_pool_free_clean(pi->pool, page);
	else
		protmem_account_pool(pi, 1);
	page = xa_is_err(other) ? ERR_PTR(xa_err(other)) : other ?: page;
filled:
	protmem_account_blocks(pi);
	if (IS_ERR(page))
		return page;
found:
	return PageHWPoison(page) ? ERR_PTR(-EHWPOISON) : page;
}

/**
 * kvm_protmem_shared_folio - the folio with the contents of a shared index
 * @pi: the inode.
 * @index: a shared index.
 *
 * The caller holds the invalidate_lock.  May sleep.
 *
 * Return: the folio, locked, referenced and up to date, or an ERR_PTR.
 */
struct folio *kvm_protmem_shared_folio(struct kvm_protmem_inode *pi,
				       pgoff_t index)
{
	struct folio *folio;

	lockdep_assert_held(&pi->inode->i_mapping->invalidate_lock);

	folio = kvm_gmem_get_folio(pi->inode, index);
	if (IS_ERR(folio))
		return folio;

	if (folio_test_hwpoison(folio)) {
		folio_unlock(folio);
		folio_put(folio);
		return ERR_PTR(-EHWPOISON);
	}

	if (!folio_test_uptodate(folio)) {
		clear_highpage(folio_page(folio, 0));
		folio_mark_uptodate(folio);
		/* Soft offlining drops what is clean, and asks nobody. */
		folio_mark_dirty(folio);
		protmem_account_shared(pi, 1);
	}

	return folio;
}

/**
 * kvm_protmem_get_pfn - resolve a second-stage fault
 * @file: the guest_memfd that backs @slot, referenced by the caller.
 * @slot: the slot that contains @gfn.
 * @gfn: what the guest accessed.
 * @pfn: the result.
 * @page: set to the page if a reference to it was taken, else to NULL: a
 *	page of the pool needs none, as it can't go away without an invalidation
 *	that the caller will notice.
 * @max_order: set to the order of the naturally aligned range around @gfn that
 *	has pfns as consecutive as its gfns, and may be mapped by one entry.
 *
 * The caller holds kvm->srcu.  May sleep.
 *
 * Return: 0; -EFAULT or -EIO if @file no longer backs @slot; -ENOMEM;
 * -EHWPOISON.
 */
int kvm_protmem_get_pfn(struct file *file, struct kvm_memory_slot *slot,
			gfn_t gfn, kvm_pfn_t *pfn, struct page **page,
			int *max_order)
{
	struct inode *inode = file_inode(file);
	struct kvm_protmem_inode *pi = kvm_protmem(inode);
	pgoff_t index = kvm_gmem_get_index(slot, gfn);
	struct gmem_file *f = file->private_data;
	struct folio *folio;

	*page = NULL;
	*max_order = 0;

	guard(rwsem_read)(&inode->i_mapping->invalidate_lock);

	if (file != READ_ONCE(slot->gmem.file))
		return -EFAULT;
	if (xa_load(&f->bindings, index) != slot)
		return -EIO;

	if (kvm_protmem_in_pool(pi, index)) {
		struct page *unmapped = kvm_protmem_pool_page(pi, index);

		if (IS_ERR(unmapped))
			return PTR_ERR(unmapped);

		*pfn = page_to_pfn(unmapped);
		*max_order = protmem_max_order(pi, index, gfn, unmapped);
		return 0;
	}

	folio = kvm_protmem_shared_folio(pi, index);
	if (IS_ERR(folio))
		return PTR_ERR(folio);

	folio_unlock(folio);
	*page = folio_file_page(folio, index);
	*pfn = page_to_pfn(*page);
	return 0;
}

/*
 * Where hidden memory may be mapped, now or once a slot says that it is hidden.
 * The caller holds the mmap_lock for writing.  VM_MIXEDMAP and not VM_PFNMAP:
 * KVM and VFIO would take what is mapped there for device memory, and map it
 * into the kernel or for a device.
 */
void kvm_protmem_mmap(struct inode *inode, struct vm_area_struct *vma)
{
	struct kvm_protmem_inode *pi = kvm_protmem(inode);

	if (pi && pi->may_hide)
		vm_flags_set(vma, VM_MIXEDMAP);
}

/* The caller holds the invalidate_lock until the entry has been made. */
static vm_fault_t protmem_fault_hidden(struct kvm_protmem_inode *pi,
				       struct vm_fault *vmf)
{
	struct page *page = kvm_protmem_pool_page(pi, vmf->pgoff);

	if (IS_ERR(page))
		return PTR_ERR(page) == -EHWPOISON ?
		       VM_FAULT_HWPOISON : vmf_error(PTR_ERR(page));

	return vmf_insert_mixed(vmf->vma, vmf->address, page_to_pfn(page));
}

/**
 * kvm_protmem_fault_user_mapping - resolve a fault in userspace's mapping
 * @vmf: the fault, below the end of the file.
 *
 * The folio is returned locked.  A conversion to private that waits for the
 * invalidate_lock will wait for the folio lock as well before it zaps the user
 * page tables, and so catches the entry that the caller is going to make.
 *
 * Return: VM_FAULT_LOCKED with @vmf->page; VM_FAULT_NOPAGE if the entry is made;
 * VM_FAULT_SIGBUS for a private page; VM_FAULT_HWPOISON; VM_FAULT_OOM.
 */
vm_fault_t kvm_protmem_fault_user_mapping(struct vm_fault *vmf)
{
	struct inode *inode = file_inode(vmf->vma->vm_file);
	struct kvm_protmem_inode *pi = kvm_protmem(inode);
	struct folio *folio;

	guard(rwsem_read)(&inode->i_mapping->invalidate_lock);

	if (pi->hidden)
		return protmem_fault_hidden(pi, vmf);

	if (kvm_protmem_in_pool(pi, vmf->pgoff)) {
		/* The VMA holds the file, and the file the VM. */
		atomic64_inc(&pi->kvm->stat.generic.protmem_refused);
		trace_kvm_protmem_refused(protmem_gfn(pi, vmf->pgoff));
		return VM_FAULT_SIGBUS;
	}

	folio = kvm_protmem_shared_folio(pi, vmf->pgoff);
	if (IS_ERR(folio)) {
		if (PTR_ERR(folio) == -EHWPOISON)
			return VM_FAULT_HWPOISON;
		return vmf_error(PTR_ERR(folio));
	}

	vmf->page = folio_file_page(folio, vmf->pgoff);
	return VM_FAULT_LOCKED;
}

/* A batch of populated pages on their way from one state to the other. */
struct protmem_batch {
	unsigned int nr;
	pgoff_t index[PROTMEM_BATCH];
	struct page *page[PROTMEM_BATCH];
	struct folio *folio[PROTMEM_BATCH];
};

/*
 * Collects the shared folios of [@start, *@end), without a reference, and
 * moves *@end to where the batch is full.
 */
static void protmem_collect_shared(struct kvm_protmem_inode *pi,
				   struct protmem_batch *b, pgoff_t start,
				   pgoff_t *end)
{
	XA_STATE(xas, &pi->inode->i_mapping->i_pages, start);
	struct folio *folio;

	b->nr = 0;
	guard(rcu)();
	xas_for_each(&xas, folio, *end - 1) {
		if (xas_retry(&xas, folio) || xa_is_value(folio))
			continue;
		if (b->nr == PROTMEM_BATCH) {
			*end = b->index[b->nr - 1] + 1;
			break;
		}
		b->index[b->nr++] = xas.xa_index;
	}
}

/* The same for the private pages. */
static void protmem_collect_pool(struct kvm_protmem_inode *pi,
				 struct protmem_batch *b, pgoff_t start,
				 pgoff_t *end)
{
	struct page *page;
	unsigned long index;

	b->nr = 0;
	xa_for_each_range(&pi->pages, index, page, start, *end - 1) {
		if (b->nr == PROTMEM_BATCH) {
			*end = b->index[b->nr - 1] + 1;
			break;
		}
		b->index[b->nr++] = index;
	}
}

/*
 * What was collected and allocated for without the exclusive lock is a guess.
 * Returns how far it still holds: the end of the prefix of [@start, @end) in
 * which every populated page has something allocated, or @start.
 */
static pgoff_t protmem_recheck(const struct protmem_batch *guess,
			       const struct protmem_batch *now, pgoff_t start,
			       pgoff_t end)
{
	unsigned int i, j = 0;

	for (i = 0; i < now->nr; i++) {
		while (j < guess->nr && guess->index[j] < now->index[i])
			j++;
		if (j == guess->nr || guess->index[j] != now->index[i])
			return max(start, now->index[i]);
	}

	return end;
}

/*
 * Begins a conversion of [@start, *@end) for which @guess has what was allocated.
 * The caller has the invalidate_lock exclusive by now.  Collects in @now what is
 * populated, moves *@end to where that can be converted, and zaps it in the
 * second stage, if there is any; the caller calls kvm_gmem_invalidate_end().
 *
 * Returns 0, with nothing done and *@end at @start if the state has changed; 1
 * if [@start, *@end) is already as wanted; or -EAGAIN or -EPERM.
 */
static int protmem_begin(struct kvm_protmem_inode *pi,
			 struct kvm_memory_slot *slot, bool make_private,
			 const struct protmem_batch *guess,
			 struct protmem_batch *now, pgoff_t start, pgoff_t *end)
{
	bool private;
	int r;

	if (slot && slot->gmem.leaving)
		return -EAGAIN;

	*end = protmem_run_end(pi, start, *end, &private);
	if (private == make_private)
		return 1;

	if (make_private) {
		protmem_collect_shared(pi, now, start, end);
	} else {
		/* With the latch closed only the guest may do that. */
		r = slot ? 0 : protmem_may_drop(pi, start, *end, &start);
		if (r)
			return r;
		protmem_collect_pool(pi, now, start, end);
	}

	*end = protmem_recheck(guess, now, start, *end);
	if (*end > start && now->nr)
		kvm_gmem_invalidate_start(pi->inode, start, *end);
	return 0;
}

static void protmem_converted(struct kvm_protmem_inode *pi, pgoff_t start,
			      pgoff_t end, long copied, bool private)
{
	protmem_account_pool(pi, private ? copied : -copied);
	if (end == start)
		return;

	atomic64_add(end - start, &pi->kvm->stat.generic.protmem_conversions);
	trace_kvm_protmem_convert(protmem_gfn(pi, start), end - start, copied,
				  private);
}

/*
 * Makes the shared pages of [*@pos, @end) private and keeps their contents,
 * one batch of them.  @slot is the one a guest asked by, NULL for userspace:
 * only the guest's asking closes the latch.
 *
 * Advances *@pos; 0 with *@pos unmoved means that the state changed under us
 * and it is to be called again.
 */
static int protmem_make_private(struct kvm_protmem_inode *pi, pgoff_t *pos,
				pgoff_t end, struct kvm_memory_slot *slot)
{
	struct address_space *mapping = pi->inode->i_mapping;
	struct protmem_batch b = {}, now = {};
	bool private, used[PROTMEM_BATCH] = {};
	pgoff_t start = *pos, run, zapped;
	unsigned int i, j;
	int r = 0;

	filemap_invalidate_lock_shared(mapping);
	end = protmem_run_end(pi, start, end, &private);
	run = end;
	/*
	 * Nothing to do, but a guest must not be told so of a slot that is
	 * leaving: see kvm_protmem_slot_leave().
	 */
	if (private && (!slot || (READ_ONCE(pi->kvm->protmem.latched) &&
				  !slot->gmem.leaving))) {
		filemap_invalidate_unlock_shared(mapping);
		*pos = end;
		return 0;
	}
	if (!private)
		protmem_collect_shared(pi, &b, start, &end);
	for (i = 0; i < b.nr; i++) {
		gfn_t gfn = protmem_gfn(pi, b.index[i]);
		/* The next batches are going to become private, too. */
		bool uniform = protmem_block_uniform(pi, b.index[i], gfn,
						     start, run);

		filemap_invalidate_unlock_shared(mapping);
		b.page[i] = protmem_alloc_page(pi, b.index[i], gfn, uniform);
		filemap_invalidate_lock_shared(mapping);
		if (IS_ERR(b.page[i])) {
			r = PTR_ERR(b.page[i]);
			b.nr = i;
		}
	}
	filemap_invalidate_unlock_shared(mapping);
	if (r && !b.nr)
		return r;
	if (r) {
		end = b.index[b.nr - 1] + 1;
		r = 0;
	}

	filemap_invalidate_lock(mapping);

	r = protmem_begin(pi, slot, true, &b, &now, start, &end);
	if (r == 1) {
		r = 0;
		goto done;
	}
	if (r || end == start)
		goto out_unlock;
	zapped = end;

	for (i = 0, j = 0; i < now.nr && now.index[i] < end; i++) {
		struct folio *folio;

		while (b.index[j] != now.index[i])
			j++;

		folio = filemap_lock_folio(mapping, now.index[i]);
		if (WARN_ON_ONCE(IS_ERR(folio))) {
			end = now.index[i];
			r = PTR_ERR(folio);
			break;
		}

		/*
		 * A fault of userspace's that found the page shared has made
		 * its entry by the time that we have the folio lock.
		 */
		unmap_mapping_pages(mapping, now.index[i], 1, false);

		r = folio_test_hwpoison(folio) ? -EHWPOISON : 0;
		if (!r)
			r = unmapped_page_copy_from(b.page[j],
						    folio_page(folio, 0));
		if (!r)
			r = xa_err(xa_store(&pi->pages, now.index[i], b.page[j],
					    GFP_KERNEL_ACCOUNT));
		if (!r)
			used[j] = true;
		folio_unlock(folio);
		folio_put(folio);
		if (r) {
			end = now.index[i];
			break;
		}
	}

	if (end > start && protmem_store_state(pi, start, end, true)) {
		r = -ENOMEM;
		end = start;
	}
	if (end == start) {
		for (j = 0; j < b.nr; j++) {
			if (used[j])
				xa_erase(&pi->pages, b.index[j]);
			used[j] = false;
		}
	}
	if (now.nr) {
		if (end > start)
			protmem_drop_shared(pi, start, end);
		kvm_gmem_invalidate_end(pi->inode, start, zapped);
	}
	/* The pages before @end are done; what failed is found again. */
	if (end > start)
		r = 0;

	for (j = 0, i = 0; j < b.nr; j++)
		i += used[j];
	protmem_converted(pi, start, end, i, true);
done:
	if (!r && slot) {
		WRITE_ONCE(pi->kvm->protmem.latched, true);
		WRITE_ONCE(pi->kvm->stat.generic.protmem_latched, 1);
	}
	if (!r)
		*pos = end;
out_unlock:
	filemap_invalidate_unlock(mapping);

	/* Pages that were not used may hold a copy all the same. */
	for (j = 0; j < b.nr; j++)
		if (!used[j])
			unmapped_pool_free(pi->pool, b.page[j]);
	protmem_account_blocks(pi);

	return r;
}

/*
 * A page that goes back and forth all the time would have its block mapped by one
 * entry and split again each time.  What leaves as a whole can come back as a whole.
 */
static void protmem_note_shared(struct kvm_protmem_inode *pi, pgoff_t index)
{
	gfn_t gfn = protmem_gfn(pi, index);
	pgoff_t off = gfn & (PROTMEM_BLOCK_PAGES - 1);
	pgoff_t end = index - off + PROTMEM_BLOCK_PAGES;

	lockdep_assert_held_write(&pi->inode->i_mapping->invalidate_lock);

	if (gfn == ~0ULL || index < off)
		return;
	if (protmem_find_private(pi, index - off, end) == end)
		xa_erase(&pi->shared_at, gfn >> UNMAPPED_BLOCK_ORDER);
	else
		/* For a hint nothing is reclaimed, and nobody killed. */
		xa_store(&pi->shared_at, gfn >> UNMAPPED_BLOCK_ORDER,
			 xa_mk_value((u32)jiffies), GFP_NOWAIT | __GFP_ACCOUNT);
}

/*
 * Makes the private pages of [*@pos, @end) shared and keeps their contents,
 * one batch of them.  @slot is NULL for userspace.
 *
 * The private pages stay in place until every step that can fail has
 * succeeded.  Whatever was copied out of them by then and is not going to be
 * shared is cleared before it is freed.
 */
static int protmem_make_shared(struct kvm_protmem_inode *pi, pgoff_t *pos,
			       pgoff_t end, struct kvm_memory_slot *slot)
{
	struct address_space *mapping = pi->inode->i_mapping;
	struct protmem_batch b = {}, now = {};
	pgoff_t start = *pos, zapped;
	unsigned int i, j, done = 0;
	bool private;
	int r = 0;

	filemap_invalidate_lock_shared(mapping);
	end = protmem_run_end(pi, start, end, &private);
	if (!private) {
		filemap_invalidate_unlock_shared(mapping);
		*pos = end;
		return 0;
	}
	protmem_collect_pool(pi, &b, start, &end);
	filemap_invalidate_unlock_shared(mapping);

	for (i = 0; i < b.nr; i++) {
		struct mempolicy *policy;

		policy = mpol_shared_policy_lookup(&GMEM_I(pi->inode)->policy,
						   b.index[i]);
		b.folio[i] = filemap_alloc_folio(mapping_gfp_mask(mapping), 0,
						 policy);
		mpol_cond_put(policy);
		if (!b.folio[i]) {
			b.nr = i;
			if (!i)
				return -ENOMEM;
			end = b.index[i - 1] + 1;
		}
	}

	filemap_invalidate_lock(mapping);

	r = protmem_begin(pi, slot, false, &b, &now, start, &end);
	if (r == 1) {
		r = 0;
		*pos = end;
		goto out_unlock;
	}
	if (r || end == start)
		goto out_unlock;
	zapped = end;

	for (i = 0, j = 0; i < now.nr && now.index[i] < end; i++, done++) {
		struct folio *folio;
		struct page *page;

		while (b.index[j] != now.index[i])
			j++;
		folio = b.folio[j];

		page = xa_load(&pi->pages, now.index[i]);
		if (WARN_ON_ONCE(!page))
			r = -EIO;
		else if (PageHWPoison(page))
			r = -EHWPOISON;
		else
			r = unmapped_page_copy_to(folio_page(folio, 0), page);
		if (!r) {
			folio_mark_uptodate(folio);
			r = filemap_add_folio(mapping, folio, now.index[i],
					      mapping_gfp_mask(mapping));
		}
		if (r) {
			end = now.index[i];
			break;
		}
		/* See kvm_protmem_shared_folio(). */
		folio_mark_dirty(folio);
		/* The page cache has a reference of its own now. */
		folio_unlock(folio);
		folio_put(folio);
		b.folio[j] = NULL;
	}
	protmem_account_shared(pi, done);

	if (end > start && protmem_store_state(pi, start, end, false)) {
		r = -ENOMEM;
		end = start;
	}
	if (end == start) {
		for (i = 0; i < done; i++) {
			struct folio *folio;

			folio = filemap_lock_folio(mapping, now.index[i]);
			if (WARN_ON_ONCE(IS_ERR(folio)))
				continue;
			clear_highpage(folio_page(folio, 0));
			folio_unlock(folio);
			folio_put(folio);
		}
		if (done)
			protmem_drop_shared(pi, start, now.index[done - 1] + 1);
		done = 0;
	} else {
		r = 0;
	}

	for (i = 0; i < done; i++)
		now.page[i] = xa_erase(&pi->pages, now.index[i]);
	/* What is in between is most often in the block of one of them. */
	if (done)
		protmem_note_shared(pi, now.index[0]);
	if (done > 1)
		protmem_note_shared(pi, now.index[done - 1]);

	if (now.nr)
		kvm_gmem_invalidate_end(pi->inode, start, zapped);

	protmem_converted(pi, start, end, done, false);
	*pos = end;
out_unlock:
	filemap_invalidate_unlock(mapping);

	for (i = 0; i < done; i++)
		unmapped_pool_free(pi->pool, now.page[i]);

	for (j = 0; j < b.nr; j++) {
		if (!b.folio[j])
			continue;
		/* It may hold a copy of what remains private. */
		clear_highpage(folio_page(b.folio[j], 0));
		folio_put(b.folio[j]);
	}
	protmem_account_blocks(pi);

	return r;
}

enum protmem_drop {
	PROTMEM_DROP_TO_SHARED,
	PROTMEM_DROP_TO_PRIVATE,
	PROTMEM_DROP_PUNCH,
};

/*
 * Drops the contents of [*@pos, @end), one bounded step of it, with the state
 * as @how says.  With the latch closed no contents of private pages may be
 * dropped.
 */
static int protmem_drop_range(struct kvm_protmem_inode *pi, pgoff_t *pos,
			      pgoff_t end, enum protmem_drop how)
{
	struct address_space *mapping = pi->inode->i_mapping;
	pgoff_t start = *pos;
	bool populated;
	int r;

	filemap_invalidate_lock(mapping);

	r = protmem_may_drop(pi, start, end, pos);
	if (r)
		goto out;

	populated = mapping->nrpages || !xa_empty(&pi->pages);
	if (populated)
		end = min(end, start + PROTMEM_DROP_SPAN);

	if (how != PROTMEM_DROP_PUNCH) {
		r = protmem_store_state(pi, start, end,
					how == PROTMEM_DROP_TO_PRIVATE);
		if (r)
			goto out;
		atomic64_add(end - start,
			     &pi->kvm->stat.generic.protmem_conversions);
	}

	if (populated) {
		kvm_gmem_invalidate_start(pi->inode, start, end);
		protmem_drop_shared(pi, start, end);
		protmem_drop_pool(pi, start, end);
		kvm_gmem_invalidate_end(pi->inode, start, end);
	}
	*pos = end;
out:
	filemap_invalidate_unlock(mapping);
	return r;
}

/*
 * fallocate() with FALLOC_FL_PUNCH_HOLE of the pages in [@start, @end), which may
 * be beyond the end of the file.  The state stays what it is.  Returns 0, -EPERM
 * if the latch is closed on one of them, or -EINTR after a part.
 */
long kvm_protmem_punch_hole(struct inode *inode, pgoff_t start, pgoff_t end)
{
	struct kvm_protmem_inode *pi = kvm_protmem(inode);
	int r;

	end = min_t(pgoff_t, end, i_size_read(inode) >> PAGE_SHIFT);

	/* All or nothing as far as the latch goes; it can close meanwhile. */
	filemap_invalidate_lock_shared(inode->i_mapping);
	r = protmem_may_drop(pi, start, end, &start);
	filemap_invalidate_unlock_shared(inode->i_mapping);

	while (!r && start < end) {
		if (fatal_signal_pending(current))
			return -EINTR;
		r = protmem_drop_range(pi, &start, end, PROTMEM_DROP_PUNCH);
		cond_resched();
	}

	return r;
}

/*
 * fallocate() of the pages in [@start, @end), within the file: populates them in
 * the state that they have.  Returns 0, or -EINTR, -ENOMEM or -EHWPOISON after a
 * part.
 */
long kvm_protmem_allocate(struct inode *inode, pgoff_t start, pgoff_t end)
{
	struct kvm_protmem_inode *pi = kvm_protmem(inode);

	for (; start < end; start++) {
		if (signal_pending(current))
			return -EINTR;

		scoped_guard(rwsem_read, &inode->i_mapping->invalidate_lock) {
			struct folio *folio;

			if (kvm_protmem_in_pool(pi, start)) {
				struct page *page;

				page = kvm_protmem_pool_page(pi, start);
				if (IS_ERR(page))
					return PTR_ERR(page);
				continue;
			}

			folio = kvm_protmem_shared_folio(pi, start);
			if (IS_ERR(folio))
				return PTR_ERR(folio);
			folio_unlock(folio);
			folio_put(folio);
		}
		cond_resched();
	}

	return 0;
}

/*
 * One step of kvm_protmem_convert_range(): what is in one slot, and one batch of
 * populated pages there.  Moves *@gfn to where it ended; 0 if there is no error,
 * -EAGAIN if a memslot is changing right now, which can't finish before the
 * caller drops kvm->srcu, or another error of the caller's.
 */
static int protmem_convert_gfns(struct kvm *kvm, gfn_t *gfn, gfn_t end,
				bool private)
{
	struct kvm_memory_slot *slot;
	struct kvm_memslot_iter iter;
	struct inode *inode;
	pgoff_t pos, last;
	int r;

	kvm_memslot_iter_start(&iter, kvm_memslots(kvm), *gfn);
	while (kvm_memslot_iter_is_valid(&iter, end) &&
	       iter.slot->base_gfn + iter.slot->npages <= *gfn)
		kvm_memslot_iter_next(&iter);

	slot = kvm_memslot_iter_is_valid(&iter, end) ? iter.slot : NULL;
	if (!slot || slot->base_gfn > *gfn) {
		if (private)
			return -EINVAL;
		*gfn = slot ? slot->base_gfn : end;
		return 0;
	}

	if (slot->flags & KVM_MEMSLOT_INVALID)
		return -EAGAIN;

	end = min(end, slot->base_gfn + slot->npages);
	if (!kvm_slot_has_private_pages(slot)) {
		if (private)
			return -EINVAL;
		*gfn = end;
		return 0;
	}

	CLASS(gmem_get_file, file)(slot);
	if (!file)
		return -EFAULT;

	inode = file_inode(file);
	pos = kvm_gmem_get_index(slot, *gfn);
	last = pos + (end - *gfn);

	if (private)
		r = protmem_make_private(kvm_protmem(inode), &pos, last, slot);
	else
		r = protmem_make_shared(kvm_protmem(inode), &pos, last, slot);

	*gfn = end - (last - pos);
	return r;
}

/**
 * kvm_protmem_convert_range - what a guest asks for by a hypercall
 * @vcpu: the vCPU, in KVM_RUN.
 * @gfn: where to begin, moved to where it ended.
 * @end: the end of the range, exclusive, above *@gfn.
 * @private: what the pages are to become; their contents are kept.
 *
 * What is already as wanted is skipped in the time it takes to look at the
 * ranges, so that the guest may execute the hypercall again from the beginning.
 * Memory that can't be private is shared already, and can't be made private.
 * May sleep, and drops kvm->srcu in between.
 *
 * Return: 0 when *@gfn is @end; -EINVAL if the memory at *@gfn can't be private;
 * otherwise what an exit handler returns to have the guest execute the hypercall
 * again: 1 if there is something else to do first, -EINTR for a signal, with the
 * exit reason set, or the error of the host that stopped it, e.g. -ENOMEM,
 * -EHWPOISON.
 */
int kvm_protmem_convert_range(struct kvm_vcpu *vcpu, gfn_t *gfn, gfn_t end,
			      bool private)
{
	for (;;) {
		int r = protmem_convert_gfns(vcpu->kvm, gfn, end, private);

		/* The memslot update waits for this vCPU to drop kvm->srcu. */
		if (r == -EAGAIN)
			return 1;
		if (r || *gfn == end)
			return r;

		if (signal_pending(current)) {
			kvm_handle_signal_exit(vcpu);
			return -EINTR;
		}
		if (kvm_request_pending(vcpu))
			return 1;
		/* A long range must not keep memslot updates waiting. */
		kvm_vcpu_srcu_read_unlock(vcpu);
		cond_resched();
		kvm_vcpu_srcu_read_lock(vcpu);
	}
}

/*
 * KVM_SET_MEMORY_ATTRIBUTES2 on a guest_memfd.  @attrs->error_offset is where
 * it stopped.
 */
static int protmem_set_attributes(struct kvm_protmem_inode *pi,
				  struct kvm_memory_attributes2 *attrs)
{
	pgoff_t pos = attrs->offset >> PAGE_SHIFT;
	pgoff_t end = pos + (attrs->size >> PAGE_SHIFT);
	bool private = attrs->attributes & KVM_MEMORY_ATTRIBUTE_PRIVATE;
	bool keep = attrs->flags & KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE;
	int r = 0;

	/*
	 * Refuse before anything is done, but note that the guest can close
	 * the latch at any time, so that every step looks again.
	 */
	if (!private || !keep) {
		filemap_invalidate_lock_shared(pi->inode->i_mapping);
		r = protmem_may_drop(pi, pos, end, &pos);
		filemap_invalidate_unlock_shared(pi->inode->i_mapping);
	}

	while (!r && pos < end) {
		if (signal_pending(current)) {
			r = -EINTR;
			break;
		}
		if (!keep)
			r = protmem_drop_range(pi, &pos, end, private ?
					       PROTMEM_DROP_TO_PRIVATE :
					       PROTMEM_DROP_TO_SHARED);
		else if (private)
			r = protmem_make_private(pi, &pos, end, NULL);
		else
			r = protmem_make_shared(pi, &pos, end, NULL);
		cond_resched();
	}

	attrs->error_offset = (u64)pos << PAGE_SHIFT;
	return r;
}

static void protmem_get_attributes(struct kvm_protmem_inode *pi,
				   struct kvm_memory_attributes2 *attrs)
{
	pgoff_t start = attrs->offset >> PAGE_SHIFT;
	pgoff_t end = start + (attrs->size >> PAGE_SHIFT);
	bool private;

	filemap_invalidate_lock_shared(pi->inode->i_mapping);
	end = protmem_run_end(pi, start, end, &private);
	filemap_invalidate_unlock_shared(pi->inode->i_mapping);

	attrs->size = (u64)(end - start) << PAGE_SHIFT;
	attrs->attributes = private ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0;
}

/* KVM_SET_MEMORY_ATTRIBUTES2 and KVM_GET_MEMORY_ATTRIBUTES2; -ENOTTY if neither. */
long kvm_protmem_ioctl(struct file *file, unsigned int ioctl,
		       unsigned long arg)
{
	struct inode *inode = file_inode(file);
	struct kvm_protmem_inode *pi = kvm_protmem(inode);
	void __user *argp = (void __user *)arg;
	struct kvm_memory_attributes2 attrs;
	bool set = ioctl == KVM_SET_MEMORY_ATTRIBUTES2;
	int r;

	if (!set && ioctl != KVM_GET_MEMORY_ATTRIBUTES2)
		return -ENOTTY;

	if (copy_from_user(&attrs, argp, sizeof(attrs)))
		return -EFAULT;

	/* Page states exist once a slot has said that there are some. */
	if (!pi || !smp_load_acquire(&pi->convertible))
		return -EINVAL;

	if (memchr_inv(attrs.reserved, 0, sizeof(attrs.reserved)))
		return -EINVAL;
	if (!attrs.size || !PAGE_ALIGNED(attrs.offset) || !PAGE_ALIGNED(attrs.size))
		return -EINVAL;
	if (attrs.offset + attrs.size < attrs.offset ||
	    attrs.offset + attrs.size > i_size_read(inode))
		return -EINVAL;

	if (!set) {
		if (attrs.flags || attrs.attributes)
			return -EINVAL;
		protmem_get_attributes(pi, &attrs);
		r = 0;
	} else {
		if (attrs.attributes & ~KVM_MEMORY_ATTRIBUTE_PRIVATE)
			return -EINVAL;
		if (attrs.flags != KVM_SET_MEMORY_ATTRIBUTES2_ZERO &&
		    attrs.flags != KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE)
			return -EINVAL;
		r = protmem_set_attributes(pi, &attrs);
	}

	if (copy_to_user(argp, &attrs, sizeof(attrs)))
		return -EFAULT;

	return r;
}

static void protmem_memory_failure(void *priv, pgoff_t index, struct page *page)
{
	struct kvm_protmem_inode *pi = priv;
	struct address_space *mapping = pi->inode->i_mapping;

	/*
	 * The page stays where it is, so that the guest, which alone may say
	 * what becomes of it, gets -EHWPOISON at the next access.  The lock is
	 * exclusive, as a fault of userspace's that has found the page sound
	 * may be about to map it.
	 */
	filemap_invalidate_lock(mapping);
	if (xa_load(&pi->pages, index) == page) {
		kvm_gmem_invalidate_start(pi->inode, index, index + 1);
		if (pi->hidden)
			unmap_mapping_pages(mapping, index, 1, false);
		kvm_gmem_invalidate_end(pi->inode, index, index + 1);
	}
	filemap_invalidate_unlock(mapping);
}

static const struct unmapped_pool_ops protmem_pool_ops = {
	.memory_failure	= protmem_memory_failure,
};

static void protmem_set_hidden(struct kvm_protmem_inode *pi, struct inode *inode)
{
	pi->hidden = true;
	/* Special entries can't be pinned anyway, but this gives the right errno. */
	mapping_set_no_pin(inode->i_mapping);
}

/**
 * kvm_protmem_create - prepare a new guest_memfd inode for protected slots
 * @inode: the inode, which nobody else knows yet.
 * @kvm: the VM that creates it.
 *
 * Return: 0, also if there is nothing to prepare; -EINVAL if @kvm can't have
 * hidden memory; or the error of unmapped_pool_create().  Takes kvm->lock.
 */
int kvm_protmem_create(struct inode *inode, struct kvm *kvm)
{
	u64 flags = GMEM_I(inode)->flags;
	struct kvm_protmem_inode *pi;
	struct unmapped_pool *pool;
	unsigned int i;

	if (flags & GUEST_MEMFD_FLAG_NO_DIRECT_MAP) {
		guard(mutex)(&kvm->lock);
		if (!kvm_arch_protmem_can_hide(kvm))
			return -EINVAL;
		/* For what can't be added to such a VM later. */
		kvm->protmem.unmaps = true;
	} else if (!kvm_has_protected_memory(kvm) ||
		   (flags & PROTMEM_GMEM_FLAGS) != PROTMEM_GMEM_FLAGS) {
		return 0;
	}

	pi = kzalloc_obj(*pi, GFP_KERNEL_ACCOUNT);
	if (!pi)
		return -ENOMEM;

	pool = unmapped_pool_create(kvm->userspace_pid, &protmem_pool_ops, pi);
	if (IS_ERR(pool)) {
		kfree(pi);
		return PTR_ERR(pool);
	}

	pi->inode = inode;
	pi->kvm = kvm;
	pi->pool = pool;
	if (flags & GUEST_MEMFD_FLAG_NO_DIRECT_MAP)
		protmem_set_hidden(pi, inode);
	pi->may_hide = pi->hidden ||
		       (kvm->protmem.caps & KVM_PROTMEM_HIDE_ONLY);
	xa_init_flags(&pi->pages, XA_FLAGS_ACCOUNT);
	xa_init_flags(&pi->shared_at, XA_FLAGS_ACCOUNT);
	mt_init_flags(&pi->state, MT_FLAGS_LOCK_EXTERN);
	mt_set_external_lock(&pi->state, &inode->i_mapping->invalidate_lock);
	mt_init_flags(&pi->gfns, MT_FLAGS_LOCK_EXTERN);
	mt_set_external_lock(&pi->gfns, &inode->i_mapping->invalidate_lock);
	spin_lock_init(&pi->acct_lock);
	for (i = 0; i < ARRAY_SIZE(pi->fill_lock); i++)
		mutex_init(&pi->fill_lock[i]);
	INIT_LIST_HEAD(&pi->entry);

	/*
	 * A shared page that becomes private leaves the old one behind to
	 * those who have pinned it.  Whoever pins for long would be left with
	 * something that is not guest memory and never notice.
	 */
	mapping_set_no_longterm_pin(inode->i_mapping);

	GMEM_I(inode)->protmem = pi;
	return 0;
}

/* The inode is about to be installed; from here on release is certain. */
void kvm_protmem_attach(struct inode *inode)
{
	struct kvm_protmem_inode *pi = kvm_protmem(inode);

	if (!pi)
		return;

	guard(mutex)(&pi->kvm->slots_lock);
	list_add(&pi->entry, &pi->kvm->protmem.inodes);
}

/**
 * kvm_protmem_release - the last reference to the file of an inode is gone
 * @inode: the inode; the caller holds slots_lock and its invalidate_lock, and
 *	has zapped the second stage.
 *
 * The contents of a latched VM's memory must not be replaced under its feet.
 */
void kvm_protmem_release(struct inode *inode)
{
	struct kvm_protmem_inode *pi = kvm_protmem(inode);
	struct kvm *kvm;

	if (!pi)
		return;

	kvm = pi->kvm;
	lockdep_assert_held(&kvm->slots_lock);
	lockdep_assert_held_write(&inode->i_mapping->invalidate_lock);

	if (READ_ONCE(kvm->protmem.latched) && pi->convertible)
		kvm_vm_dead(kvm);

	/* The pages live on until the inode is evicted, the VM may not. */
	list_del_init(&pi->entry);
	atomic64_sub(inode->i_mapping->nrpages << PAGE_SHIFT,
		     &kvm->stat.generic.protmem_shared_bytes);
	atomic64_sub(atomic_long_read(&pi->nr_pool) << PAGE_SHIFT,
		     &kvm->stat.generic.protmem_private_bytes);
	scoped_guard(spinlock, &pi->acct_lock)
		atomic64_sub(pi->acct_bytes,
			     &kvm->stat.generic.protmem_block_bytes);
	pi->kvm = NULL;
}

/*
 * The inode goes: nobody else can reach it, no file of it is left, and the page
 * cache is empty.  Also called for one that never got as far as having a file.
 */
void kvm_protmem_destroy(struct inode *inode)
{
	struct kvm_protmem_inode *pi = kvm_protmem(inode);

	if (!pi)
		return;

	GMEM_I(inode)->protmem = NULL;
	/* An error path may get here before there was a file. */
	pi->kvm = NULL;

	unmapped_pool_unregister(pi->pool);
	protmem_drop_pool(pi, 0, i_size_read(inode) >> PAGE_SHIFT);
	/* Not xa_empty(): a store that ran out of memory may leave empty nodes. */
	WARN_ON_ONCE(atomic_long_read(&pi->nr_pool));
	xa_destroy(&pi->pages);
	xa_destroy(&pi->shared_at);

	filemap_invalidate_lock(inode->i_mapping);
	__mt_destroy(&pi->state);
	__mt_destroy(&pi->gfns);
	filemap_invalidate_unlock(inode->i_mapping);

	unmapped_pool_put(pi->pool);
	kfree(pi);
}

#define PROTMEM_SLOT_FLAGS	(KVM_MEM_UNMAP_DIRECT | KVM_MEM_UNMAP_USER)

/*
 * Which of the two memslot flags are valid, given that userspace asks for @flags.
 */
u32 kvm_protmem_valid_slot_flags(struct kvm *kvm, u32 flags)
{
	if (!(flags & KVM_MEM_GUEST_MEMFD))
		return 0;

	switch (flags & PROTMEM_SLOT_FLAGS) {
	case PROTMEM_SLOT_FLAGS:
		return kvm_has_private_pages(kvm) ? PROTMEM_SLOT_FLAGS : 0;
	case KVM_MEM_UNMAP_DIRECT:
		return kvm->protmem.caps & KVM_PROTMEM_HIDE_ONLY ?
		       KVM_MEM_UNMAP_DIRECT : 0;
	}

	return 0;
}

/* Does @slot ask for what @pi is not yet, and can no longer become? */
static bool protmem_hides_too_late(struct kvm_protmem_inode *pi,
				   struct kvm_memory_slot *slot)
{
	return (slot->flags & PROTMEM_SLOT_FLAGS) == KVM_MEM_UNMAP_DIRECT &&
	       !pi->hidden && pi->inode->i_mapping->nrpages;
}

/**
 * kvm_protmem_check_bind - can @slot be bound to @inode?
 * @inode: the guest_memfd inode.
 * @slot: the new slot, not visible yet; its gmem.pgoff is set.
 *
 * What protects the memory is a property of the inode, fixed by the first
 * slot, and so is the gfn of each index once it is bound: nothing but the
 * guest's own address may lead to a page.  The caller holds slots_lock.
 *
 * Return: 0; -EINVAL if it can't, or -EPERM if it could but for a gfn and the
 * latch is closed.
 */
int kvm_protmem_check_bind(struct inode *inode, struct kvm_memory_slot *slot)
{
	struct kvm_protmem_inode *pi = kvm_protmem(inode);
	unsigned long index = slot->gmem.pgoff;
	unsigned long last = index + slot->npages - 1;
	struct ma_state mas;
	u32 flags = slot->flags & PROTMEM_SLOT_FLAGS;
	u64 gmem_flags = GMEM_I(inode)->flags;
	void *entry;

	if (!pi)
		return flags ? -EINVAL : 0;

	/* Or KVM would take the memory from userspace_addr, wherever that is. */
	if ((flags || (gmem_flags & GUEST_MEMFD_FLAG_NO_DIRECT_MAP)) &&
	    (gmem_flags & PROTMEM_GMEM_FLAGS) != PROTMEM_GMEM_FLAGS)
		return -EINVAL;

	guard(rwsem_read)(&inode->i_mapping->invalidate_lock);

	if (pi->bound && pi->slot_flags != flags)
		return -EINVAL;
	if ((gmem_flags & GUEST_MEMFD_FLAG_NO_DIRECT_MAP) &&
	    kvm_slot_has_private_pages(slot))
		return -EINVAL;
	if (protmem_hides_too_late(pi, slot))
		return -EINVAL;
	if (!flags)
		return 0;

	mas_init(&mas, &pi->gfns, index);
	mas_for_each(&mas, entry, last) {
		index = max(mas.index, slot->gmem.pgoff);
		if (index + xa_to_value(entry) - PROTMEM_GFN_BIAS ==
		    slot->base_gfn + (index - slot->gmem.pgoff))
			continue;
		return READ_ONCE(pi->kvm->protmem.latched) ? -EPERM : -EINVAL;
	}

	return 0;
}

/*
 * Fixes what kvm_protmem_check_bind() has checked under the same slots_lock.
 * The caller holds the invalidate_lock.  An error leaves everything as it was:
 * -ENOMEM, or -EINVAL if there are contents by now.
 */
int kvm_protmem_bind(struct inode *inode, struct kvm_memory_slot *slot)
{
	struct kvm_protmem_inode *pi = kvm_protmem(inode);
	unsigned long first = slot->gmem.pgoff;
	unsigned long last = first + slot->npages - 1;
	void *delta, *entry;
	int r;

	if (!pi)
		return 0;

	lockdep_assert_held_write(&inode->i_mapping->invalidate_lock);

	if (protmem_hides_too_late(pi, slot))
		return -EINVAL;

	if (slot->flags & PROTMEM_SLOT_FLAGS) {
		MA_STATE(mas, &pi->gfns, first, last);

		/* Equal and overlapping or adjacent ranges become one. */
		delta = xa_mk_value(slot->base_gfn - first + PROTMEM_GFN_BIAS);
		mas_set(&mas, first ? first - 1 : 0);
		entry = mas_walk(&mas);
		if (entry == delta)
			first = min(first, mas.index);
		mas_set(&mas, last + 1);
		entry = mas_walk(&mas);
		if (entry == delta)
			last = max(last, mas.last);

		mas_set_range(&mas, first, last);
		r = mas_store_gfp(&mas, delta, GFP_KERNEL_ACCOUNT);
		if (r)
			return r;
	}

	if (kvm_slot_has_private_pages(slot))
		/* Pairs with kvm_protmem_ioctl(). */
		smp_store_release(&pi->convertible, true);
	else if (slot->flags & KVM_MEM_UNMAP_DIRECT)
		protmem_set_hidden(pi, inode);

	pi->slot_flags = slot->flags & PROTMEM_SLOT_FLAGS;
	pi->bound = true;
	return 0;
}

/**
 * kvm_protmem_slot_leave - a memslot is about to be deleted
 * @kvm: the VM; the caller holds slots_lock.
 * @slot: the slot, still active.
 *
 * Refuses if the latch is closed and the slot has a private page.  Otherwise,
 * until the slot is gone or kvm_protmem_slot_stay() says that it is not going,
 * the guest can't convert pages in it: it tries again, and then finds the
 * outcome.  So there is no moment at which a guest that has made a page
 * private meets a slot that is on its way out.
 *
 * Return: 0 or -EPERM.
 */
int kvm_protmem_slot_leave(struct kvm *kvm, struct kvm_memory_slot *slot)
{
	struct kvm_protmem_inode *pi;
	pgoff_t start, end;
	int r;

	lockdep_assert_held(&kvm->slots_lock);

	if (!kvm_slot_has_private_pages(slot))
		return 0;

	CLASS(gmem_get_file, file)(slot);
	if (!file) {
		/*
		 * Closed, but userspace can delay the release, and with it the
		 * death of the VM: see kvm_protmem_release().
		 */
		if (slot->gmem.file && READ_ONCE(kvm->protmem.latched))
			return -EPERM;
		return 0;
	}

	pi = kvm_protmem(file_inode(file));
	start = slot->gmem.pgoff;
	end = start + slot->npages;

	guard(rwsem_write)(&file_inode(file)->i_mapping->invalidate_lock);

	r = protmem_may_drop(pi, start, end, &start);
	if (!r)
		slot->gmem.leaving = true;
	return r;
}

/*
 * After kvm_protmem_slot_leave(), @slot could not be deleted and is active again.
 * The caller still holds slots_lock.
 */
void kvm_protmem_slot_stay(struct kvm *kvm, struct kvm_memory_slot *slot)
{
	lockdep_assert_held(&kvm->slots_lock);

	if (!kvm_slot_has_private_pages(slot))
		return;

	CLASS(gmem_get_file, file)(slot);
	if (!file)
		return;

	guard(rwsem_write)(&file_inode(file)->i_mapping->invalidate_lock);
	slot->gmem.leaving = false;
}

/*
 * Drops what is in one bounded span of @pi, wherever there is something left,
 * so that neither memory failure nor a fault of userspace's has to wait for all
 * of it.  True once all is empty, and then shared.
 */
static bool protmem_reset_step(struct kvm_protmem_inode *pi)
{
	struct address_space *mapping = pi->inode->i_mapping;
	unsigned long start = ULONG_MAX, index = 0;
	pgoff_t end;

	guard(rwsem_write)(&mapping->invalidate_lock);

	if (xa_find(&pi->pages, &index, ULONG_MAX, XA_PRESENT))
		start = index;
	index = 0;
	if (xa_find(&mapping->i_pages, &index, ULONG_MAX, XA_PRESENT))
		start = min(start, index);
	if (start == ULONG_MAX) {
		__mt_destroy(&pi->state);
		return true;
	}

	/* Nothing else is mapped in the second stage. */
	end = min_t(pgoff_t, start + PROTMEM_DROP_SPAN,
		    i_size_read(pi->inode) >> PAGE_SHIFT);
	kvm_gmem_invalidate_start(pi->inode, start, end);
	protmem_drop_shared(pi, start, end);
	protmem_drop_pool(pi, start, end);
	kvm_gmem_invalidate_end(pi->inode, start, end);
	return false;
}

/**
 * kvm_protmem_latch - close the latch before the guest runs
 * @kvm: the VM.
 *
 * For an architecture on which memory is private when the guest starts.  Called in
 * KVM_RUN, with a vCPU's mutex held, which keeps KVM_RESET_PROTECTED_MEMORY away, and
 * without kvm->srcu.  What userspace has begun before is over when this returns, and
 * what comes later finds the latch closed.
 *
 * Return: 0; -EINTR if the caller was killed.
 */
int kvm_protmem_latch(struct kvm *kvm)
{
	struct kvm_protmem_inode *pi;

	if (mutex_lock_killable(&kvm->slots_lock))
		return -EINTR;

	WRITE_ONCE(kvm->protmem.latched, true);
	WRITE_ONCE(kvm->stat.generic.protmem_latched, 1);
	list_for_each_entry(pi, &kvm->protmem.inodes, entry) {
		filemap_invalidate_lock(pi->inode->i_mapping);
		filemap_invalidate_unlock(pi->inode->i_mapping);
	}
	/* Not before: another vCPU that sees it does not come here. */
	smp_store_release(&kvm->protmem.may_run, true);
	mutex_unlock(&kvm->slots_lock);
	return 0;
}

/**
 * kvm_protmem_reset - wipe all protected memory and open the latch
 * @kvm: the VM.
 *
 * KVM_RESET_PROTECTED_MEMORY: the one way out of the latch.  All contents are
 * gone before the latch opens, and so are the operations that a vCPU has left
 * half done.
 *
 * Return: 0; -EINVAL if the VM can't have private pages; -EBUSY if a vCPU runs
 * or is being created; -EINTR, and the VM is dead, if the caller was killed.
 */
int kvm_protmem_reset(struct kvm *kvm)
{
	struct kvm_protmem_inode *pi;
	struct kvm_vcpu *vcpu;
	unsigned long i;
	int r = 0;

	if (!kvm_has_private_pages(kvm))
		return -EINVAL;

	guard(mutex)(&kvm->lock);

	if (kvm->created_vcpus != atomic_read(&kvm->online_vcpus))
		return -EBUSY;
	if (kvm_trylock_all_vcpus(kvm))
		return -EBUSY;

	mutex_lock(&kvm->slots_lock);
	list_for_each_entry(pi, &kvm->protmem.inodes, entry) {
		if (!pi->convertible)
			continue;

		while (!protmem_reset_step(pi)) {
			if (fatal_signal_pending(current)) {
				r = -EINTR;
				break;
			}
			cond_resched();
		}
		if (r)
			break;
	}
	mutex_unlock(&kvm->slots_lock);

	if (r) {
		/* Half of the memory is gone: the guest must not run on. */
		kvm_vm_dead(kvm);
		kvm_unlock_all_vcpus(kvm);
		return r;
	}

	kvm_for_each_vcpu(i, vcpu, kvm)
		kvm_arch_protmem_reset_vcpu(vcpu);

	WRITE_ONCE(kvm->protmem.latched, false);
	WRITE_ONCE(kvm->protmem.may_run, false);
	WRITE_ONCE(kvm->stat.generic.protmem_latched, 0);

	kvm_unlock_all_vcpus(kvm);
	return 0;
}

/* For every VM, before anyone else knows it. */
void kvm_protmem_init_vm(struct kvm *kvm)
{
	INIT_LIST_HEAD(&kvm->protmem.inodes);
}

/**
 * kvm_protmem_supported_caps - what KVM_ENABLE_CAP may ask for
 * @kvm: the VM, or NULL for VMs of the default type.
 *
 * Return: a mask of KVM_PROTMEM_*; 0, with a line in the log that says why,
 * if there is no protected memory.
 */
u64 kvm_protmem_supported_caps(struct kvm *kvm)
{
	const char *why;

	if (!unmapped_pool_supported(&why)) {
		pr_info_once("no protected memory: %s\n", why);
		return 0;
	}

	return kvm_arch_protmem_supported_caps(kvm);
}

/* KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES; @kvm as above. */
u64 kvm_protmem_supported_attributes(struct kvm *kvm)
{
	if (kvm ? kvm_has_private_pages(kvm) : !!kvm_protmem_supported_caps(NULL))
		return KVM_MEMORY_ATTRIBUTE_PRIVATE;

	return 0;
}

/*
 * GUEST_MEMFD_FLAG_NO_DIRECT_MAP, which needs no KVM_ENABLE_CAP; @kvm as above.
 * kvm_protmem_create() looks again, under kvm->lock.
 */
bool kvm_protmem_supports_no_direct_map(struct kvm *kvm)
{
	const char *why;

	return unmapped_pool_supported(&why) && kvm_arch_protmem_can_hide(kvm);
}

/*
 * KVM_ENABLE_CAP(KVM_CAP_PROTECTED_MEMORY).  Takes kvm->lock and slots_lock.
 * Returns 0; -EINVAL for what can't be had, in itself or by this VM; -EBUSY if
 * it is too late, because there is a vCPU, a memslot, or the capability already.
 */
int kvm_protmem_enable_cap(struct kvm *kvm, const struct kvm_enable_cap *cap)
{
	u64 caps = cap->args[0], exits = cap->args[1];
	int r;

	if (cap->flags || cap->args[2] || cap->args[3])
		return -EINVAL;
	if (!caps || (caps & ~kvm_protmem_supported_caps(kvm)))
		return -EINVAL;
	if (!(caps & KVM_PROTMEM_DIRECT_MAP) ||
	    !(caps & (KVM_PROTMEM_USER | KVM_PROTMEM_HIDE_ONLY)))
		return -EINVAL;
	/* Only private pages can be converted. */
	if ((caps & KVM_PROTMEM_GUEST_CONVERT) && !(caps & KVM_PROTMEM_USER))
		return -EINVAL;
	if (exits & ~KVM_PROTMEM_EXIT_CONVERT)
		return -EINVAL;
	if (exits && !(caps & KVM_PROTMEM_GUEST_CONVERT))
		return -EINVAL;

	guard(mutex)(&kvm->lock);
	guard(mutex)(&kvm->slots_lock);

	if (kvm->created_vcpus || kvm_has_protected_memory(kvm) ||
	    !kvm_are_all_memslots_empty(kvm))
		return -EBUSY;

	kvm->protmem.exit_flags = exits;
	kvm->protmem.caps = caps;

	r = kvm_arch_protmem_enable(kvm);
	if (r)
		kvm->protmem.caps = 0;
	else
		kvm->protmem.unmaps = true;
	return r;
}
