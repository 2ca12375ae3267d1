// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM protected memory: which pages of a guest_memfd are private to the guest,
 * where their contents are, and who may map them.  What changes the state is in
 * protected_memory_convert.c, what concerns a VM as a whole in protected_memory_vm.c.
 *
 * A page is either shared, then its contents are a folio in the page cache
 * like those of any mmap-able guest_memfd, or private, then they are a page of
 * an unmapped pool (mm/unmapped_pool.c), which has no kernel alias, no user
 * mapping and no pin.  A conversion copies from the one to the other; a page
 * without contents is empty in either state and converting it moves nothing, and
 * a private page of zeroes is empty once it is shared.
 *
 * On a hypervisor that keeps the kernel out of private pages by itself
 * (KVM_PROTMEM_HOST_KERNEL) all pages are of the pool, private ones and shared ones,
 * and a conversion moves nothing: protected_memory_in_place.c.
 *
 * Memory that is hidden from the kernel alone (KVM_PROTMEM_HIDE_ONLY) has no
 * states: all of it are pages of the pool, and userspace maps them by special
 * page table entries, which nothing but a fault makes and GUP refuses.
 *
 * With the latch closed userspace may not take a private page from the guest:
 * every way to do so asks kvm_protmem_may_drop().
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
 *	              pool->grow_lock, pool->home_lock[]: see mm/unmapped_pool.c
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
#include <linux/hash.h>
#include <linux/kvm_host.h>
#include <linux/pagemap.h>
#include <linux/sched/signal.h>
#include <linux/unmapped_pool.h>

#include <trace/events/kvm.h>

#include "protected_memory.h"

/* kvm_protmem_inode.gfns holds gfn - index, biased to make it positive. */
#define PROTMEM_GFN_BIAS	(1UL << (BITS_PER_LONG - 3))

/* A guest_memfd without these is not what KVM and userspace both map. */
#define PROTMEM_GMEM_FLAGS	(GUEST_MEMFD_FLAG_MMAP | \
				 GUEST_MEMFD_FLAG_INIT_SHARED)

/* A block is left in small entries so many jiffies after pages of it were shared. */
#define PROTMEM_SWING		(HZ / 4)

/* Is all of [@first, @last] private? */
bool kvm_protmem_all_private(struct kvm_protmem_inode *pi, pgoff_t first,
			     pgoff_t last)
{
	MA_STATE(mas, &pi->state, first, first);

	lockdep_assert_held(&pi->inode->i_mapping->invalidate_lock);

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
int kvm_protmem_may_drop(struct kvm_protmem_inode *pi, pgoff_t start,
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
pgoff_t kvm_protmem_run_end(struct kvm_protmem_inode *pi, pgoff_t start,
			    pgoff_t end, bool *private)
{
	MA_STATE(mas, &pi->state, start, start);

	lockdep_assert_held(&pi->inode->i_mapping->invalidate_lock);

	*private = false;
	if (!mas_find(&mas, end - 1))
		return end;

	*private = mas.index <= start;
	return *private ? min(end, mas.last + 1) : mas.index;
}

/* The gfn that @index is bound to for good, or ~0ULL if it never was bound. */
gfn_t kvm_protmem_gfn(struct kvm_protmem_inode *pi, pgoff_t index)
{
	MA_STATE(mas, &pi->gfns, index, index);
	void *entry;

	lockdep_assert_held(&pi->inode->i_mapping->invalidate_lock);

	entry = mas_walk(&mas);
	return entry ? index + xa_to_value(entry) - PROTMEM_GFN_BIAS : ~0ULL;
}

/* Are all gfns of the block around @gfn bound to one range of the inode, @first on? */
static bool protmem_block_bound(struct kvm_protmem_inode *pi, pgoff_t index,
				gfn_t gfn, pgoff_t *first)
{
	MA_STATE(mas, &pi->gfns, index, index);
	pgoff_t off = gfn & (PROTMEM_BLOCK_PAGES - 1);

	*first = index - off;
	return index >= off && mas_walk(&mas) && mas.index <= *first &&
	       mas.last >= *first + PROTMEM_BLOCK_PAGES - 1;
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
bool kvm_protmem_block_uniform(struct kvm_protmem_inode *pi, pgoff_t index,
			       gfn_t gfn, pgoff_t start, pgoff_t end)
{
	pgoff_t first, last;

	if (!protmem_block_bound(pi, index, gfn, &first))
		return false;
	if (pi->hidden)
		return true;

	last = first + PROTMEM_BLOCK_PAGES - 1;
	if (first < start && !kvm_protmem_all_private(pi, first, min(last, start - 1)))
		return false;

	return last < end || kvm_protmem_all_private(pi, max(first, end), last);
}

/* Brings kvm->stat in line with the pool after this inode has changed it. */
void kvm_protmem_account_blocks(struct kvm_protmem_inode *pi)
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

void kvm_protmem_account_pool(struct kvm_protmem_inode *pi, long nr)
{
	atomic_long_add(nr, &pi->nr_pool);
	if (pi->kvm)
		atomic64_add(nr * (long)PAGE_SIZE,
			     &pi->kvm->stat.generic.protmem_private_bytes);
}

void kvm_protmem_account_shared(struct kvm_protmem_inode *pi, long nr)
{
	if (pi->kvm)
		atomic64_add(nr * (long)PAGE_SIZE,
			     &pi->kvm->stat.generic.protmem_shared_bytes);
}

/*
 * Removes all shared folios of [@start, @end).  The caller holds the
 * invalidate_lock exclusive, so that no folio can be added meanwhile, and all
 * of them are accounted for: kvm_protmem_shared_folio() does that under the
 * shared lock.
 */
void kvm_protmem_drop_shared(struct kvm_protmem_inode *pi, pgoff_t start,
			     pgoff_t end)
{
	struct address_space *mapping = pi->inode->i_mapping;
	unsigned long nr = mapping->nrpages;

	lockdep_assert_held_write(&mapping->invalidate_lock);

	truncate_inode_pages_range(mapping, (loff_t)start << PAGE_SHIFT,
				   ((loff_t)end << PAGE_SHIFT) - 1);
	kvm_protmem_account_shared(pi, (long)mapping->nrpages - (long)nr);
}

/*
 * Gives the pool's pages in [@start, @end) back to it, which scrubs them.  The
 * second stage is zapped, and either the invalidate_lock is held exclusive or
 * nobody else can reach the inode any more.
 */
void kvm_protmem_drop_pool(struct kvm_protmem_inode *pi, pgoff_t start,
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

	kvm_protmem_account_pool(pi, -nr);
	kvm_protmem_account_blocks(pi);
}

/*
 * Records [@start, @end) as @private.  On error (-ENOMEM) nothing is changed.
 * Ranges that are next to each other are merged, which bounds the tree by the
 * number of runs and makes kvm_protmem_all_private() one look-up.
 */
int kvm_protmem_store_state(struct kvm_protmem_inode *pi, pgoff_t start,
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
 * without the invalidate_lock; @uniform, from kvm_protmem_block_uniform(), is a
 * hint.
 */
struct page *kvm_protmem_alloc_page(struct kvm_protmem_inode *pi,
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

static struct mutex *protmem_fill_lock(struct kvm_protmem_inode *pi, gfn_t gfn)
{
	return &pi->fill_lock[hash_64(gfn >> UNMAPPED_BLOCK_ORDER,
				      ilog2(ARRAY_SIZE(pi->fill_lock)))];
}

/*
 * Populates all of the block around @index, which is uniform, as far as it has a
 * home block, or no page yet: complete it can be mapped by one entry.  What the guest does not
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
	guard(mutex)(protmem_fill_lock(pi, gfn));
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
		unmapped_pool_free_clean(pi->pool, page + i, 1);

	kvm_protmem_account_pool(pi, nr);
}

/* Is what @xa has from @first on @page and the next ones, a block of sound pages? */
bool kvm_protmem_consecutive(struct xarray *xa, pgoff_t first, struct page *page)
{
	XA_STATE(xas, xa, first);
	unsigned int i;

	guard(rcu)();
	for (i = 0; i < PROTMEM_BLOCK_PAGES; i++) {
		struct page *found;

		do {
			found = i ? xas_next(&xas) : xas_load(&xas);
		} while (xas_retry(&xas, found));
		if (found != page + i || PageHWPoison(found))
			return false;
	}

	return true;
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
	pgoff_t off = gfn & (PROTMEM_BLOCK_PAGES - 1);
	void *shared_at;

	if ((page_to_pfn(page) & (PROTMEM_BLOCK_PAGES - 1)) != off ||
	    !kvm_protmem_block_uniform(pi, index, gfn, index, index + 1))
		return 0;

	shared_at = xa_load(&pi->shared_at, gfn >> UNMAPPED_BLOCK_ORDER);
	if (shared_at) {
		if ((u32)jiffies - (u32)xa_to_value(shared_at) < PROTMEM_SWING)
			return 0;
		xa_erase(&pi->shared_at, gfn >> UNMAPPED_BLOCK_ORDER);
	}

	return kvm_protmem_consecutive(&pi->pages, index - off, page - off) ?
	       UNMAPPED_BLOCK_ORDER : 0;
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

	gfn = kvm_protmem_gfn(pi, index);
	if (kvm_protmem_block_uniform(pi, index, gfn, index, index + 1)) {
		protmem_fill_block(pi, index, gfn);
		page = xa_load(&pi->pages, index);
		if (page)
			goto filled;
	}
	/* No home, or not with this page in it: then any page will do. */
	page = kvm_protmem_alloc_page(pi, index, gfn, false);
	if (IS_ERR(page))
		return page;

	/* Only other faults, which hold the lock shared too, can be faster. */
	other = xa_cmpxchg(&pi->pages, index, NULL, page, GFP_KERNEL_ACCOUNT);
	if (other)
		unmapped_pool_free_clean(pi->pool, page, 1);
	else
		kvm_protmem_account_pool(pi, 1);
	page = xa_is_err(other) ? ERR_PTR(xa_err(other)) : other ?: page;
filled:
	kvm_protmem_account_blocks(pi);
	if (IS_ERR(page))
		return page;
found:
	return PageHWPoison(page) ? ERR_PTR(-EHWPOISON) : page;
}

/*
 * Is all of the block around @index shared?  Then it begins at *@first.  Never for
 * slots that have no states: there a change of a page does not invalidate its block.
 */
static bool protmem_block_shared(struct kvm_protmem_inode *pi, pgoff_t index,
				 pgoff_t *first)
{
	bool private;

	/* Nothing is gained where a block is not one entry of the second stage. */
	return UNMAPPED_BLOCK_ORDER >= PMD_ORDER && pi->convertible &&
	       protmem_block_bound(pi, index, kvm_protmem_gfn(pi, index), first) &&
	       kvm_protmem_run_end(pi, *first, *first + PROTMEM_BLOCK_PAGES, &private) ==
	       *first + PROTMEM_BLOCK_PAGES && !private;
}

/* What is for one node, or several by turns, is allocated by the block. */
static struct page *protmem_alloc_shared(struct kvm_protmem_inode *pi, pgoff_t first,
					 gfp_t gfp)
{
	struct shared_policy *policies = &GMEM_I(pi->inode)->policy;
	struct mempolicy *policy, *other;
	struct page *page = NULL;

	policy = mpol_shared_policy_lookup(policies, first);
	other = mpol_shared_policy_lookup(policies, first + PROTMEM_BLOCK_PAGES - 1);
	if (policy == other)
		page = unmapped_pool_alloc_mapped(pi->pool, policy, first, gfp);
	mpol_cond_put(other);
	mpol_cond_put(policy);

	return page;
}

static int protmem_add_shared(struct kvm_protmem_inode *pi, pgoff_t index,
			      struct page *page, gfp_t gfp)
{
	struct folio *folio = page_folio(page);
	int r;

	r = filemap_add_folio(pi->inode->i_mapping, folio, index, gfp);
	if (r)
		return r;

	clear_highpage(page);
	folio_mark_uptodate(folio);
	/* See kvm_protmem_shared_folio(). */
	folio_mark_dirty(folio);
	kvm_protmem_account_shared(pi, 1);
	folio_unlock(folio);
	return 0;
}

/*
 * Populates the block around @index if all of it is shared, in [@start, @end), and not
 * populated yet: by pages one after the other, so that it can be mapped by one entry.
 * They are a folio each: what is converted, pinned, broken or dropped is a page.
 *
 * Where the memory cgroup has not enough left for all of it some of it is populated,
 * that of @index first.  If not even that one is, the caller has to do it, who may
 * reclaim.  The caller holds the invalidate_lock.  May sleep.
 */
void kvm_protmem_fill_shared(struct kvm_protmem_inode *pi, pgoff_t index,
			     pgoff_t start, pgoff_t end)
{
	struct address_space *mapping = pi->inode->i_mapping;
	gfp_t gfp = mapping_gfp_mask(mapping);
	struct page *page;
	pgoff_t first, i;
	int r;

	lockdep_assert_held(&mapping->invalidate_lock);

	if (xa_load(&mapping->i_pages, index) ||
	    !protmem_block_shared(pi, index, &first) || first < start ||
	    first + PROTMEM_BLOCK_PAGES > end)
		return;

	/* Of two that fault at once one would free again what it has got. */
	guard(mutex)(protmem_fill_lock(pi, kvm_protmem_gfn(pi, index)));
	if (filemap_range_has_page(mapping, (loff_t)first << PAGE_SHIFT,
				   (loff_t)(first + PROTMEM_BLOCK_PAGES - 1) << PAGE_SHIFT))
		return;

	page = protmem_alloc_shared(pi, first, gfp);
	if (!page)
		return;

	/* Nobody is to lose memory for what nobody has asked for. */
	gfp = (gfp & ~__GFP_DIRECT_RECLAIM) | __GFP_NOWARN;
	r = protmem_add_shared(pi, index, page + (index - first), gfp);
	for (i = 0; i < PROTMEM_BLOCK_PAGES; i++) {
		if (first + i != index && (!r || r == -EEXIST))
			r = protmem_add_shared(pi, first + i, page + i, gfp);
		put_page(page + i);
	}
}

/**
 * kvm_protmem_shared_folio - the folio with the contents of a shared index
 * @pi: the inode.
 * @index: a shared index.
 *
 * An empty page gets its backing now.  The caller holds the invalidate_lock.  May
 * sleep.
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
		kvm_protmem_account_shared(pi, 1);
	}

	return folio;
}

/*
 * Does @file still back @index for @slot?  The caller holds the invalidate_lock and
 * kvm->srcu.  Returns 0, -EFAULT or -EIO.
 */
int kvm_protmem_check_slot(struct file *file, struct kvm_memory_slot *slot, pgoff_t index)
{
	struct gmem_file *f = file->private_data;

	if (file != READ_ONCE(slot->gmem.file))
		return -EFAULT;

	return xa_load(&f->bindings, index) == slot ? 0 : -EIO;
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
	pgoff_t index = kvm_gmem_get_index(slot, gfn), first;
	struct folio *folio;
	int r;

	*page = NULL;
	*max_order = 0;

	guard(rwsem_read)(&inode->i_mapping->invalidate_lock);

	r = kvm_protmem_check_slot(file, slot, index);
	if (r)
		return r;

	if (kvm_protmem_in_pool(pi, index)) {
		struct page *unmapped = kvm_protmem_pool_page(pi, index);

		if (IS_ERR(unmapped))
			return PTR_ERR(unmapped);

		*pfn = page_to_pfn(unmapped);
		*max_order = protmem_max_order(pi, index, gfn, unmapped);
		return 0;
	}

	kvm_protmem_fill_shared(pi, index, 0, ULONG_MAX);
	folio = kvm_protmem_shared_folio(pi, index);
	if (IS_ERR(folio))
		return PTR_ERR(folio);

	folio_unlock(folio);
	*page = folio_file_page(folio, index);
	*pfn = page_to_pfn(*page);
	/* Truncation waits for the invalidate_lock, so that no page of them can go. */
	if (!((*pfn ^ gfn) & (PROTMEM_BLOCK_PAGES - 1)) &&
	    protmem_block_shared(pi, index, &first) &&
	    kvm_protmem_consecutive(&inode->i_mapping->i_pages, first,
				    *page - (index - first)))
		*max_order = UNMAPPED_BLOCK_ORDER;
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

	if (pi->hidden && !kvm_protmem_all_private(pi, vmf->pgoff, vmf->pgoff))
		return protmem_fault_hidden(pi, vmf);

	if (kvm_protmem_in_pool(pi, vmf->pgoff)) {
		/* The VMA holds the file, and the file the VM. */
		atomic64_inc(&pi->kvm->stat.generic.protmem_refused);
		trace_kvm_protmem_refused(kvm_protmem_gfn(pi, vmf->pgoff));
		return VM_FAULT_SIGBUS;
	}

	kvm_protmem_fill_shared(pi, vmf->pgoff, 0, ULONG_MAX);
	folio = kvm_protmem_shared_folio(pi, vmf->pgoff);
	if (IS_ERR(folio)) {
		if (PTR_ERR(folio) == -EHWPOISON)
			return VM_FAULT_HWPOISON;
		return vmf_error(PTR_ERR(folio));
	}

	vmf->page = folio_file_page(folio, vmf->pgoff);
	return VM_FAULT_LOCKED;
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
	u64 caps;

	/* What is being enabled may still be refused. */
	scoped_guard(mutex, &kvm->lock) {
		caps = kvm->protmem.caps;
		if (flags & GUEST_MEMFD_FLAG_NO_DIRECT_MAP) {
			if (!kvm_arch_protmem_can_hide(kvm))
				return -EINVAL;
			/* For what can't be added to such a VM later. */
			kvm->protmem.unmaps = true;
		}
	}
	if (!(flags & GUEST_MEMFD_FLAG_NO_DIRECT_MAP) &&
	    (!caps || (flags & PROTMEM_GMEM_FLAGS) != PROTMEM_GMEM_FLAGS))
		return 0;

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
	pi->in_place = caps & KVM_PROTMEM_HOST_KERNEL;
	if (pi->in_place || (flags & GUEST_MEMFD_FLAG_NO_DIRECT_MAP))
		protmem_set_hidden(pi, inode);
	pi->may_hide = pi->hidden || (caps & KVM_PROTMEM_HIDE_ONLY);
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
	kvm_protmem_drop_pool(pi, 0, i_size_read(inode) >> PAGE_SHIFT);
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

	/* A slot without states would have all of its pages private, and mapped. */
	if (pi->in_place && flags != PROTMEM_SLOT_FLAGS)
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
