// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM protected memory: what changes the state of pages, or drops their contents: the
 * guest's conversions, KVM_SET_MEMORY_ATTRIBUTES2, fallocate().
 *
 * The states, the locks and the rules are described in protected_memory.c.
 */
#include <linux/kvm_host.h>
#include <linux/pagemap.h>
#include <linux/sched/signal.h>
#include <linux/unmapped_pool.h>

#include <trace/events/kvm.h>

#include "protected_memory.h"

/* The populated pages that are converted under one hold of the lock. */
#define PROTMEM_BATCH		16

/* A batch of populated pages on their way from one state to the other. */
struct protmem_batch {
	unsigned int nr;
	pgoff_t index[PROTMEM_BATCH];
	union {
		struct page *page[PROTMEM_BATCH];	/* private: of the pool */
		struct folio *folio[PROTMEM_BATCH];	/* shared */
	};
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
 * The block around @index is about to be converted in part.  What remains of it is not
 * to be lost to the guest: it stays mapped, by small entries.  Only a block that has one
 * state, which is the other one than @make_private, can have a large one.
 */
static void protmem_split_block(struct kvm_protmem_inode *pi, struct kvm_memory_slot *slot,
				pgoff_t index, bool make_private)
{
	gfn_t gfn = kvm_protmem_gfn(pi, index);
	pgoff_t first = index - (gfn & (PROTMEM_BLOCK_PAGES - 1));
	bool private;

	if (first <= index &&
	    kvm_protmem_run_end(pi, first, first + PROTMEM_BLOCK_PAGES, &private) ==
	    first + PROTMEM_BLOCK_PAGES && private != make_private)
		kvm_arch_protmem_split(pi->kvm, slot, gfn, gfn + 1);
}

/*
 * The same for the blocks at the ends of [@start, @end), the first batch of what the
 * guest wants to be converted, or a later one; all of that ends at @run.
 */
static void protmem_split_ends(struct kvm_protmem_inode *pi, struct kvm_memory_slot *slot,
			       pgoff_t start, pgoff_t end, pgoff_t run, bool make_private)
{
	gfn_t gfn = kvm_protmem_gfn(pi, start), end_gfn = gfn + (end - start);
	gfn_t run_gfn = gfn + (run - start);
	gfn_t first = ALIGN_DOWN(gfn, PROTMEM_BLOCK_PAGES);
	gfn_t last = ALIGN_DOWN(end_gfn - 1, PROTMEM_BLOCK_PAGES);

	if (first < gfn || first + PROTMEM_BLOCK_PAGES > run_gfn)
		protmem_split_block(pi, slot, start, make_private);
	if (last > first && last + PROTMEM_BLOCK_PAGES > run_gfn)
		protmem_split_block(pi, slot, end - 1, make_private);
}

/*
 * Begins a conversion of [@start, *@end) for which @guess has what was allocated, of
 * what was wanted up to @run.
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
			 struct protmem_batch *now, pgoff_t start, pgoff_t *end,
			 pgoff_t run)
{
	bool private;
	int r;

	if (slot && slot->gmem.leaving)
		return -EAGAIN;

	*end = kvm_protmem_run_end(pi, start, *end, &private);
	if (private == make_private)
		return 1;

	if (make_private) {
		protmem_collect_shared(pi, now, start, end);
	} else {
		/* With the latch closed only the guest may do that. */
		r = slot ? 0 : kvm_protmem_may_drop(pi, start, *end, &start);
		if (r)
			return r;
		protmem_collect_pool(pi, now, start, end);
	}

	*end = protmem_recheck(guess, now, start, *end);
	if (*end > start && now->nr) {
		if (slot)
			protmem_split_ends(pi, slot, start, *end, run, make_private);
		kvm_gmem_invalidate_start(pi->inode, start, *end);
	}
	return 0;
}

/* [@start, @end) has been converted, @copied pages of it by copying them. */
void kvm_protmem_converted(struct kvm_protmem_inode *pi, pgoff_t start,
			   pgoff_t end, long copied, bool private)
{
	if (end == start)
		return;

	atomic64_add(end - start, &pi->kvm->stat.generic.protmem_conversions);
	trace_kvm_protmem_convert(kvm_protmem_gfn(pi, start), end - start, copied,
				  private);
}

/*
 * Does the block around @index, which is uniform, have pages already?  If those are
 * in its home block, that is where a page for @index comes from anyway.  If they are
 * elsewhere it would not be whole with a home block either, which only a few of its
 * gfns would use: a guest that makes its memory private page by page would hold one
 * for each beside the pages it has.  The invalidate_lock may be held or not: this is
 * a hint.
 */
static bool protmem_has_pages(struct kvm_protmem_inode *pi, pgoff_t index,
			      gfn_t gfn)
{
	unsigned long first = index - (gfn & (PROTMEM_BLOCK_PAGES - 1)), at = first;

	return xa_find(&pi->pages, &at, first + PROTMEM_BLOCK_PAGES - 1, XA_PRESENT);
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

	if (kvm_protmem_converts_in_place(pi))
		return kvm_protmem_convert_in_place(pi, pos, end, true, slot);

	filemap_invalidate_lock_shared(mapping);
	end = kvm_protmem_run_end(pi, start, end, &private);
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
		gfn_t gfn = kvm_protmem_gfn(pi, b.index[i]);
		/* The next batches are going to become private, too. */
		bool uniform = kvm_protmem_block_uniform(pi, b.index[i], gfn,
							 start, run) &&
			       !protmem_has_pages(pi, b.index[i], gfn);

		filemap_invalidate_unlock_shared(mapping);
		b.page[i] = kvm_protmem_alloc_page(pi, b.index[i], gfn, uniform);
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

	r = protmem_begin(pi, slot, true, &b, &now, start, &end, run);
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
		 * its entry by the time that we have the folio lock.  A dirty
		 * entry that is going away counts as long as a TLB may have it
		 * (tlb_delay_rmap()), so no write is lost by not looking.
		 */
		if (folio_mapped(folio))
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

	if (end > start && kvm_protmem_store_state(pi, start, end, true)) {
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
			kvm_protmem_drop_shared(pi, start, end);
		kvm_gmem_invalidate_end(pi->inode, start, zapped);
	}
	/* The pages before @end are done; what failed is found again. */
	if (end > start)
		r = 0;

	for (j = 0, i = 0; j < b.nr; j++)
		i += used[j];
	kvm_protmem_account_pool(pi, i);
	kvm_protmem_converted(pi, start, end, i, true);
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
	kvm_protmem_account_blocks(pi);

	return r;
}

/*
 * A page that goes back and forth all the time would have its block mapped by one
 * entry and split again each time.  What leaves as a whole can come back as a whole.
 */
static void protmem_note_shared(struct kvm_protmem_inode *pi, pgoff_t index)
{
	gfn_t gfn = kvm_protmem_gfn(pi, index);
	pgoff_t off = gfn & (PROTMEM_BLOCK_PAGES - 1);
	pgoff_t end = index - off + PROTMEM_BLOCK_PAGES;
	bool private;

	lockdep_assert_held_write(&pi->inode->i_mapping->invalidate_lock);

	if (gfn == ~0ULL || index < off)
		return;
	if (kvm_protmem_run_end(pi, index - off, end, &private) == end && !private)
		xa_erase(&pi->shared_at, gfn >> UNMAPPED_BLOCK_ORDER);
	else
		/* For a hint nothing is reclaimed, and nobody killed. */
		xa_store(&pi->shared_at, gfn >> UNMAPPED_BLOCK_ORDER,
			 xa_mk_value((u32)jiffies), GFP_NOWAIT | __GFP_ACCOUNT);
}

/*
 * Gives back the pages of a batch, those in @clean as they are, and those that are
 * next to each other at once.
 */
static void protmem_free_batch(struct kvm_protmem_inode *pi, struct page **page,
			       unsigned int nr, unsigned long clean)
{
	unsigned int i, n;

	for (i = 0; i < nr; i += n) {
		bool is_clean = test_bit(i, &clean);

		for (n = 1; i + n < nr && page[i + n] == page[i] + n &&
		     test_bit(i + n, &clean) == is_clean; n++)
			;
		if (is_clean)
			unmapped_pool_free_clean(pi->pool, page[i], n);
		else
			unmapped_pool_free_range(pi->pool, page[i], n);
	}
}

/*
 * Is the pool's page one of zeroes, and going to remain one?  The second stage has been
 * zapped; whoever else holds the page may write to it yet.  Returns 0 if not, 1 if so;
 * or an error.
 */
static int protmem_is_zero(struct page *page)
{
	if (page_count(page) > 1)
		return 0;
	/* Accesses of those who have dropped their reference come first. */
	smp_acquire__after_ctrl_dep();
	return unmapped_page_is_zero(page);
}

/*
 * Makes a private block of zeroes, [@start, @end), shared at once: that is most of what
 * a guest clears and shares at boot.  Nothing of it is copied or allocated, so that it
 * need not be done in batches.  Returns the first page of the block, for the caller to
 * give back; or NULL, and nothing has happened, if it is not one, or there is something
 * that protmem_make_shared() has to say.  @slot is NULL for userspace.
 */
static struct page *protmem_share_zero_block(struct kvm_protmem_inode *pi,
					     pgoff_t start, pgoff_t end,
					     struct kvm_memory_slot *slot)
{
	struct address_space *mapping = pi->inode->i_mapping;
	struct page *page;
	pgoff_t i;

	guard(rwsem_write)(&mapping->invalidate_lock);

	if (slot ? slot->gmem.leaving : kvm_protmem_may_drop(pi, start, end, &start))
		return NULL;

	page = xa_load(&pi->pages, start);
	/* The guest may write to it yet, but in most cases its ends say enough. */
	if (!page || !kvm_protmem_all_private(pi, start, end - 1) ||
	    !kvm_protmem_consecutive(&pi->pages, start, page) ||
	    protmem_is_zero(page) <= 0 || protmem_is_zero(page + (end - 1 - start)) <= 0)
		return NULL;

	kvm_gmem_invalidate_start(pi->inode, start, end);
	for (i = start; i < end && protmem_is_zero(page + (i - start)) > 0; i++)
		cond_resched();
	if (i == end && !kvm_protmem_store_state(pi, start, end, false)) {
		for (i = start; i < end; i++)
			xa_erase(&pi->pages, i);
		protmem_note_shared(pi, start);
		kvm_protmem_account_pool(pi, -(long)(end - start));
		kvm_protmem_converted(pi, start, end, 0, false);
	} else {
		page = NULL;
	}
	kvm_gmem_invalidate_end(pi->inode, start, end);

	return page;
}

/*
 * Makes the private pages of [*@pos, @end) shared and keeps their contents,
 * one batch of them.  @slot is NULL for userspace.
 *
 * A page of zeroes becomes a hole, which reads the same: a guest clears its bounce
 * buffers, shares them at boot, and uses few of them.
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
	pgoff_t start = *pos, run, zapped;
	unsigned int i, j, done = 0, copied;
	unsigned long zero = 0;
	bool private, whole;
	int r = 0;

	BUILD_BUG_ON(PROTMEM_BATCH > BITS_PER_LONG);
	if (kvm_protmem_converts_in_place(pi))
		return kvm_protmem_convert_in_place(pi, pos, end, false, slot);

	filemap_invalidate_lock_shared(mapping);
	end = kvm_protmem_run_end(pi, start, end, &private);
	run = end;
	if (!private) {
		filemap_invalidate_unlock_shared(mapping);
		*pos = end;
		return 0;
	}
	whole = end - start >= PROTMEM_BLOCK_PAGES &&
		!(kvm_protmem_gfn(pi, start) & (PROTMEM_BLOCK_PAGES - 1));
	filemap_invalidate_unlock_shared(mapping);

	if (whole) {
		struct page *block;

		block = protmem_share_zero_block(pi, start, start + PROTMEM_BLOCK_PAGES,
						 slot);
		if (block) {
			unmapped_pool_free_clean(pi->pool, block, PROTMEM_BLOCK_PAGES);
			kvm_protmem_account_blocks(pi);
			*pos = start + PROTMEM_BLOCK_PAGES;
			return 0;
		}
	}

	filemap_invalidate_lock_shared(mapping);
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

	r = protmem_begin(pi, slot, false, &b, &now, start, &end, run);
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
			r = protmem_is_zero(page);
		if (r > 0) {
			__set_bit(i, &zero);
			folio_put(folio);
			b.folio[j] = NULL;
			r = 0;
			continue;
		}
		if (!r)
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
	copied = done - hweight_long(zero);
	kvm_protmem_account_shared(pi, copied);

	if (end > start && kvm_protmem_store_state(pi, start, end, false)) {
		r = -ENOMEM;
		end = start;
	}
	if (end == start) {
		for (i = 0; i < done; i++) {
			struct folio *folio;

			if (test_bit(i, &zero))
				continue;
			folio = filemap_lock_folio(mapping, now.index[i]);
			if (WARN_ON_ONCE(IS_ERR(folio)))
				continue;
			clear_highpage(folio_page(folio, 0));
			folio_unlock(folio);
			folio_put(folio);
		}
		if (done)
			kvm_protmem_drop_shared(pi, start, now.index[done - 1] + 1);
		done = 0;
		copied = 0;
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

	kvm_protmem_account_pool(pi, -(long)done);
	kvm_protmem_converted(pi, start, end, copied, false);
	*pos = end;
out_unlock:
	filemap_invalidate_unlock(mapping);

	protmem_free_batch(pi, now.page, done, zero);

	for (j = 0; j < b.nr; j++) {
		if (!b.folio[j])
			continue;
		/* It may hold a copy of what remains private. */
		clear_highpage(folio_page(b.folio[j], 0));
		folio_put(b.folio[j]);
	}
	kvm_protmem_account_blocks(pi);

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

	r = kvm_protmem_may_drop(pi, start, end, pos);
	if (!r && kvm_protmem_converts_in_place(pi))
		r = kvm_protmem_may_free_in_place(pi, start, &end);
	if (r)
		goto out;

	populated = mapping->nrpages || !xa_empty(&pi->pages);
	if (populated)
		end = min(end, start + PROTMEM_DROP_SPAN);

	if (how != PROTMEM_DROP_PUNCH) {
		r = kvm_protmem_store_state(pi, start, end,
					    how == PROTMEM_DROP_TO_PRIVATE);
		if (r)
			goto out;
		atomic64_add(end - start,
			     &pi->kvm->stat.generic.protmem_conversions);
	}

	if (populated) {
		kvm_gmem_invalidate_start(pi->inode, start, end);
		kvm_protmem_drop_shared(pi, start, end);
		kvm_protmem_drop_pool(pi, start, end);
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
	r = kvm_protmem_may_drop(pi, start, end, &start);
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
	pgoff_t first = start;

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

			kvm_protmem_fill_shared(pi, start, first, end);
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
		r = kvm_protmem_may_drop(pi, pos, end, &pos);
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
	end = kvm_protmem_run_end(pi, start, end, &private);
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
