// SPDX-License-Identifier: GPL-2.0
/*
 * Pools of pages that the kernel cannot address.
 *
 * An unmapped page has no entry in the kernel's direct map nor in any other
 * kernel alias, and no CPU has a TLB entry for one: a stray pointer or a
 * speculative load in the kernel cannot reach its contents.  The owner of a
 * pool, for example KVM on behalf of one VM, maps the pages where they are to
 * be used, and otherwise accesses them by the window (unmapped_page_read() and
 * the like).
 *
 * Blocks.  Changing the direct map costs a TLB flush on all CPUs, and changing
 * single pages shatters its large entries.  So pages are taken in blocks of the
 * size of a large entry when the buddy allocator has one, in smaller blocks if
 * not.  A block is taken off the direct map as a whole and is given back as a
 * whole; in between it serves one pool only.  Its pages are split: each has a
 * reference count, of which the block owns one.  The owner of the pool may take
 * more.
 *
 * Page states, by block->state[]:
 *
 *   FREE		zeroed, for any gfn of the pool
 *   RESERVED		zeroed, not handed out yet; for its gfn in a home block
 *   USED		handed out
 *   QUARANTINED	given back, but someone still holds a reference; or the
 *			block could not be put back on the direct map
 *   POISONED		has a memory error: stays off the direct map for good
 *   RETURNED		gone back to the buddy allocator (of a block that has
 *			POISONED pages, which are all that is left of it)
 *
 *			 alloc
 *	FREE, RESERVED --------> USED ----> QUARANTINED ----> POISONED
 *	     ^ ^		  | free	 |		  ^
 *	     | +------------------+		 |		  |
 *	     +-----------------------------------+	from any state but
 *		      scrubbed				RETURNED
 *
 * A home block belongs to one naturally aligned range of gfns, the page for
 * each gfn being at the offset that the gfn has in the range.  So the range can
 * be mapped by one large entry on the side of the owner, as long as all of it is
 * what the owner has for these gfns: only the owner knows that.
 *
 * Invariants:
 *
 *  - A page is in the lookup (unmapped_blocks) before it is taken off the direct
 *    map, and until it is back on.  (Of a block with poisoned pages that goes back
 *    these are put in anew: for that moment a fault on one is not reported.)
 *  - FREE and RESERVED pages are zero.  Whatever was USED is scrubbed through
 *    the window, when the last foreign reference has gone, before the pool uses
 *    it again and before it is mapped.
 *  - What goes back to the buddy allocator is mapped.  If mapping it fails, it
 *    is kept and counted as quarantined, and tried again.
 *  - Every page off the direct map is counted in unmapped_pages, and in the
 *    nr_pages of its pool.
 *
 * Locks, from the outside in:
 *
 *	pool->ops_lock		for read around callbacks, for write to end
 *				them; no other lock of the pool is held then.
 *				mf_mutex is held outside of it, and the owner
 *				takes locks inside of it
 *
 *	locks of the owner	under which it allocates and gives back pages
 *	  pool->grow_lock	nobody else adds a block without a home
 *	  pool->home_lock[]	one by the range: nobody else adds a home block
 *				for it.  Ranges apart grow at the same time.
 *				Memory is allocated and cleared under one of
 *				these two.  What the architecture asks about it
 *				may take a lock (arm64: kvm_hyp_pgd_mutex)
 *	    pool->lock		all lists, block and page states of the pool
 *	      xa_lock		of unmapped_blocks
 *	      those of the	of set_direct_map_valid_noflush(), under which
 *	      direct map	it may allocate memory for a page table (arm64:
 *				pgtable_split_lock)
 *
 *	unmapped_pm_mutex	that no pool comes into being during hibernation
 *	unmapped_window_mutex	that the windows are set up once
 *	unmapped_pools_lock	(spinlock) the list of pools
 *
 * No other of these locks is taken inside of the last three.  The shrinker takes
 * none of those above them, and leaves the work to a worker: all may be held by
 * who allocates memory, thus reclaims.
 *
 * References to the pool: one for its creator, one for each block, one for the
 * pending work.  Blocks and pools are freed after an RCU grace period, because
 * the lookup is lock-free: it is used by the page fault handler.
 */
#define pr_fmt(fmt) "unmapped_pool: " fmt

#include <kunit/static_stub.h>
#include <kunit/visibility.h>
#include <linux/cpuset.h>
#include <linux/hash.h>
#include <linux/highmem.h>
#include <linux/kernel.h>
#include <linux/kobject.h>
#include <linux/kvm_types.h>
#include <linux/list.h>
#include <linux/memcontrol.h>
#include <linux/mempolicy.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/ptrace.h>
#include <linux/rbtree.h>
#include <linux/rwsem.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/set_memory.h>
#include <linux/shrinker.h>
#include <linux/slab.h>
#include <linux/suspend.h>
#include <linux/sysfs.h>
#include <linux/unmapped_window.h>
#include <linux/vmalloc.h>
#include <linux/workqueue.h>
#include <linux/xarray.h>

#include <asm/tlbflush.h>

#include "internal.h"
#include "page_alloc.h"
#include "unmapped_pool.h"

#define CREATE_TRACE_POINTS
#include <trace/events/unmapped_pool.h>

enum unmapped_state {
	UNMAPPED_FREE,
	UNMAPPED_RESERVED,
	UNMAPPED_USED,
	UNMAPPED_QUARANTINED,
	UNMAPPED_POISONED,
	UNMAPPED_RETURNED,
	UNMAPPED_NR_STATES
};

enum unmapped_phase {
	UNMAPPED_SETUP,		/* on its way off the direct map */
	UNMAPPED_READY,		/* off the direct map */
	UNMAPPED_BROKEN,	/* neither quite on nor quite off: to be given back */
};

#define UNMAPPED_NO_HOME	(~0ULL)
/* Blocks without a page in use that a pool keeps. */
#define UNMAPPED_KEEP_IDLE	1
/* Pause after reclaim and compaction did not make a large block. */
#define UNMAPPED_LARGE_BACKOFF	HZ
/* And after the allocator had nothing on the node that the policy prefers. */
#define UNMAPPED_NODE_BACKOFF	HZ
/* For so many ranges at most a pool is given home blocks at the same time; 2^n. */
#define UNMAPPED_HOME_LOCKS	16
/* How often what a pool has just grown by may be of no use, as of the wrong node. */
#define UNMAPPED_MAX_TRIES	3

struct unmapped_block {
	struct unmapped_pool	*pool;
	u64			owner_id;	/* of the pool; for the fault report */
	unsigned long		pfn;
	unsigned int		order;
	enum unmapped_phase	phase;
	u64			home;		/* first gfn of the range, or NO_HOME */
	struct rb_node		home_node;	/* in pool->homes unless NO_HOME */
	struct list_head	node;		/* pool->blocks */
	struct list_head	partial_node;	/* pool->partial: READY, has FREE pages */
	struct list_head	retry_node;	/* pool->retry: QUARANTINED or BROKEN */
	struct list_head	idle_node;	/* pool->idle: READY, can be given back */
	unsigned int		nr_idle;	/* this block's part of unmapped_idle_pages */
	unsigned int		nr[UNMAPPED_NR_STATES];
	unsigned int		first_free;	/* none is FREE below */
	struct rcu_head		rcu;
	u8			state[];	/* enum unmapped_state */
};

struct unmapped_pool {
	refcount_t		refs;
	u64			owner_id;
	struct mem_cgroup	*memcg;
	struct mutex		home_lock[UNMAPPED_HOME_LOCKS];
	struct mutex		grow_lock;
	unsigned long		large_after;	/* jiffies; a hint, by no lock */
	struct mutex		lock;		/* everything from here to retry_work */
	unsigned long		any_node_until;	/* jiffies */
	bool			dead;		/* the creator's reference has gone */
	unsigned long		nr_pages;	/* off the direct map */
	unsigned int		nr_idle_blocks;
	unsigned long		nr_loose;	/* FREE pages in blocks that are not idle */
	struct list_head	blocks;
	struct list_head	partial;
	struct list_head	retry;
	struct list_head	idle;
	struct rb_root		homes;
	struct delayed_work	retry_work;

	struct rw_semaphore	ops_lock;
	const struct unmapped_pool_ops *ops;
	void			*priv;

	struct list_head	pools_node;	/* unmapped_pools_list */
	struct rcu_head		rcu;
};

/* pfn -> block; who looks into the block needs RCU, or a reference to a page. */
static DEFINE_XARRAY(unmapped_blocks);

static DEFINE_SPINLOCK(unmapped_pools_lock);
static LIST_HEAD(unmapped_pools_list);
static atomic_t unmapped_nr_pools;

/* No pool comes into being while hibernation is under way. */
static DEFINE_MUTEX(unmapped_pm_mutex);
static bool unmapped_pm_blocked;

/* Jiffies until blocks with quarantined pages are looked at again. */
VISIBLE_IF_KUNIT unsigned long unmapped_retry_delay = HZ / 2;

static atomic_long_t unmapped_pages;
static atomic_long_t unmapped_idle_pages;
static atomic_long_t unmapped_quarantined_pages;
static atomic64_t unmapped_refused;
static atomic64_t unmapped_lost;

/* Block and page states */

static unsigned int block_pages(const struct unmapped_block *b)
{
	return 1U << b->order;
}

static struct page *block_page(const struct unmapped_block *b, unsigned int i)
{
	return pfn_to_page(b->pfn + i);
}

static bool is_poisoned(const struct unmapped_block *b, unsigned int i)
{
	return b->state[i] == UNMAPPED_POISONED;
}

static bool is_quarantined(u8 state)
{
	return state == UNMAPPED_QUARANTINED || state == UNMAPPED_POISONED;
}

static void set_page_state(struct unmapped_block *b, unsigned int i,
			   enum unmapped_state new)
{
	enum unmapped_state old = b->state[i];

	lockdep_assert_held(&b->pool->lock);

	b->nr[old]--;
	b->nr[new]++;
	b->state[i] = new;
	if (new == UNMAPPED_FREE)
		b->first_free = min(b->first_free, i);

	if (is_quarantined(new) != is_quarantined(old))
		atomic_long_add(is_quarantined(new) ? 1 : -1, &unmapped_quarantined_pages);
}

/* What of a block is where it may be given back, or taken by anyone. */
static unsigned int block_nr_unused(const struct unmapped_block *b)
{
	return b->nr[UNMAPPED_FREE] + b->nr[UNMAPPED_RESERVED];
}

static bool block_is_idle(const struct unmapped_block *b)
{
	return b->phase == UNMAPPED_READY && block_nr_unused(b) &&
	       !b->nr[UNMAPPED_USED] && !b->nr[UNMAPPED_QUARANTINED];
}

static void update_list(struct list_head *node, struct list_head *head, bool on)
{
	if (on == !list_empty(node))
		return;
	if (on)
		list_add(node, head);
	else
		list_del_init(node);
}

static unsigned int block_nr_loose(const struct unmapped_block *b)
{
	return b->phase == UNMAPPED_READY && !b->nr_idle ? b->nr[UNMAPPED_FREE] : 0;
}

/*
 * Change the state of pages of a block only between block_begin() and
 * block_end(), which bring everything in line that is derived from it.
 */
static void block_begin(struct unmapped_block *b)
{
	b->pool->nr_loose -= block_nr_loose(b);
}

static void block_end(struct unmapped_block *b)
{
	struct unmapped_pool *pool = b->pool;
	unsigned int nr_idle = block_is_idle(b) ? block_nr_unused(b) : 0;

	if (!nr_idle != !b->nr_idle)
		pool->nr_idle_blocks += nr_idle ? 1 : -1;
	atomic_long_add((long)nr_idle - (long)b->nr_idle, &unmapped_idle_pages);
	b->nr_idle = nr_idle;
	pool->nr_loose += block_nr_loose(b);

	update_list(&b->partial_node, &pool->partial,
		    b->phase == UNMAPPED_READY && b->nr[UNMAPPED_FREE]);
	update_list(&b->retry_node, &pool->retry,
		    b->phase == UNMAPPED_BROKEN || b->nr[UNMAPPED_QUARANTINED]);
	update_list(&b->idle_node, &pool->idle, nr_idle);

	/* Fill up other blocks first, so that this one can go. */
	if (nr_idle && !list_empty(&b->partial_node))
		list_move_tail(&b->partial_node, &pool->partial);
}

static int home_cmp(const void *key, const struct rb_node *node)
{
	u64 home = *(const u64 *)key;
	const struct unmapped_block *b = rb_entry(node, struct unmapped_block, home_node);

	return home < b->home ? -1 : home > b->home;
}

static struct unmapped_block *find_home(struct unmapped_pool *pool, u64 gfn)
{
	u64 home = ALIGN_DOWN(gfn, 1ULL << UNMAPPED_BLOCK_ORDER);
	struct rb_node *node = rb_find(&home, &pool->homes, home_cmp);

	return node ? rb_entry(node, struct unmapped_block, home_node) : NULL;
}

static bool home_less(struct rb_node *a, const struct rb_node *b)
{
	return rb_entry(a, struct unmapped_block, home_node)->home <
	       rb_entry(b, struct unmapped_block, home_node)->home;
}

/*
 * Dedicate an idle block to the range of @gfn, or to none if @gfn is NO_HOME:
 * its reserved pages become free, or the other way round.
 */
static void block_set_home(struct unmapped_block *b, u64 gfn)
{
	enum unmapped_state from = UNMAPPED_RESERVED, to = UNMAPPED_FREE;
	unsigned int i;

	if (b->home != UNMAPPED_NO_HOME)
		rb_erase(&b->home_node, &b->pool->homes);
	b->home = UNMAPPED_NO_HOME;

	if (gfn != UNMAPPED_NO_HOME) {
		b->home = ALIGN_DOWN(gfn, 1ULL << UNMAPPED_BLOCK_ORDER);
		rb_add(&b->home_node, &b->pool->homes, home_less);
		swap(from, to);
	}

	for (i = 0; i < block_pages(b); i++) {
		if (b->state[i] == from)
			set_page_state(b, i, to);
	}
}

/* The direct map */

VISIBLE_IF_KUNIT int unmapped_set_valid(unsigned long pfn, unsigned int nr, bool valid)
{
	KUNIT_STATIC_STUB_REDIRECT(unmapped_set_valid, pfn, nr, valid);

	return set_direct_map_valid_noflush(pfn_to_page(pfn), nr, valid);
}

/*
 * Success does not prove that anything has changed.  A look at the first page
 * is cheap enough for always; a large entry has nothing more to show anyway.
 */
static bool range_has_presence(unsigned long pfn, unsigned int nr, bool present)
{
	unsigned int i, step = IS_ENABLED(CONFIG_DEBUG_VM) ? 1 : nr;

	for (i = 0; i < nr; i += step) {
		if (WARN_ON_ONCE(kernel_page_present(pfn_to_page(pfn + i)) != present))
			return false;
	}
	return true;
}

/* Take a whole block off the direct map.  Not under pool->lock: it is slow. */
static int zap_block(struct unmapped_block *b)
{
	int ret;

	ret = unmapped_set_valid(b->pfn, block_pages(b), false);
	/*
	 * Flush even after failure: a part may have been done.  Entries for
	 * pages that are mapped again later would be right, but not while the
	 * block is stuck half way.
	 *
	 * And flush all: flush_tlb_kernel_range() may flush single pages, which
	 * on x86 with PCIDs drops entries that other address spaces have cached
	 * only if these are global.  Those of pages that have been off the
	 * direct map before are not.
	 */
	flush_tlb_all();
	/* Mappings by an earlier user of the pages that vunmap() was lazy about. */
	vm_unmap_aliases();

	if (!ret && !range_has_presence(b->pfn, block_pages(b), false))
		ret = -EIO;
	return ret;
}

/* Put back all pages but the poisoned ones.  Harmless if some are back already. */
static int restore_block(struct unmapped_block *b)
{
	unsigned int start, end, nr = block_pages(b);
	int ret;

	for (start = 0; start < nr; start = end) {
		bool poisoned = is_poisoned(b, start);

		for (end = start + 1; end < nr; end++) {
			if (is_poisoned(b, end) != poisoned)
				break;
		}
		if (poisoned)
			continue;

		/* Without poison one large entry, or small ones: cannot fail. */
		ret = unmapped_set_valid(b->pfn + start, end - start, true);
		if (!ret && !range_has_presence(b->pfn + start, end - start, true))
			ret = -EIO;
		if (ret)
			return ret;
	}
	return 0;
}

/* Blocks */

static int lookup_insert(struct unmapped_block *b)
{
	XA_STATE_ORDER(xas, &unmapped_blocks, b->pfn, b->order);

	do {
		xas_lock(&xas);
		xas_store(&xas, b);
		xas_unlock(&xas);
	} while (xas_nomem(&xas, GFP_KERNEL));

	return xas_error(&xas);
}

static void lookup_erase(struct unmapped_block *b)
{
	XA_STATE_ORDER(xas, &unmapped_blocks, b->pfn, b->order);

	xas_lock(&xas);
	xas_store(&xas, NULL);
	xas_unlock(&xas);
}

static void account_pages(struct unmapped_pool *pool, long nr)
{
	lockdep_assert_held(&pool->lock);

	WRITE_ONCE(pool->nr_pages, pool->nr_pages + nr);
	atomic_long_add(nr, &unmapped_pages);
}

static void schedule_retry(struct unmapped_pool *pool)
{
	refcount_inc(&pool->refs);
	if (!queue_delayed_work(system_dfl_wq, &pool->retry_work, unmapped_retry_delay))
		refcount_dec(&pool->refs);	/* not the last: the caller has one */
}

static void free_block(struct unmapped_block *b)
{
	struct unmapped_pool *pool = b->pool;

	list_del(&b->node);
	kfree_rcu(b, rcu);
	refcount_dec(&pool->refs);		/* not the last: the caller has one */
}

/*
 * Give back a block of which no page is in use.  Of a block with poisoned pages
 * these remain, and with them the pool.
 *
 * Returns the number of pages given back: 0 if they could not be mapped.
 */
static unsigned long release_block(struct unmapped_block *b)
{
	struct unmapped_pool *pool = b->pool;
	unsigned int i, nr = block_pages(b), nr_back = block_nr_unused(b);
	int ret;

	lockdep_assert_held(&pool->lock);
	if (WARN_ON_ONCE(b->phase == UNMAPPED_SETUP || b->nr[UNMAPPED_USED] ||
			 b->nr[UNMAPPED_QUARANTINED] || b->nr[UNMAPPED_RETURNED]))
		return 0;

	ret = restore_block(b);

	block_begin(b);
	block_set_home(b, UNMAPPED_NO_HOME);
	for (i = 0; i < nr; i++) {
		if (b->state[i] == UNMAPPED_FREE)
			set_page_state(b, i, ret ? UNMAPPED_QUARANTINED : UNMAPPED_RETURNED);
	}
	b->phase = ret ? UNMAPPED_BROKEN : UNMAPPED_READY;
	block_end(b);

	if (ret) {
		pr_warn_ratelimited("block at pfn %#lx cannot be mapped again (%d), will retry\n",
				    b->pfn, ret);
		schedule_retry(pool);
		return 0;
	}

	/* Before anyone else can have the pages. */
	account_pages(pool, -(long)nr_back);
	lookup_erase(b);

	if (!b->nr[UNMAPPED_POISONED]) {
		__free_contig_range(b->pfn, nr);
		free_block(b);
		return nr_back;
	}

	/* First all of the poisoned ones: the lookup must not find the others. */
	for (i = 0; i < nr; i++) {
		/* Rare, and there is no way back. */
		if (is_poisoned(b, i))
			xa_store(&unmapped_blocks, b->pfn + i, b, GFP_KERNEL | __GFP_NOFAIL);
	}
	for (i = 0; i < nr; i++) {
		if (b->state[i] == UNMAPPED_RETURNED)
			__free_page(block_page(b, i));
	}
	return nr_back;
}

/* Scrub and free what is not referenced any more; retry what was stuck. */
static void recheck_block(struct unmapped_block *b)
{
	unsigned int i;

	lockdep_assert_held(&b->pool->lock);

	block_begin(b);
	for (i = 0; i < block_pages(b); i++) {
		struct page *page = block_page(b, i);

		if (b->state[i] != UNMAPPED_QUARANTINED || page_count(page) > 1)
			continue;
		/* Accesses of the one who dropped the reference come first. */
		smp_acquire__after_ctrl_dep();

		if (PageHWPoison(page)) {
			set_page_state(b, i, UNMAPPED_POISONED);
			continue;
		}
		/* Of a broken block all pages have been scrubbed. */
		if (b->phase != UNMAPPED_BROKEN && unmapped_page_clear(page))
			continue;
		set_page_state(b, i, UNMAPPED_FREE);
	}
	block_end(b);

	if (b->phase == UNMAPPED_BROKEN && !b->nr[UNMAPPED_QUARANTINED])
		release_block(b);
}

/* Give back idle blocks, down to what the pool may keep. */
static void trim_pool(struct unmapped_pool *pool)
{
	unsigned int keep = pool->dead ? 0 : UNMAPPED_KEEP_IDLE;
	struct unmapped_block *b;

	while (pool->nr_idle_blocks > keep) {
		b = list_last_entry(&pool->idle, struct unmapped_block, idle_node);
		if (!release_block(b) && b->phase != UNMAPPED_BROKEN)
			break;
	}
}

static void recheck_pool(struct unmapped_pool *pool, unsigned int max_blocks)
{
	struct unmapped_block *b, *next;

	list_for_each_entry_safe(b, next, &pool->retry, retry_node) {
		if (!max_blocks--)
			break;
		recheck_block(b);
	}
}

static void free_pool(struct unmapped_pool *pool)
{
	unsigned int i;

	spin_lock(&unmapped_pools_lock);
	list_del(&pool->pools_node);
	spin_unlock(&unmapped_pools_lock);

	WARN_ON_ONCE(pool->nr_pages || !list_empty(&pool->blocks));
	mem_cgroup_put(pool->memcg);
	mutex_destroy(&pool->lock);
	mutex_destroy(&pool->grow_lock);
	for (i = 0; i < UNMAPPED_HOME_LOCKS; i++)
		mutex_destroy(&pool->home_lock[i]);
	atomic_dec(&unmapped_nr_pools);
	kfree_rcu(pool, rcu);
}

static void put_pool(struct unmapped_pool *pool)
{
	if (refcount_dec_and_test(&pool->refs))
		free_pool(pool);
}

static void unmapped_retry_work(struct work_struct *work)
{
	struct unmapped_pool *pool = container_of(to_delayed_work(work),
						  struct unmapped_pool, retry_work);

	mutex_lock(&pool->lock);
	recheck_pool(pool, UINT_MAX);
	trim_pool(pool);
	if (!list_empty(&pool->retry))
		schedule_retry(pool);
	mutex_unlock(&pool->lock);

	put_pool(pool);
}

static struct page *alloc_order_policy(struct mempolicy *pol, pgoff_t ilx, gfp_t gfp,
				       unsigned int order)
{
#ifdef CONFIG_NUMA
	if (pol) {
		struct page *page;

		/* Interleave by blocks, not by what page of it comes first. */
		page = alloc_hooks(alloc_pages_mpol(gfp, order, pol, ilx >> order,
						    numa_node_id()));
		if (page)
			set_page_refcounted(page);
		return page;
	}
#endif
	return alloc_pages(gfp, order);
}

/*
 * Memory that may not be used is held until something better is found.  This
 * ends, since there is only so much of it.
 */
VISIBLE_IF_KUNIT struct page *unmapped_alloc_order(struct mempolicy *pol, pgoff_t ilx,
						   gfp_t gfp, unsigned int order)
{
	struct page *page, *next;
	LIST_HEAD(held);

	KUNIT_STATIC_STUB_REDIRECT(unmapped_alloc_order, pol, ilx, gfp, order);

	for (;;) {
		unsigned long i, nr = 1UL << order;

		page = alloc_order_policy(pol, ilx, gfp, order);
		if (!page)
			break;

		for (i = 0; i < nr && !PageHWPoison(page + i); i++)
			;
		if (i == nr && arch_unmapped_range_allowed(page_to_pfn(page), nr))
			break;

		list_add(&page->lru, &held);
	}

	if (page)
		split_page(page, order);

	while (!list_empty(&held)) {
		next = list_first_entry(&held, struct page, lru);
		list_del(&next->lru);
		__free_pages(next, order);
	}
	return page;
}

/* One modest attempt now and then is all the effort that a large block is worth. */
static gfp_t large_block_gfp(struct unmapped_pool *pool, gfp_t gfp)
{
	gfp |= __GFP_NORETRY | __GFP_NOWARN;
	if (time_before(jiffies, READ_ONCE(pool->large_after)))
		gfp &= ~__GFP_DIRECT_RECLAIM;
	return gfp;
}

static void large_block_failed(struct unmapped_pool *pool, gfp_t gfp)
{
	if (gfp & __GFP_DIRECT_RECLAIM)
		WRITE_ONCE(pool->large_after, jiffies + UNMAPPED_LARGE_BACKOFF);
}

static struct page *alloc_block_pages(struct unmapped_pool *pool, struct mempolicy *pol,
				      pgoff_t ilx, gfp_t gfp, bool large, unsigned int *order)
{
	gfp_t large_gfp;
	struct page *page;

	/* Unmovable, and nothing that the caller may have set for other reasons. */
	gfp &= ~(GFP_ZONEMASK | __GFP_MOVABLE | __GFP_RECLAIMABLE | __GFP_COMP |
		 __GFP_NOFAIL | __GFP_RETRY_MAYFAIL);
	/* Cleared later: memory that can't be charged is not worth it. */
	gfp &= ~__GFP_ZERO;
	gfp |= __GFP_ACCOUNT;

	/* A large block, what there is, and then a page. */
	*order = UNMAPPED_BLOCK_ORDER;
	large_gfp = large_block_gfp(pool, gfp);
	page = unmapped_alloc_order(pol, ilx, large_gfp, *order);
	if (page)
		return page;
	large_block_failed(pool, large_gfp);
	if (large)
		return NULL;

	while (--*order) {
		page = unmapped_alloc_order(pol, ilx,
					    (gfp & ~__GFP_DIRECT_RECLAIM) | __GFP_NOWARN,
					    *order);
		if (page)
			return page;
	}
	return unmapped_alloc_order(pol, ilx, gfp, 0);
}

static struct mutex *home_lock(struct unmapped_pool *pool, u64 gfn)
{
	/* vCPUs that go through their parts of the memory in step should not meet. */
	return &pool->home_lock[hash_64(gfn >> UNMAPPED_BLOCK_ORDER,
					ilog2(UNMAPPED_HOME_LOCKS))];
}

/*
 * Add a block; one of full size for the range of @gfn unless that is NO_HOME.
 * Returns with pool->lock held, error or not, so that nobody is faster to take
 * from the block than who has added it.
 */
static int grow_pool(struct unmapped_pool *pool, u64 gfn, struct mempolicy *pol,
		     pgoff_t ilx, gfp_t gfp)
{
	bool home = gfn != UNMAPPED_NO_HOME;
	struct mem_cgroup *old_memcg;
	struct unmapped_block *b;
	unsigned int i, order;
	struct page *page;
	int ret;

	lockdep_assert_held(home ? home_lock(pool, gfn) : &pool->grow_lock);

	old_memcg = set_active_memcg(pool->memcg);
	page = alloc_block_pages(pool, pol, ilx, gfp, home, &order);
	b = page ? kzalloc(struct_size(b, state, 1UL << order), gfp | __GFP_ACCOUNT) : NULL;
	set_active_memcg(old_memcg);
	if (!b) {
		ret = -ENOMEM;
		goto err;
	}

	for (i = 0; i < 1U << order; i++) {
		clear_highpage(page + i);
		cond_resched();
	}

	b->pool = pool;
	b->owner_id = pool->owner_id;
	b->pfn = page_to_pfn(page);
	b->order = order;
	b->phase = UNMAPPED_SETUP;
	b->home = UNMAPPED_NO_HOME;
	INIT_LIST_HEAD(&b->partial_node);
	INIT_LIST_HEAD(&b->retry_node);
	INIT_LIST_HEAD(&b->idle_node);
	b->nr[UNMAPPED_FREE] = block_pages(b);
	BUILD_BUG_ON(UNMAPPED_FREE);

	ret = lookup_insert(b);
	if (ret)
		goto err;

	/* From here on memory_failure() finds the block, so it has to be in order. */
	mutex_lock(&pool->lock);
	refcount_inc(&pool->refs);
	list_add(&b->node, &pool->blocks);
	account_pages(pool, block_pages(b));
	mutex_unlock(&pool->lock);

	ret = zap_block(b);

	mutex_lock(&pool->lock);
	block_begin(b);
	b->phase = ret ? UNMAPPED_BROKEN : UNMAPPED_READY;
	/* memory_failure() may have been on the way without finding the block. */
	for (i = 0; i < block_pages(b); i++) {
		if (b->state[i] == UNMAPPED_FREE && PageHWPoison(page + i))
			set_page_state(b, i, UNMAPPED_POISONED);
	}
	/* Meanwhile an idle block may have been dedicated to the range. */
	if (!ret && home && !b->nr[UNMAPPED_POISONED] && !find_home(pool, gfn))
		block_set_home(b, gfn);
	block_end(b);
	if (ret)
		release_block(b);

	return ret;

err:
	kfree(b);
	if (page)
		__free_contig_range(page_to_pfn(page), 1UL << order);
	mutex_lock(&pool->lock);
	return ret;
}

/* Allocation */

static bool node_allowed(const struct unmapped_block *b, struct mempolicy *pol, bool strict)
{
#ifdef CONFIG_NUMA
	int nid = page_to_nid(block_page(b, 0));

	if (!pol)
		return true;

	switch (pol->mode) {
	case MPOL_BIND:
		/* The allocator doesn't heed it either then: policy_nodemask(). */
		return node_isset(nid, pol->nodes) ||
		       !apply_policy_zone(pol, gfp_zone(GFP_KERNEL)) ||
		       !cpuset_nodemask_valid_mems_allowed(&pol->nodes);
	case MPOL_PREFERRED:
	case MPOL_PREFERRED_MANY:
	case MPOL_INTERLEAVE:
	case MPOL_WEIGHTED_INTERLEAVE:
		return !strict || node_isset(nid, pol->nodes);
	}
#endif
	return true;
}

static struct page *take_page(struct unmapped_block *b, unsigned int i, pgoff_t index)
{
	struct page *page = block_page(b, i);

	VM_WARN_ON_ONCE(b->phase != UNMAPPED_READY);
	VM_WARN_ON_ONCE_PAGE(kernel_page_present(page), page);

	block_begin(b);
	set_page_state(b, i, UNMAPPED_USED);
	block_end(b);
	set_page_private(page, index);
	return page;
}

/* A page that is neither in use nor reserved; idle blocks come last. */
static struct page *take_free_page(struct unmapped_pool *pool, pgoff_t index,
				   struct mempolicy *pol, bool strict)
{
	struct unmapped_block *b;
	u8 *state;

	list_for_each_entry(b, &pool->partial, partial_node) {
		if (!node_allowed(b, pol, strict))
			continue;
		state = memchr(b->state + b->first_free, UNMAPPED_FREE,
			       block_pages(b) - b->first_free);
		b->first_free = state - b->state;
		return take_page(b, b->first_free, index);
	}
	return NULL;
}

/* Dedicate an idle block to @gfn, or to none. */
static struct unmapped_block *reuse_idle_block(struct unmapped_pool *pool, u64 gfn,
					       struct mempolicy *pol, bool strict)
{
	struct unmapped_block *b;

	list_for_each_entry(b, &pool->idle, idle_node) {
		if (gfn != UNMAPPED_NO_HOME &&
		    (b->order != UNMAPPED_BLOCK_ORDER || b->nr[UNMAPPED_POISONED]))
			continue;
		if (!node_allowed(b, pol, strict))
			continue;
		block_begin(b);
		block_set_home(b, gfn);
		block_end(b);
		return b;
	}
	return NULL;
}

/*
 * The home block of @gfn, if there is one or an idle block can become one.  Where
 * so many pages wait to be used that the memory would be missed, none is made.
 */
static struct unmapped_block *get_home(struct unmapped_pool *pool, u64 gfn,
				       struct mempolicy *pol)
{
	struct unmapped_block *b = find_home(pool, gfn);

	if (b)
		return b;
	if (pool->nr_loose >= 2 << UNMAPPED_BLOCK_ORDER)
		return ERR_PTR(-EBUSY);
	return reuse_idle_block(pool, gfn, pol, true);
}

static struct page *try_alloc(struct unmapped_pool *pool, u64 gfn, pgoff_t index,
			      bool whole, struct mempolicy *pol)
{
	unsigned int i = gfn & ((1U << UNMAPPED_BLOCK_ORDER) - 1);
	struct unmapped_block *b;
	struct page *page;

	b = whole ? get_home(pool, gfn, pol) : find_home(pool, gfn);
	/*
	 * Pages that were shared and came back fit any gfn, but a home block is
	 * better; until they are many.
	 */
	if (IS_ERR(b))
		return take_free_page(pool, index, pol, true);
	if (!b && whole)
		return NULL;
	/* A page that was given back is right for its own gfn all the same. */
	if (b && (b->state[i] == UNMAPPED_RESERVED || b->state[i] == UNMAPPED_FREE))
		return take_page(b, i, index);

	page = take_free_page(pool, index, pol, true);
	if (page)
		return page;
	if (!reuse_idle_block(pool, UNMAPPED_NO_HOME, pol, true))
		return NULL;
	return take_free_page(pool, index, pol, true);
}

/* No memory: anything that the policy does not forbid, reserved pages too. */
static struct page *try_alloc_any(struct unmapped_pool *pool, pgoff_t index,
				  struct mempolicy *pol)
{
	struct unmapped_block *b;
	struct page *page;
	u8 *state;

	recheck_pool(pool, UINT_MAX);
	page = take_free_page(pool, index, pol, false);
	if (page)
		return page;

	list_for_each_entry(b, &pool->blocks, node) {
		if (b->phase != UNMAPPED_READY || !b->nr[UNMAPPED_RESERVED] ||
		    !node_allowed(b, pol, false))
			continue;
		state = memchr(b->state, UNMAPPED_RESERVED, block_pages(b));
		return take_page(b, state - b->state, index);
	}
	return NULL;
}

/* After an attempt to grow the pool, which has ended with @ret; under pool->lock. */
static struct page *alloc_grown(struct unmapped_pool *pool, u64 gfn, pgoff_t index,
				struct mempolicy *pol, int ret)
{
	struct page *page;

	lockdep_assert_held(&pool->lock);

	page = try_alloc(pool, gfn, index, false, pol);
	if (page)
		return page;
	page = try_alloc_any(pool, index, pol);
	if (page && !ret)
		pool->any_node_until = jiffies + UNMAPPED_NODE_BACKOFF;
	return page;
}

/* Adds a home block for @gfn if there is none; *@ret, if it tried to, tells how that went. */
static struct page *alloc_new_home(struct unmapped_pool *pool, u64 gfn, pgoff_t index,
				   struct mempolicy *pol, pgoff_t ilx, gfp_t gfp, int *ret)
{
	struct page *page;

	guard(mutex)(home_lock(pool, gfn));

	mutex_lock(&pool->lock);
	/* Someone else may have added it. */
	page = try_alloc(pool, gfn, index, true, pol);
	if (!page && !find_home(pool, gfn)) {
		mutex_unlock(&pool->lock);
		*ret = grow_pool(pool, gfn, pol, ilx, gfp);
		if (!*ret)
			page = alloc_grown(pool, gfn, index, pol, 0);
	}
	mutex_unlock(&pool->lock);

	return page;
}

/* No home, so before the pool grows any page will do.  *@ret: if it did grow. */
static struct page *alloc_new(struct unmapped_pool *pool, u64 gfn, pgoff_t index,
			      struct mempolicy *pol, pgoff_t ilx, gfp_t gfp, int *ret)
{
	struct page *page;
	unsigned int i;

	guard(mutex)(&pool->grow_lock);

	mutex_lock(&pool->lock);
	page = try_alloc(pool, gfn, index, false, pol);
	/* Or each page would cost a block of the wrong node. */
	if (!page && time_before(jiffies, pool->any_node_until))
		page = take_free_page(pool, index, pol, false);
	if (!page) {
		mutex_unlock(&pool->lock);
		/* Before someone is killed for it there are the reserved pages. */
		*ret = grow_pool(pool, UNMAPPED_NO_HOME, pol, ilx,
				 gfp | __GFP_NORETRY | __GFP_NOWARN);
		page = alloc_grown(pool, gfn, index, pol, *ret);
	}
	if (!page && *ret) {
		mutex_unlock(&pool->lock);
		/* What others have got by now comes with reserved pages, too. */
		for (i = 0; i < UNMAPPED_HOME_LOCKS; i++) {
			mutex_lock(&pool->home_lock[i]);
			mutex_unlock(&pool->home_lock[i]);
		}
		mutex_lock(&pool->lock);
		page = alloc_grown(pool, gfn, index, pol, *ret);
	}
	if (!page && *ret) {
		mutex_unlock(&pool->lock);
		*ret = grow_pool(pool, UNMAPPED_NO_HOME, pol, ilx, gfp);
		page = alloc_grown(pool, gfn, index, pol, *ret);
	}
	mutex_unlock(&pool->lock);

	return page;
}

/**
 * unmapped_pool_alloc - get a page that is off the direct map
 * @pool: the pool
 * @gfn: what the owner is going to use it for
 * @index: the owner's name for it, handed to ops->memory_failure()
 * @whole: the naturally aligned range of block size around @gfn is all of one
 *	kind, so that a block may be set aside for it.  If there is one, the page
 *	has the same offset in the block as @gfn in the range.
 * @pol: NUMA policy or NULL
 * @ilx: interleave index for @pol
 * @gfp: GFP_KERNEL or GFP_KERNEL_ACCOUNT; all is charged to the pool's memory
 *	cgroup anyway
 *
 * The page is zero, and no CPU has a TLB entry for it in a kernel mapping.  Its
 * reference count is 1; this reference belongs to the pool and must not be
 * dropped but by unmapped_pool_free().  More references may be taken.  The
 * pool uses page->private, all else in struct page is the owner's to use, as
 * long as it is back to what it was when the page is given back.
 *
 * Context: process, may sleep and reclaim.  The owner may hold locks that neither
 * reclaim nor its memory_failure callback is waited for under.
 *
 * Return: the page, or an ERR_PTR(): -ENOMEM, -EIO if the direct map did not
 * change, or the error of set_direct_map_valid_noflush().
 */
struct page *unmapped_pool_alloc(struct unmapped_pool *pool, u64 gfn, pgoff_t index,
				 bool whole, struct mempolicy *pol, pgoff_t ilx,
				 gfp_t gfp)
{
	unsigned int tries = 0;
	struct page *page;
	int ret;

	might_sleep();

	mutex_lock(&pool->lock);
	recheck_pool(pool, 1);
	page = try_alloc(pool, gfn, index, whole, pol);
	mutex_unlock(&pool->lock);
	if (page)
		return page;

	do {
		ret = -ENOENT;
		if (whole)
			page = alloc_new_home(pool, gfn, index, pol, ilx, gfp, &ret);
		if (!page && ret)
			page = alloc_new(pool, gfn, index, pol, ilx, gfp, &ret);
		/* If there is none now, what was added is poisoned, or not for @pol. */
	} while (!page && !ret && !fatal_signal_pending(current) &&
		 ++tries < UNMAPPED_MAX_TRIES);

	return page ?: ERR_PTR(ret ?: -ENOMEM);
}
EXPORT_SYMBOL_FOR_KVM(unmapped_pool_alloc);

/**
 * unmapped_pool_alloc_mapped - get pages for what the owner doesn't keep in the pool
 * @pool: the pool
 * @pol: NUMA policy or NULL
 * @ilx: interleave index for @pol
 * @gfp: what kind of memory
 *
 * As many pages as a block has, one after the other, allocated with as little effort,
 * but mapped as any other memory.  They are not of the pool: each has a reference and
 * is the caller's to free.
 *
 * Context: as for unmapped_pool_alloc().
 *
 * Return: the first page, or NULL.
 */
struct page *unmapped_pool_alloc_mapped(struct unmapped_pool *pool, struct mempolicy *pol,
					pgoff_t ilx, gfp_t gfp)
{
	struct page *page;

	gfp = large_block_gfp(pool, gfp & ~__GFP_COMP);
	page = alloc_order_policy(pol, ilx, gfp, UNMAPPED_BLOCK_ORDER);
	if (page)
		split_page(page, UNMAPPED_BLOCK_ORDER);
	else
		large_block_failed(pool, gfp);

	return page;
}
EXPORT_SYMBOL_FOR_KVM(unmapped_pool_alloc_mapped);

/**
 * unmapped_pool_alloc_home - get pages of a range from its home block
 * @pool: the pool
 * @gfn: the first of a naturally aligned range of block size, all of one kind
 * @index: the owner's name for the first page; the others have the next ones
 * @pol: NUMA policy or NULL
 * @ilx: interleave index for @pol
 * @gfp: as for unmapped_pool_alloc()
 * @taken: a bitmap of %UNMAPPED_BLOCK_PAGES bits: which pages the caller wants, and
 *	then which ones it has, and has to give back one by one
 *
 * What of the home block is in use, for its own gfn or another one, is not to be had.
 * If there is no home block one is made for a caller who wants all of it only: with
 * pages elsewhere the range would not be whole.
 *
 * Context: as for unmapped_pool_alloc().
 *
 * Return: the first page of the home block; or NULL if there is none, and pages
 * are to be had one by one only.
 */
struct page *unmapped_pool_alloc_home(struct unmapped_pool *pool, u64 gfn,
				      pgoff_t index, struct mempolicy *pol,
				      pgoff_t ilx, gfp_t gfp, unsigned long *taken)
{
	bool whole = bitmap_full(taken, UNMAPPED_BLOCK_PAGES);
	struct unmapped_block *b;
	unsigned int i;

	might_sleep();

	mutex_lock(&pool->lock);
	b = whole ? get_home(pool, gfn, pol) : find_home(pool, gfn);
	if (!b && whole) {
		mutex_unlock(&pool->lock);
		mutex_lock(home_lock(pool, gfn));
		mutex_lock(&pool->lock);
		b = get_home(pool, gfn, pol);
		if (!b) {
			mutex_unlock(&pool->lock);
			grow_pool(pool, gfn, pol, ilx, gfp);
			/* None if that failed, or some of it is poisoned. */
			b = find_home(pool, gfn);
		}
		mutex_unlock(home_lock(pool, gfn));
	}
	if (IS_ERR_OR_NULL(b)) {
		mutex_unlock(&pool->lock);
		bitmap_zero(taken, UNMAPPED_BLOCK_PAGES);
		return NULL;
	}

	block_begin(b);
	for_each_set_bit(i, taken, UNMAPPED_BLOCK_PAGES) {
		if (b->state[i] != UNMAPPED_RESERVED && b->state[i] != UNMAPPED_FREE) {
			__clear_bit(i, taken);
			continue;
		}
		VM_WARN_ON_ONCE(kernel_page_present(block_page(b, i)));
		set_page_state(b, i, UNMAPPED_USED);
		set_page_private(block_page(b, i), index + i);
	}
	block_end(b);
	mutex_unlock(&pool->lock);

	return block_page(b, 0);
}
EXPORT_SYMBOL_FOR_KVM(unmapped_pool_alloc_home);

static struct unmapped_block *lookup_block(unsigned long pfn)
{
	/* Has no other meaning than to keep page faults short on most systems. */
	if (!atomic_long_read(&unmapped_pages))
		return NULL;
	return xa_load(&unmapped_blocks, pfn);
}

/* How many of @page and those after it nobody else has a reference to. */
static unsigned int scrubbable(struct page *page, unsigned int max)
{
	unsigned int n;

	for (n = 0; n < max; n++) {
		if (PageHWPoison(page + n) || page_count(page + n) > 1)
			break;
	}
	/* Accesses of those who have dropped theirs come first. */
	smp_acquire__after_ctrl_dep();
	return n;
}

/* @nr consecutive pages, at most as many as a block has; it may be more than one. */
static void give_back(struct unmapped_pool *pool, struct page *page, unsigned int nr,
		      bool clean)
{
	DECLARE_BITMAP(held, UNMAPPED_BLOCK_PAGES);
	unsigned long pfn = page_to_pfn(page);
	struct unmapped_block *b = NULL;
	unsigned int i, n;

	might_sleep();

	if (WARN_ON_ONCE(nr > UNMAPPED_BLOCK_PAGES))
		return;
	bitmap_zero(held, UNMAPPED_BLOCK_PAGES);

	/* The last page of a pool that was put takes the pool with it. */
	refcount_inc(&pool->refs);

	/*
	 * The pages are still the caller's, and nobody can get a new reference:
	 * scrub them without the lock.  Whoever drops a reference later may have
	 * written to the page, so in that case it is done later.
	 */
	for (i = 0; i < nr; i += n) {
		n = scrubbable(page + i, min(nr - i, UNMAPPED_CLEAR_PAGES));
		if (!n) {
			/* Not scrubbed, whatever becomes of it. */
			__set_bit(i, held);
			n = 1;
			continue;
		}
		if (!clean && unmapped_pages_clear(page + i, n))
			bitmap_set(held, i, n);
		cond_resched();
	}

	mutex_lock(&pool->lock);
	for (i = 0; i < nr; i++, pfn++) {
		enum unmapped_state state = UNMAPPED_FREE;

		if (!b || pfn == b->pfn + block_pages(b)) {
			if (b)
				block_end(b);
			b = lookup_block(pfn);
			if (WARN_ON_ONCE(!b || b->pool != pool)) {
				b = NULL;
				continue;
			}
			block_begin(b);
		}
		if (WARN_ON_ONCE(b->state[pfn - b->pfn] != UNMAPPED_USED))
			continue;

		/* Poisoned meanwhile: memory_failure() does that under the lock. */
		if (PageHWPoison(page + i))
			state = UNMAPPED_POISONED;
		else if (test_bit(i, held))
			state = UNMAPPED_QUARANTINED;
		set_page_private(page + i, 0);
		set_page_state(b, pfn - b->pfn, state);
	}
	if (b)
		block_end(b);

	if (!bitmap_empty(held, UNMAPPED_BLOCK_PAGES))
		schedule_retry(pool);
	else
		recheck_pool(pool, 1);
	trim_pool(pool);
	mutex_unlock(&pool->lock);
	put_pool(pool);
}

/**
 * unmapped_pool_free - give back a page
 * @pool: the pool that it is from
 * @page: the page, mapped nowhere any more
 *
 * The page is scrubbed before anyone can have it again.  If there are more
 * references than the one of the pool this is delayed until they are gone.
 *
 * Context: process, may sleep; the same locks may be held as for
 * unmapped_pool_alloc().
 */
void unmapped_pool_free(struct unmapped_pool *pool, struct page *page)
{
	give_back(pool, page, 1, false);
}
EXPORT_SYMBOL_FOR_KVM(unmapped_pool_free);

/**
 * unmapped_pool_free_range - give back consecutive pages
 * @pool: the pool that they are from
 * @page: the first of them, mapped nowhere any more
 * @nr: how many, at most %UNMAPPED_BLOCK_PAGES; of one block or of several
 *
 * As unmapped_pool_free() of each, at less cost.
 */
void unmapped_pool_free_range(struct unmapped_pool *pool, struct page *page,
			      unsigned int nr)
{
	give_back(pool, page, nr, false);
}
EXPORT_SYMBOL_FOR_KVM(unmapped_pool_free_range);

/**
 * unmapped_pool_free_clean - give back consecutive pages of zeroes
 * @pool: the pool that they are from
 * @page: the first of them, mapped nowhere since it was allocated, or since its
 *	contents were looked at
 * @nr: how many, at most %UNMAPPED_BLOCK_PAGES
 *
 * Context: as for unmapped_pool_free().
 */
void unmapped_pool_free_clean(struct unmapped_pool *pool, struct page *page,
			      unsigned int nr)
{
	give_back(pool, page, nr, true);
}
EXPORT_SYMBOL_FOR_KVM(unmapped_pool_free_clean);

/* Pools */

/**
 * unmapped_pool_supported - can there be unmapped pages on this system?
 * @why: set to the reason if not; may be NULL
 *
 * Return: true if unmapped_pool_create() can succeed.
 */
bool unmapped_pool_supported(const char **why)
{
	const char *dummy;

	if (!why)
		why = &dummy;
	if (!can_set_direct_map()) {
		*why = "the direct map cannot be changed";
		return false;
	}
	return arch_unmapped_supported(why);
}
EXPORT_SYMBOL_FOR_KVM(unmapped_pool_supported);

/**
 * unmapped_pool_create - create a pool
 * @owner_id: a name for the owner, for reports
 * @ops: callbacks, or NULL
 * @priv: argument of the callbacks
 *
 * All memory that the pool ever uses is charged to the memory cgroup of the
 * caller.
 *
 * Context: process, may sleep.
 *
 * Return: the pool, with a reference for the caller, or an ERR_PTR(): -EOPNOTSUPP,
 * -ENOMEM, or -EBUSY during hibernation.
 */
struct unmapped_pool *unmapped_pool_create(u64 owner_id,
					   const struct unmapped_pool_ops *ops,
					   void *priv)
{
	struct unmapped_pool *pool;
	unsigned int i;
	int ret;

	if (!unmapped_pool_supported(NULL))
		return ERR_PTR(-EOPNOTSUPP);

	ret = unmapped_window_init();
	if (ret)
		return ERR_PTR(ret);

	pool = kzalloc_obj(*pool, GFP_KERNEL_ACCOUNT);
	if (!pool)
		return ERR_PTR(-ENOMEM);

	scoped_guard(mutex, &unmapped_pm_mutex) {
		if (unmapped_pm_blocked) {
			kfree(pool);
			return ERR_PTR(-EBUSY);
		}
		atomic_inc(&unmapped_nr_pools);
	}

	refcount_set(&pool->refs, 1);
	pool->owner_id = owner_id;
	pool->large_after = jiffies;
	pool->any_node_until = jiffies;
	pool->memcg = get_mem_cgroup_from_current();
	for (i = 0; i < UNMAPPED_HOME_LOCKS; i++)
		mutex_init(&pool->home_lock[i]);
	mutex_init(&pool->grow_lock);
	mutex_init(&pool->lock);
	INIT_LIST_HEAD(&pool->blocks);
	INIT_LIST_HEAD(&pool->partial);
	INIT_LIST_HEAD(&pool->retry);
	INIT_LIST_HEAD(&pool->idle);
	pool->homes = RB_ROOT;
	INIT_DELAYED_WORK(&pool->retry_work, unmapped_retry_work);
	init_rwsem(&pool->ops_lock);
	pool->ops = ops;
	pool->priv = priv;

	spin_lock(&unmapped_pools_lock);
	list_add_tail(&pool->pools_node, &unmapped_pools_list);
	spin_unlock(&unmapped_pools_lock);

	return pool;
}
EXPORT_SYMBOL_FOR_KVM(unmapped_pool_create);

/**
 * unmapped_pool_unregister - end the callbacks
 * @pool: the pool
 *
 * No callback runs any more when this returns.
 *
 * Context: process, sleeps until a callback that is running has returned, so not
 * with a lock held that the callback takes.
 */
void unmapped_pool_unregister(struct unmapped_pool *pool)
{
	down_write(&pool->ops_lock);
	pool->ops = NULL;
	up_write(&pool->ops_lock);
}
EXPORT_SYMBOL_FOR_KVM(unmapped_pool_unregister);

/**
 * unmapped_pool_put - drop the creator's reference
 * @pool: the pool
 *
 * Everything that is not in use has been given back when this returns.  What is
 * left, blocks with quarantined pages or with pages that the owner has not given
 * back yet, goes later without anyone's help.
 *
 * Context: process, may sleep.
 */
void unmapped_pool_put(struct unmapped_pool *pool)
{
	mutex_lock(&pool->lock);
	pool->dead = true;
	recheck_pool(pool, UINT_MAX);
	trim_pool(pool);
	mutex_unlock(&pool->lock);

	put_pool(pool);
}
EXPORT_SYMBOL_FOR_KVM(unmapped_pool_put);

/**
 * unmapped_pool_bytes - how much memory does the pool keep off the direct map?
 * @pool: the pool
 *
 * Return: the number of bytes, used or not; a moment later it may be another.
 */
u64 unmapped_pool_bytes(struct unmapped_pool *pool)
{
	return (u64)READ_ONCE(pool->nr_pages) << PAGE_SHIFT;
}
EXPORT_SYMBOL_FOR_KVM(unmapped_pool_bytes);

/* How much memory do all pools keep off the direct map? */
u64 unmapped_pool_bytes_total(void)
{
	return (u64)atomic_long_read(&unmapped_pages) << PAGE_SHIFT;
}

VISIBLE_IF_KUNIT u64 unmapped_pool_quarantined_bytes(void)
{
	return (u64)atomic_long_read(&unmapped_quarantined_pages) << PAGE_SHIFT;
}

VISIBLE_IF_KUNIT u64 unmapped_pool_refused(void)
{
	return atomic64_read(&unmapped_refused);
}

/* May there be unmapped pages?  True from before a pool has its first one. */
bool unmapped_pool_active(void)
{
	return atomic_read(&unmapped_nr_pools);
}

/**
 * page_is_unmapped - is the page off the direct map because of a pool?
 * @page: any page
 *
 * Without a reference that the pool respects the answer may be outdated.
 *
 * Context: any, even NMI.
 *
 * Return: true if so, and also while the page is on its way to or from there.
 */
bool page_is_unmapped(const struct page *page)
{
	return lookup_block(page_to_pfn(page));
}

/* Page faults and memory errors */

/*
 * None of these has any influence on what becomes of the fault.  They are
 * called in any context, with any locks held.
 */
void unmapped_pool_count_fault(struct pt_regs *regs, unsigned long address)
{
	unsigned long pfn;

	if (!atomic_long_read(&unmapped_pages) || !virt_addr_valid((void *)address))
		return;

	pfn = PHYS_PFN(__pa(address));
	if (!lookup_block(pfn))
		return;

	atomic64_inc(&unmapped_refused);
	trace_unmapped_pool_refused(pfn, instruction_pointer(regs));
}

/*
 * A hypervisor that kept the kernel out of the page at @pfn had to give it back, with
 * nothing in it, as the kernel accessed it by a mapping that it made itself.
 */
void unmapped_pool_count_lost(unsigned long pfn)
{
	if (lookup_block(pfn))
		atomic64_inc(&unmapped_lost);
}

void unmapped_pool_show_fault(struct pt_regs *regs, unsigned long address)
{
	struct unmapped_block *b;
	unsigned long pfn;

	if (!atomic_long_read(&unmapped_pages) || !virt_addr_valid((void *)address))
		return;

	pfn = PHYS_PFN(__pa(address));
	guard(rcu)();
	b = lookup_block(pfn);
	if (b)
		pr_alert("kernel access to a page kept off the direct map: owner %llu, pfn %#lx, at %pS\n",
			 b->owner_id, pfn, (void *)instruction_pointer(regs));
}

static struct unmapped_pool *lookup_pool(unsigned long pfn)
{
	struct unmapped_block *b;

	guard(rcu)();
	b = lookup_block(pfn);
	return b && refcount_inc_not_zero(&b->pool->refs) ? b->pool : NULL;
}

/**
 * unmapped_pool_memory_failure - take a page with a memory error out of use
 * @page: any page
 *
 * Context: process, may sleep; calls the owner.
 *
 * Return: 0, -EHWPOISON if the error was known, -ENOENT if the page does not
 * belong to a pool.
 */
int unmapped_pool_memory_failure(struct page *page)
{
	unsigned long pfn = page_to_pfn(page);
	struct unmapped_pool *pool = lookup_pool(pfn);
	struct unmapped_block *b;
	bool used = false;
	pgoff_t index;
	int ret = 0;

	if (!pool)
		return -ENOENT;

	mutex_lock(&pool->lock);
	b = lookup_block(pfn);
	if (!b || b->pool != pool) {
		/* Given back meanwhile. */
		ret = -ENOENT;
	} else if (PageHWPoison(page)) {
		ret = -EHWPOISON;
	} else {
		unsigned int i = pfn - b->pfn;

		SetPageHWPoison(page);
		used = b->state[i] == UNMAPPED_USED;
		index = page_private(page);
		/* Pages that are referenced get there when they are given back. */
		if (b->state[i] == UNMAPPED_FREE || b->state[i] == UNMAPPED_RESERVED) {
			block_begin(b);
			set_page_state(b, i, UNMAPPED_POISONED);
			block_end(b);
		}
	}
	mutex_unlock(&pool->lock);

	if (used) {
		down_read(&pool->ops_lock);
		if (pool->ops && pool->ops->memory_failure)
			pool->ops->memory_failure(pool->priv, index, page);
		up_read(&pool->ops_lock);
	}

	put_pool(pool);
	return ret;
}

/* The shrinker */

static unsigned long shrink_pool(struct unmapped_pool *pool, unsigned long nr)
{
	unsigned long freed = 0, n;
	struct unmapped_block *b;

	mutex_lock(&pool->lock);
	recheck_pool(pool, UINT_MAX);
	while (freed < nr && !list_empty(&pool->idle)) {
		b = list_last_entry(&pool->idle, struct unmapped_block, idle_node);
		n = release_block(b);
		if (!n)
			break;
		freed += n;
	}
	mutex_unlock(&pool->lock);
	return freed;
}

VISIBLE_IF_KUNIT unsigned long unmapped_pool_shrink(unsigned long nr)
{
	struct unmapped_pool *pool, *last = NULL;
	unsigned long freed = 0;

	spin_lock(&unmapped_pools_lock);
	list_for_each_entry(pool, &unmapped_pools_list, pools_node) {
		/* On its way out: free_pool() waits for the spinlock. */
		if (!refcount_inc_not_zero(&pool->refs))
			continue;
		spin_unlock(&unmapped_pools_lock);

		/* The reference keeps the pool, thus the place, on the list. */
		if (last)
			put_pool(last);
		last = pool;
		freed += shrink_pool(pool, nr - freed);

		spin_lock(&unmapped_pools_lock);
		if (freed >= nr)
			break;
	}
	spin_unlock(&unmapped_pools_lock);
	if (last)
		put_pool(last);

	return freed;
}

/* Pages that reclaim has asked for and the worker has not seen to. */
static atomic_long_t unmapped_shrink_nr;
static struct workqueue_struct *unmapped_shrink_wq;

static void unmapped_shrink_fn(struct work_struct *work)
{
	unmapped_pool_shrink(atomic_long_xchg(&unmapped_shrink_nr, 0));
}

static DECLARE_WORK(unmapped_shrink_work, unmapped_shrink_fn);

static unsigned long unmapped_shrink_count(struct shrinker *shrinker,
					   struct shrink_control *sc)
{
	return atomic_long_read(&unmapped_idle_pages) ?: SHRINK_EMPTY;
}

static unsigned long unmapped_shrink_scan(struct shrinker *shrinker,
					  struct shrink_control *sc)
{
	/*
	 * Not here, where the caller may hold what it needs: see the locks above.
	 * And not for less than a block of the usual size.
	 */
	atomic_long_add(max(sc->nr_to_scan, UNMAPPED_BLOCK_PAGES), &unmapped_shrink_nr);
	queue_work(unmapped_shrink_wq, &unmapped_shrink_work);
	return SHRINK_STOP;
}

/* Hibernation */

/*
 * The image would have to contain the pages, and the one who writes it cannot
 * read them; nor may they end up on a disk.  hibernation_available() refuses
 * when there is a pool; this closes the gap from there to the snapshot, and
 * likewise on the way back, when an image overwrites all memory.
 */
static int unmapped_pm_notify(struct notifier_block *nb, unsigned long action, void *data)
{
	guard(mutex)(&unmapped_pm_mutex);

	switch (action) {
	case PM_HIBERNATION_PREPARE:
	case PM_RESTORE_PREPARE:
		if (unmapped_pool_active())
			return notifier_from_errno(-EBUSY);
		unmapped_pm_blocked = true;
		break;
	case PM_POST_HIBERNATION:
	case PM_POST_RESTORE:
		unmapped_pm_blocked = false;
		break;
	}
	return NOTIFY_DONE;
}

/* sysfs */

static ssize_t off_direct_map_bytes_show(struct kobject *kobj,
					 struct kobj_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%llu\n", unmapped_pool_bytes_total());
}

static struct kobj_attribute off_direct_map_bytes_attr = __ATTR_RO(off_direct_map_bytes);

static ssize_t quarantined_bytes_show(struct kobject *kobj,
				      struct kobj_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%llu\n", unmapped_pool_quarantined_bytes());
}

static struct kobj_attribute quarantined_bytes_attr = __ATTR_RO(quarantined_bytes);

static ssize_t refused_show(struct kobject *kobj, struct kobj_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%llu\n", unmapped_pool_refused());
}

static struct kobj_attribute refused_attr = __ATTR_RO(refused);

static ssize_t lost_show(struct kobject *kobj, struct kobj_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%llu\n", atomic64_read(&unmapped_lost));
}

static struct kobj_attribute lost_attr = __ATTR_RO(lost);

static const struct attribute *const unmapped_attrs[] = {
	&off_direct_map_bytes_attr.attr,
	&quarantined_bytes_attr.attr,
	&refused_attr.attr,
	&lost_attr.attr,
	NULL
};

static int __init unmapped_pool_init(void)
{
	struct shrinker *shrinker;
	struct kobject *kobj;

	/* Reclaim doesn't wait for it, but wants it to make progress. */
	unmapped_shrink_wq = alloc_workqueue("unmapped_pool", WQ_UNBOUND | WQ_MEM_RECLAIM, 1);
	if (!unmapped_shrink_wq)
		return -ENOMEM;

	shrinker = shrinker_alloc(0, "mm-unmapped_pool");
	if (!shrinker) {
		destroy_workqueue(unmapped_shrink_wq);
		return -ENOMEM;
	}
	shrinker->count_objects = unmapped_shrink_count;
	shrinker->scan_objects = unmapped_shrink_scan;
	/* Cheap to give back, and of no use to anyone as they are. */
	shrinker->seeks = 0;
	/* However few there are, they are asked for: see unmapped_shrink_scan(). */
	shrinker->batch = 1;
	shrinker_register(shrinker);

	pm_notifier(unmapped_pm_notify, 0);

	kobj = kobject_create_and_add("unmapped_pool", mm_kobj);
	if (!kobj)
		return -ENOMEM;
	return sysfs_create_files(kobj, unmapped_attrs);
}
subsys_initcall(unmapped_pool_init);
