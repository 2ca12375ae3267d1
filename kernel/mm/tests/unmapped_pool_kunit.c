// SPDX-License-Identifier: GPL-2.0
/*
 * KUnit tests for pools of unmapped pages.
 *
 * They look at the direct map from outside: at its page tables, by accesses
 * which have to fault, on the CPU itself and on others, and at the contents of
 * the memory just before it is mapped again.
 */
#include <kunit/static_stub.h>
#include <kunit/test.h>
#include <kunit/test-bug.h>
#include <linux/bitmap.h>
#include <linux/bits.h>
#include <linux/completion.h>
#include <linux/cpumask.h>
#include <linux/delay.h>
#include <linux/kthread.h>
#include <linux/mempolicy.h>
#include <linux/mm.h>
#include <linux/proc_fs.h>
#include <linux/prandom.h>
#include <linux/seq_file.h>
#include <linux/set_memory.h>
#include <linux/smp.h>
#include <linux/uaccess.h>
#include <linux/unmapped_pool.h>
#include <linux/unmapped_window.h>
#include <linux/vmalloc.h>

#include <asm/sections.h>
#include <asm/tlbflush.h>

#include "../unmapped_pool.h"

#define OWNER		0x1234
#define BLOCK_PAGES	BIT(UNMAPPED_BLOCK_ORDER)
/* Some naturally aligned range of gfns. */
#define GFN(n)		(0x100000ULL + (n) * BLOCK_PAGES)

/* What the stubs are told, and what they found. */
struct up_test {
	struct unmapped_pool	*pool;
	u64			total;		/* before the test */
	u64			quarantined;

	unsigned int		max_order;	/* up_alloc_limited() */
	bool			no_memory;
	unsigned int		last_order;

	bool			fail_zap;	/* up_set_valid() */
	bool			fail_restore;
	unsigned long		dirty_pages;
	unsigned long		restored_pages;

	struct page		*primed;	/* up_alloc_primed() */
	unsigned int		primed_order;

	atomic_t		nr_allocs;	/* up_alloc_in_turn() */
	struct completion	first_came;
	struct completion	second_has;
	bool			waited;

	pgoff_t			mf_index;
	struct page		*mf_page;
	unsigned int		mf_calls;
};

static void up_memory_failure(void *priv, pgoff_t index, struct page *page)
{
	struct up_test *t = priv;

	t->mf_index = index;
	t->mf_page = page;
	t->mf_calls++;
}

static const struct unmapped_pool_ops up_ops = {
	.memory_failure = up_memory_failure,
};

static int up_init(struct kunit *test)
{
	struct up_test *t = kunit_kzalloc(test, sizeof(*t), GFP_KERNEL);
	const char *why;

	KUNIT_ASSERT_NOT_NULL(test, t);
	test->priv = t;

	if (!unmapped_pool_supported(&why))
		kunit_skip(test, "not supported: %s", why);

	t->total = unmapped_pool_bytes_total();
	t->quarantined = unmapped_pool_quarantined_bytes();
	t->pool = unmapped_pool_create(OWNER, &up_ops, t);
	KUNIT_ASSERT_FALSE(test, IS_ERR(t->pool));
	return 0;
}

static void up_put(struct kunit *test)
{
	struct up_test *t = test->priv;

	if (!t->pool)
		return;
	unmapped_pool_unregister(t->pool);
	unmapped_pool_put(t->pool);
	t->pool = NULL;
}

static void up_exit(struct kunit *test)
{
	unmapped_retry_delay = HZ / 2;
	if (test->priv)
		up_put(test);
}

static u64 up_bytes(struct kunit *test)
{
	struct up_test *t = test->priv;

	return unmapped_pool_bytes_total() - t->total;
}

static u64 up_quarantined(struct kunit *test)
{
	struct up_test *t = test->priv;

	return unmapped_pool_quarantined_bytes() - t->quarantined;
}

/* Nothing is left behind, now or after what needs a moment. */
static void up_put_and_expect_nothing(struct kunit *test)
{
	up_put(test);
	KUNIT_EXPECT_EQ(test, up_bytes(test), 0);
	KUNIT_EXPECT_EQ(test, up_quarantined(test), 0);
}

static struct page *up_alloc(struct kunit *test, u64 gfn, bool whole)
{
	struct up_test *t = test->priv;
	struct page *page;

	page = unmapped_pool_alloc(t->pool, gfn, gfn, whole, NULL, 0, GFP_KERNEL);
	KUNIT_ASSERT_FALSE(test, IS_ERR_OR_NULL(page));
	return page;
}

/* Skips the test if @page[] are not all from blocks of their own, of full size. */
static void up_need_large(struct kunit *test, struct page **page, unsigned int nr)
{
	struct up_test *t = test->priv;

	if (up_bytes(test) == (u64)nr * BLOCK_PAGES * PAGE_SIZE)
		return;
	while (nr--)
		unmapped_pool_free(t->pool, page[nr]);
	kunit_skip(test, "no large block to be had");
}

static bool up_is_zero(struct page *page)
{
	unsigned int off;
	u64 buf[64];

	for (off = 0; off < PAGE_SIZE; off += sizeof(buf)) {
		if (unmapped_page_read(page, off, buf, sizeof(buf)) ||
		    memchr_inv(buf, 0, sizeof(buf)))
			return false;
	}
	return true;
}

static void up_fill(struct kunit *test, struct page *page, u64 seed)
{
	unsigned int off;

	for (off = 0; off < PAGE_SIZE; off += sizeof(seed))
		KUNIT_ASSERT_EQ(test, unmapped_page_write(page, off, &seed, sizeof(seed)), 0);
}

/* The direct map by the eyes of a CPU: 0 or -EFAULT. */
static long up_peek(struct page *page)
{
	char c;

	return copy_from_kernel_nofault(&c, page_address(page), 1);
}

/* Tests */

static void up_test_window(struct kunit *test)
{
	struct page *page = up_alloc(test, GFN(0), false);
	u8 out[64], in[64], found;
	unsigned int off, len, i;
	unsigned long flags;

	KUNIT_EXPECT_TRUE(test, up_is_zero(page));

	for (len = 0; len <= sizeof(out); len++) {
		for (off = 0; off < 9; off++) {
			get_random_bytes(out, len);
			KUNIT_ASSERT_EQ(test, unmapped_page_write(page, off, out, len), 0);
			memset(in, 0, sizeof(in));
			KUNIT_ASSERT_EQ(test, unmapped_page_read(page, off, in, len), 0);
			KUNIT_ASSERT_MEMEQ(test, in, out, len);
		}
	}

	/* Exactly the bytes that were meant, up to the end of the page. */
	KUNIT_EXPECT_EQ(test, unmapped_page_clear(page), 0);
	memset(out, 0xaa, sizeof(out));
	KUNIT_EXPECT_EQ(test, unmapped_page_write(page, PAGE_SIZE - 13, out, 13), 0);
	KUNIT_EXPECT_EQ(test, unmapped_page_read(page, PAGE_SIZE - 14, &found, 1), 0);
	KUNIT_EXPECT_EQ(test, found, 0);
	for (i = 1; i <= 13; i++) {
		KUNIT_EXPECT_EQ(test, unmapped_page_read(page, PAGE_SIZE - i, &found, 1), 0);
		KUNIT_EXPECT_EQ(test, found, 0xaa);
	}

	KUNIT_EXPECT_EQ(test, unmapped_page_read(page, PAGE_SIZE - 13, in, 14), -EINVAL);
	KUNIT_EXPECT_EQ(test, unmapped_page_write(page, PAGE_SIZE, out, 1), -EINVAL);
	KUNIT_EXPECT_EQ(test, unmapped_page_read(page, 1, in, UINT_MAX), -EINVAL);

	/* From atomic context. */
	local_irq_save(flags);
	i = unmapped_page_read(page, PAGE_SIZE - 13, in, 13);
	KUNIT_EXPECT_TRUE(test, irqs_disabled());
	local_irq_restore(flags);
	KUNIT_EXPECT_EQ(test, i, 0);
	KUNIT_EXPECT_MEMEQ(test, in, out, 13);

	unmapped_pool_free(((struct up_test *)test->priv)->pool, page);
	up_put_and_expect_nothing(test);
}

static void up_test_is_zero(struct kunit *test)
{
	struct page *page = up_alloc(test, GFN(0), false);
	static const u8 val[2] = { 0, 1 };
	unsigned int off;

	KUNIT_EXPECT_EQ(test, unmapped_page_is_zero(page), 1);
	for (off = 0; off < PAGE_SIZE; off += off < 128 ? 1 : 31) {
		KUNIT_EXPECT_EQ(test, unmapped_page_write(page, off, &val[1], 1), 0);
		KUNIT_ASSERT_EQ(test, unmapped_page_is_zero(page), 0);
		KUNIT_EXPECT_EQ(test, unmapped_page_write(page, off, &val[0], 1), 0);
	}
	KUNIT_EXPECT_EQ(test, unmapped_page_is_zero(page), 1);
	KUNIT_EXPECT_EQ(test, unmapped_page_write(page, PAGE_SIZE - 1, &val[1], 1), 0);
	KUNIT_EXPECT_EQ(test, unmapped_page_is_zero(page), 0);

	unmapped_pool_free(((struct up_test *)test->priv)->pool, page);
	up_put_and_expect_nothing(test);
}

/* As many pages at once as there may be, and no more than was said. */
static void up_test_window_clear(struct kunit *test)
{
	unsigned int i, nr = UNMAPPED_CLEAR_PAGES + 2;
	struct page *page = up_alloc(test, GFN(0), true);
	struct up_test *t = test->priv;
	u64 val = ~0ULL, found;

	up_need_large(test, &page, 1);
	for (i = 1; i < nr; i++)
		KUNIT_ASSERT_PTR_EQ(test, up_alloc(test, GFN(0) + i, true), page + i);
	for (i = 0; i < nr; i++) {
		KUNIT_EXPECT_EQ(test, unmapped_page_write(page + i, 0, &val, 8), 0);
		KUNIT_EXPECT_EQ(test, unmapped_page_write(page + i, PAGE_SIZE - 8, &val, 8), 0);
	}

	KUNIT_EXPECT_EQ(test, unmapped_pages_clear(page + 1, nr - 2), 0);
	for (i = 1; i < nr - 1; i++)
		KUNIT_EXPECT_TRUE(test, up_is_zero(page + i));
	KUNIT_EXPECT_EQ(test, unmapped_page_read(page, PAGE_SIZE - 8, &found, 8), 0);
	KUNIT_EXPECT_EQ(test, found, val);
	KUNIT_EXPECT_EQ(test, unmapped_page_read(page + nr - 1, 0, &found, 8), 0);
	KUNIT_EXPECT_EQ(test, found, val);

	/* A page that someone holds, in the middle of a range that goes back. */
	get_page(page + nr / 2);
	unmapped_retry_delay = HZ / 20;
	unmapped_pool_free_range(t->pool, page, nr);
	KUNIT_EXPECT_EQ(test, up_quarantined(test), PAGE_SIZE);
	put_page(page + nr / 2);
	up_put(test);
	for (i = 0; i < 100 && up_bytes(test); i++)
		msleep(20);
	KUNIT_EXPECT_EQ(test, up_bytes(test), 0);
	KUNIT_EXPECT_EQ(test, up_quarantined(test), 0);
}

/* Pages that are next to each other, but of two blocks, one of them held by someone. */
static void up_test_free_range(struct kunit *test)
{
	struct up_test *t = test->priv;
	struct page *first[8], *run;
	unsigned int a, b, i;
	u64 gfn;

	for (i = 0; i < ARRAY_SIZE(first); i++)
		first[i] = up_alloc(test, GFN(i), true);
	up_need_large(test, first, ARRAY_SIZE(first));
	for (i = 0; i < ARRAY_SIZE(first) * ARRAY_SIZE(first); i++) {
		a = i / ARRAY_SIZE(first);
		b = i % ARRAY_SIZE(first);
		if (page_to_pfn(first[b]) == page_to_pfn(first[a]) + BLOCK_PAGES)
			break;
	}
	if (i == ARRAY_SIZE(first) * ARRAY_SIZE(first)) {
		for (i = 0; i < ARRAY_SIZE(first); i++)
			unmapped_pool_free(t->pool, first[i]);
		kunit_skip(test, "no two blocks next to each other to be had");
	}

	/* Three pages of each. */
	run = first[b] - 3;
	for (i = 0; i < 6; i++) {
		gfn = i < 3 ? GFN(a) + BLOCK_PAGES - 3 + i : GFN(b) + i - 3;
		if (i != 3)
			KUNIT_ASSERT_PTR_EQ(test, up_alloc(test, gfn, true), run + i);
		up_fill(test, run + i, gfn);
	}
	get_page(run + 2);
	unmapped_pool_free_range(t->pool, run, 6);
	KUNIT_EXPECT_EQ(test, up_quarantined(test), PAGE_SIZE);
	for (i = 0; i < 6; i++) {
		gfn = i < 3 ? GFN(a) + BLOCK_PAGES - 3 + i : GFN(b) + i - 3;
		if (i == 2)
			continue;
		KUNIT_EXPECT_PTR_EQ(test, up_alloc(test, gfn, true), run + i);
		KUNIT_EXPECT_TRUE(test, up_is_zero(run + i));
	}
	unmapped_pool_free_range(t->pool, run, 2);
	unmapped_pool_free_range(t->pool, run + 3, 3);

	for (i = 0; i < ARRAY_SIZE(first); i++) {
		if (i != b)
			unmapped_pool_free(t->pool, first[i]);
	}
	unmapped_retry_delay = HZ / 20;
	put_page(run + 2);
	up_put(test);
	for (i = 0; i < 100 && up_bytes(test); i++)
		msleep(20);
	KUNIT_EXPECT_EQ(test, up_bytes(test), 0);
	KUNIT_EXPECT_EQ(test, up_quarantined(test), 0);
}

/* A fault at a caller's buffer is that caller's bug: no page is to be called broken for it. */
static void up_test_window_fault(struct kunit *test)
{
	struct page *page = up_alloc(test, GFN(0), false);
	u8 *buf = vmalloc(PAGE_SIZE);
	u8 *guard;

	KUNIT_ASSERT_NOT_NULL(test, buf);
	guard = buf + PAGE_SIZE;

	kunit_warning_suppress(test) {
		KUNIT_EXPECT_EQ(test, unmapped_page_read(page, 0, guard - 8, 16), -EFAULT);
		KUNIT_EXPECT_SUPPRESSED_WARNING_COUNT(test, 1);
	}
	kunit_warning_suppress(test) {
		KUNIT_EXPECT_EQ(test, unmapped_page_read(page, 0, guard - 3, 4), -EFAULT);
		KUNIT_EXPECT_EQ(test, unmapped_page_write(page, 0, guard, 1), -EFAULT);
	}
	KUNIT_EXPECT_FALSE(test, irqs_disabled());
	KUNIT_EXPECT_EQ(test, unmapped_page_read(page, 0, buf, 8), 0);

	vfree(buf);
	unmapped_pool_free(((struct up_test *)test->priv)->pool, page);
	up_put_and_expect_nothing(test);
}

static void up_test_window_task(struct kunit *test)
{
	struct page *page = up_alloc(test, GFN(0), false);
	struct mm_struct *mm = mm_alloc();
	u64 val = 0x1122334455667788ULL, found = 0;

	KUNIT_ASSERT_NOT_NULL(test, mm);

	/* The test is a kernel thread.  Now with an mm of a task, too. */
	KUNIT_EXPECT_EQ(test, unmapped_page_write(page, 8, &val, 8), 0);
	kthread_use_mm(mm);
	KUNIT_EXPECT_EQ(test, unmapped_page_read(page, 8, &found, 8), 0);
	KUNIT_EXPECT_EQ(test, found, val);
	preempt_disable();
	val = ~val;
	KUNIT_EXPECT_EQ(test, unmapped_page_write(page, 8, &val, 8), 0);
	preempt_enable();
	kthread_unuse_mm(mm);
	mmput(mm);
	KUNIT_EXPECT_EQ(test, unmapped_page_read(page, 8, &found, 8), 0);
	KUNIT_EXPECT_EQ(test, found, val);

	unmapped_pool_free(((struct up_test *)test->priv)->pool, page);
	up_put_and_expect_nothing(test);
}

static void up_test_cmpxchg(struct kunit *test)
{
	struct page *page = up_alloc(test, GFN(0), false);
	u8 init[32], old[16] = {}, new[16] = {}, expect[32], found[32];
	unsigned int size;

	for (size = 1; size <= 8; size *= 2) {
		get_random_bytes(init, sizeof(init));
		get_random_bytes(new, sizeof(new));
		KUNIT_EXPECT_EQ(test, unmapped_page_write(page, 64, init, sizeof(init)), 0);

		/* Match: @size bytes change, and no others. */
		memcpy(old, init + 16, size);
		KUNIT_EXPECT_EQ(test, unmapped_page_cmpxchg(page, 80, old, new, size), 0);
		memcpy(expect, init, sizeof(init));
		memcpy(expect + 16, new, size);
		KUNIT_EXPECT_EQ(test, unmapped_page_read(page, 64, found, sizeof(found)), 0);
		KUNIT_EXPECT_MEMEQ(test, found, expect, sizeof(found));

		/* No match: the contents are told, and do not change. */
		memcpy(old, new, size);
		old[size - 1] ^= 1;
		KUNIT_EXPECT_EQ(test, unmapped_page_cmpxchg(page, 80, old, init, size), 1);
		KUNIT_EXPECT_MEMEQ(test, old, new, size);
		KUNIT_EXPECT_EQ(test, unmapped_page_read(page, 64, found, sizeof(found)), 0);
		KUNIT_EXPECT_MEMEQ(test, found, expect, sizeof(found));

		/* Not aligned, but within a cache line: not all architectures do that. */
		if (size > 1 && !IS_ENABLED(CONFIG_X86)) {
			KUNIT_EXPECT_EQ(test, unmapped_page_cmpxchg(page, 81, old, init, size),
					-EINVAL);
			continue;
		}
		memcpy(old, expect + 17, size);
		KUNIT_EXPECT_EQ(test, unmapped_page_cmpxchg(page, 81, old, init, size), 0);
		memcpy(expect + 17, init, size);
		KUNIT_EXPECT_EQ(test, unmapped_page_read(page, 64, found, sizeof(found)), 0);
		KUNIT_EXPECT_MEMEQ(test, found, expect, sizeof(found));
	}
	KUNIT_EXPECT_EQ(test, unmapped_page_cmpxchg(page, 0, old, new, 3), -EINVAL);
	KUNIT_EXPECT_EQ(test, unmapped_page_cmpxchg(page, 0, old, new, 0), -EINVAL);
	KUNIT_EXPECT_EQ(test, unmapped_page_cmpxchg(page, 0, old, new, 16), -EINVAL);
	KUNIT_EXPECT_EQ(test, unmapped_page_cmpxchg(page, PAGE_SIZE, old, new, 1), -EINVAL);
	KUNIT_EXPECT_EQ(test, unmapped_page_cmpxchg(page, PAGE_SIZE - 2, old, new, 4), -EINVAL);

	unmapped_pool_free(((struct up_test *)test->priv)->pool, page);
	up_put_and_expect_nothing(test);
}

static void up_test_copy_page(struct kunit *test)
{
	struct page *page = up_alloc(test, GFN(0), false);
	struct page *from = alloc_page(GFP_KERNEL), *to = alloc_page(GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, from);
	KUNIT_ASSERT_NOT_NULL(test, to);
	get_random_bytes(page_address(from), PAGE_SIZE);
	KUNIT_EXPECT_EQ(test, unmapped_page_copy_from(page, from), 0);
	KUNIT_EXPECT_EQ(test, unmapped_page_copy_to(to, page), 0);
	KUNIT_EXPECT_MEMEQ(test, page_address(from), page_address(to), PAGE_SIZE);
	__free_page(from);
	__free_page(to);

	unmapped_pool_free(((struct up_test *)test->priv)->pool, page);
	up_put_and_expect_nothing(test);
}

/* The window shows what it was opened for, not what it was opened for before. */
static void up_test_window_stale(struct kunit *test)
{
	struct up_test *t = test->priv;
	struct page *page[2];
	u64 val, found;
	unsigned int i;

	for (i = 0; i < 2; i++) {
		page[i] = up_alloc(test, GFN(0) + i, false);
		up_fill(test, page[i], i + 1);
	}
	for (i = 0; i < 1000; i++) {
		preempt_disable();
		KUNIT_ASSERT_EQ(test, unmapped_page_read(page[i & 1], 128, &val, 8), 0);
		KUNIT_ASSERT_EQ(test, unmapped_page_read(page[~i & 1], 128, &found, 8), 0);
		preempt_enable();
		KUNIT_ASSERT_EQ(test, val, (i & 1) + 1);
		KUNIT_ASSERT_EQ(test, found, (~i & 1) + 1);
	}
	for (i = 0; i < 2; i++)
		unmapped_pool_free(t->pool, page[i]);
	up_put_and_expect_nothing(test);
}

/* Memory with another alias in the kernel is of no use. */
static void up_test_kernel_image(struct kunit *test)
{
	unsigned long pfn = PHYS_PFN(__pa_symbol(_stext));
	struct page *page = up_alloc(test, GFN(0), false);

	KUNIT_EXPECT_FALSE(test, arch_unmapped_range_allowed(pfn, 1));
	KUNIT_EXPECT_FALSE(test, arch_unmapped_range_allowed(pfn - 1, 2));
	pfn = PHYS_PFN(__pa_symbol(_end) - 1);
	KUNIT_EXPECT_FALSE(test, arch_unmapped_range_allowed(pfn, 1));
	/* The init sections are free memory by the time of the test, or soon. */
	pfn = PHYS_PFN(__pa_symbol(__init_begin));
	KUNIT_EXPECT_FALSE(test, arch_unmapped_range_allowed(pfn, 1));
	KUNIT_EXPECT_TRUE(test, arch_unmapped_range_allowed(page_to_pfn(page), 1));

	unmapped_pool_free(((struct up_test *)test->priv)->pool, page);
	up_put_and_expect_nothing(test);
}

/* Every page of the block, not only the one that was asked for. */
static void up_test_absent(struct kunit *test)
{
	struct up_test *t = test->priv;
	struct page *page = up_alloc(test, GFN(0), true);
	u64 refused = unmapped_pool_refused();
	unsigned long i, nr = 0;
	struct page *p;

	KUNIT_EXPECT_TRUE(test, unmapped_pool_active());
	KUNIT_EXPECT_EQ(test, unmapped_pool_bytes(t->pool), up_bytes(test));
	KUNIT_EXPECT_EQ(test, page_count(page), 1);

	for (i = 0; i < up_bytes(test) >> PAGE_SHIFT; i++) {
		p = page + i;
		if (!page_is_unmapped(p))
			continue;
		nr++;
		KUNIT_ASSERT_FALSE(test, kernel_page_present(p));
		KUNIT_ASSERT_EQ(test, up_peek(p), -EFAULT);
	}
	/* gfn is the first of its range, so page is the first of its block. */
	KUNIT_EXPECT_EQ(test, nr, up_bytes(test) >> PAGE_SHIFT);
	KUNIT_EXPECT_EQ(test, unmapped_pool_refused() - refused, nr);
	KUNIT_EXPECT_FALSE(test, page_is_unmapped(page + nr));

	unmapped_pool_free(t->pool, page);
	up_put_and_expect_nothing(test);

	KUNIT_EXPECT_TRUE(test, kernel_page_present(page));
	KUNIT_EXPECT_FALSE(test, page_is_unmapped(page));
	KUNIT_EXPECT_EQ(test, up_peek(page), 0);
	KUNIT_EXPECT_EQ(test, unmapped_pool_refused() - refused, nr);
}

struct up_peek_args {
	struct page	*page;
	unsigned int	nr;
	unsigned int	readable;
};

static void up_peek_range(void *data)
{
	struct up_peek_args *args = data;
	unsigned int i;

	args->readable = 0;
	for (i = 0; i < args->nr; i++)
		args->readable += !up_peek(args->page + i);
}

/* Have all CPUs access the pages while they are still mapped. */
static struct page *up_alloc_primed(struct mempolicy *pol, pgoff_t ilx, gfp_t gfp,
				    unsigned int order)
{
	struct up_test *t = kunit_get_current_test()->priv;
	struct up_peek_args args = { .nr = 1U << order };
	int cpu;

	if (order > t->max_order)
		return NULL;
	args.page = alloc_pages(gfp, order);
	if (!args.page)
		return NULL;

	/*
	 * What has all TLBs flushed besides, and would hide that the pool does not: a
	 * large entry that is split, and what vunmap() was lazy about.
	 */
	KUNIT_EXPECT_EQ(kunit_get_current_test(), 0,
			set_direct_map_valid_noflush(args.page, args.nr, false));
	KUNIT_EXPECT_EQ(kunit_get_current_test(), 0,
			set_direct_map_valid_noflush(args.page, args.nr, true));
	flush_tlb_all();
	vm_unmap_aliases();

	for_each_online_cpu(cpu) {
		smp_call_function_single(cpu, up_peek_range, &args, 1);
		KUNIT_EXPECT_EQ(kunit_get_current_test(), args.readable, args.nr);
	}
	t->primed = args.page;
	t->primed_order = order;
	split_page(args.page, order);
	return args.page;
}

static void up_test_other_cpus(struct kunit *test)
{
	struct up_test *t = test->priv;
	struct up_peek_args args;
	struct page *page;
	unsigned int i;
	int cpu;

	if (num_online_cpus() < 2)
		kunit_skip(test, "needs two CPUs");

	/* Entries for the direct map may be small or large. */
	for (i = 0; i < 2; i++) {
		t->max_order = i ? UNMAPPED_BLOCK_ORDER : 0;
		kunit_activate_static_stub(test, unmapped_alloc_order, up_alloc_primed);
		page = up_alloc(test, GFN(i), true);
		kunit_deactivate_static_stub(test, unmapped_alloc_order);

		args.page = t->primed;
		args.nr = 1U << t->primed_order;
		for_each_online_cpu(cpu) {
			smp_call_function_single(cpu, up_peek_range, &args, 1);
			KUNIT_EXPECT_EQ_MSG(test, args.readable, 0, "on CPU %d", cpu);
		}
		unmapped_pool_free(t->pool, page);
	}
	up_put_and_expect_nothing(test);
}

/* Looks at what is mapped again the last moment before it is. */
static int up_set_valid(unsigned long pfn, unsigned int nr, bool valid)
{
	struct up_test *t = kunit_get_current_test()->priv;
	unsigned int i;
	int ret;

	if (valid) {
		for (i = 0; i < nr; i++)
			t->dirty_pages += !up_is_zero(pfn_to_page(pfn + i));
		if (t->fail_restore)
			return -ENOMEM;
		t->restored_pages += nr;
	} else if (t->fail_zap) {
		/* Half of it done. */
		ret = set_direct_map_valid_noflush(pfn_to_page(pfn), nr / 2, false);
		return ret ?: -ENOMEM;
	}
	return set_direct_map_valid_noflush(pfn_to_page(pfn), nr, valid);
}

static void up_test_scrub(struct kunit *test)
{
	struct up_test *t = test->priv;
	struct page *page[8];
	unsigned int i;

	kunit_activate_static_stub(test, unmapped_set_valid, up_set_valid);

	for (i = 0; i < ARRAY_SIZE(page); i++) {
		page[i] = up_alloc(test, GFN(i / 4) + i % 4, true);
		up_fill(test, page[i], ~0ULL);
	}

	/* Before it can be handed out again ... */
	unmapped_pool_free(t->pool, page[0]);
	KUNIT_EXPECT_TRUE(test, page_is_unmapped(page[0]));
	KUNIT_EXPECT_TRUE(test, up_is_zero(page[0]));
	KUNIT_EXPECT_FALSE(test, up_is_zero(page[1]));

	/* ... and before it is mapped. */
	for (i = 1; i < ARRAY_SIZE(page); i++)
		unmapped_pool_free(t->pool, page[i]);
	up_put_and_expect_nothing(test);
	KUNIT_EXPECT_EQ(test, t->dirty_pages, 0);
	KUNIT_EXPECT_GE(test, t->restored_pages, ARRAY_SIZE(page));
	for (i = 0; i < ARRAY_SIZE(page); i++)
		KUNIT_EXPECT_TRUE(test, kernel_page_present(page[i]));
}

static void up_test_free_clean(struct kunit *test)
{
	struct up_test *t = test->priv;
	struct page *page = up_alloc(test, GFN(0), false);

	/* No scrub: that is what distinguishes it, so a lie is found out. */
	up_fill(test, page, 1);
	unmapped_pool_free_clean(t->pool, page, 1);
	KUNIT_EXPECT_TRUE(test, page_is_unmapped(page));
	KUNIT_EXPECT_FALSE(test, up_is_zero(page));
	KUNIT_EXPECT_EQ(test, unmapped_page_clear(page), 0);
	up_put_and_expect_nothing(test);
}

static void up_test_quarantine(struct kunit *test)
{
	struct up_test *t = test->priv;
	struct page *page = up_alloc(test, GFN(0), false), *other;
	unsigned int i;

	up_fill(test, page, ~0ULL);
	get_page(page);
	unmapped_pool_free(t->pool, page);
	KUNIT_EXPECT_EQ(test, up_quarantined(test), PAGE_SIZE);
	KUNIT_EXPECT_FALSE(test, kernel_page_present(page));

	/* Written by the one who has the reference: has to be scrubbed, too. */
	up_fill(test, page, 5);
	for (i = 0; i < 2 * BLOCK_PAGES; i++) {
		other = up_alloc(test, GFN(0), false);
		KUNIT_ASSERT_PTR_NE(test, page, other);
		unmapped_pool_free_clean(t->pool, other, 1);
	}
	KUNIT_EXPECT_EQ(test, up_quarantined(test), PAGE_SIZE);
	KUNIT_EXPECT_EQ(test, unmapped_pool_shrink(ULONG_MAX), 0);

	put_page(page);
	unmapped_pool_free_clean(t->pool, up_alloc(test, GFN(0), false), 1);
	KUNIT_EXPECT_EQ(test, up_quarantined(test), 0);
	KUNIT_EXPECT_TRUE(test, page_is_unmapped(page));
	KUNIT_EXPECT_TRUE(test, up_is_zero(page));
	up_put_and_expect_nothing(test);
}

static void up_wait(struct kunit *test)
{
	unsigned int i;

	for (i = 0; i < 200 && up_bytes(test); i++)
		msleep(100);
	KUNIT_EXPECT_EQ(test, up_bytes(test), 0);
	KUNIT_EXPECT_EQ(test, up_quarantined(test), 0);
}

/* The pool outlives its creator for as long as a page is referenced. */
static void up_test_quarantine_put(struct kunit *test)
{
	struct up_test *t = test->priv;
	struct page *page = up_alloc(test, GFN(0), false);
	struct page *other = up_alloc(test, GFN(7), true);

	up_fill(test, page, ~0ULL);
	get_page(page);
	unmapped_pool_free(t->pool, page);
	unmapped_pool_free(t->pool, other);
	up_put(test);
	/* The block of the other one has gone. */
	KUNIT_EXPECT_FALSE(test, page_is_unmapped(other));
	KUNIT_EXPECT_TRUE(test, page_is_unmapped(page));
	KUNIT_EXPECT_EQ(test, up_quarantined(test), PAGE_SIZE);
	KUNIT_EXPECT_LE(test, up_bytes(test), PAGE_SIZE * BLOCK_PAGES);
	KUNIT_EXPECT_TRUE(test, unmapped_pool_active());
	msleep(1000);
	KUNIT_EXPECT_FALSE(test, kernel_page_present(page));

	put_page(page);
	up_wait(test);
	KUNIT_EXPECT_TRUE(test, kernel_page_present(page));
}

/* As for a page that the owner gives back after it dropped the pool. */
static void up_test_free_after_put(struct kunit *test)
{
	struct up_test *t = test->priv;
	struct unmapped_pool *pool = t->pool;
	struct page *page = up_alloc(test, GFN(0), false);

	up_put(test);
	KUNIT_EXPECT_TRUE(test, page_is_unmapped(page));
	unmapped_pool_free(pool, page);
	KUNIT_EXPECT_EQ(test, up_bytes(test), 0);
}

static void up_test_home(struct kunit *test)
{
	struct up_test *t = test->priv;
	struct page *a, *b, *c, *d;

	a = up_alloc(test, GFN(0) + 3, true);
	up_need_large(test, &a, 1);
	KUNIT_EXPECT_EQ(test, page_to_pfn(a) % BLOCK_PAGES, 3);

	/* Same range, same block; asking for whole is not needed any more. */
	b = up_alloc(test, GFN(0) + BLOCK_PAGES - 1, false);
	KUNIT_EXPECT_PTR_EQ(test, b, a + BLOCK_PAGES - 4);
	KUNIT_EXPECT_EQ(test, up_bytes(test), PAGE_SIZE * BLOCK_PAGES);

	/* Another range, another block. */
	c = up_alloc(test, GFN(1), true);
	KUNIT_EXPECT_EQ(test, page_to_pfn(c) % BLOCK_PAGES, 0);
	KUNIT_EXPECT_NE(test, page_to_pfn(c), page_to_pfn(a) - 3);
	KUNIT_EXPECT_EQ(test, up_bytes(test), 2 * PAGE_SIZE * BLOCK_PAGES);

	/* A page that came back: for its gfn, and else for any. */
	unmapped_pool_free(t->pool, b);
	KUNIT_EXPECT_PTR_EQ(test, up_alloc(test, GFN(0) + BLOCK_PAGES - 1, true), b);
	unmapped_pool_free(t->pool, b);
	d = up_alloc(test, GFN(9) + 77, false);
	KUNIT_EXPECT_PTR_EQ(test, d, b);
	/* Its own gfn has to go somewhere else then, but no reserved page is taken. */
	b = up_alloc(test, GFN(0) + BLOCK_PAGES - 1, true);
	KUNIT_EXPECT_PTR_NE(test, d, b);
	KUNIT_EXPECT_EQ(test, up_bytes(test), 3 * PAGE_SIZE * BLOCK_PAGES);
	KUNIT_EXPECT_PTR_EQ(test, up_alloc(test, GFN(0) + 4, false), a + 1);
	unmapped_pool_free(t->pool, a + 1);

	/* An idle block may become home of another range. */
	unmapped_pool_free(t->pool, c);
	c = up_alloc(test, GFN(5) + 8, true);
	KUNIT_EXPECT_EQ(test, page_to_pfn(c) % BLOCK_PAGES, 8);
	KUNIT_EXPECT_EQ(test, up_bytes(test), 3 * PAGE_SIZE * BLOCK_PAGES);

	unmapped_pool_free(t->pool, a);
	unmapped_pool_free(t->pool, b);
	unmapped_pool_free(t->pool, c);
	unmapped_pool_free(t->pool, d);
	/* A pool keeps little of what it does not use. */
	KUNIT_EXPECT_EQ(test, up_bytes(test), PAGE_SIZE * BLOCK_PAGES);
	up_put_and_expect_nothing(test);
}

static struct page *up_alloc_limited(struct mempolicy *pol, pgoff_t ilx, gfp_t gfp,
				     unsigned int order)
{
	struct up_test *t = kunit_get_current_test()->priv;
	struct page *page;

	if (t->no_memory || order > t->max_order)
		return NULL;
	page = alloc_pages(gfp, order);
	if (page)
		split_page(page, order);
	t->last_order = order;
	return page;
}

static void up_test_alloc_home(struct kunit *test)
{
	struct up_test *t = test->priv;
	unsigned long *taken = kunit_kcalloc(test, BITS_TO_LONGS(BLOCK_PAGES),
					     sizeof(long), GFP_KERNEL);
	struct page *a, *b, *first, *other;
	unsigned int i;

	KUNIT_ASSERT_NOT_NULL(test, taken);
	a = up_alloc(test, GFN(0) + 3, true);
	up_need_large(test, &a, 1);
	b = up_alloc(test, GFN(0) + 4, true);
	unmapped_pool_free(t->pool, b);

	/* Not more than what was asked for ... */
	bitmap_zero(taken, BLOCK_PAGES);
	bitmap_set(taken, 3, 2);
	first = unmapped_pool_alloc_home(t->pool, GFN(0), 1000, NULL, 0, GFP_KERNEL,
					 taken);
	KUNIT_ASSERT_PTR_EQ(test, first, a - 3);
	KUNIT_EXPECT_EQ(test, bitmap_weight(taken, BLOCK_PAGES), 1);
	KUNIT_ASSERT_TRUE(test, test_bit(4, taken));
	unmapped_pool_free_clean(t->pool, first + 4, 1);

	/* ... nor what is in use; zero, and by names that follow each other. */
	bitmap_fill(taken, BLOCK_PAGES);
	first = unmapped_pool_alloc_home(t->pool, GFN(0), 1000, NULL, 0, GFP_KERNEL,
					 taken);
	KUNIT_ASSERT_PTR_EQ(test, first, a - 3);
	KUNIT_EXPECT_EQ(test, bitmap_weight(taken, BLOCK_PAGES), BLOCK_PAGES - 1);
	KUNIT_EXPECT_FALSE(test, test_bit(3, taken));
	KUNIT_EXPECT_EQ(test, page_private(a), GFN(0) + 3);
	for_each_set_bit(i, taken, BLOCK_PAGES) {
		KUNIT_ASSERT_EQ(test, page_private(first + i), 1000 + i);
		KUNIT_ASSERT_TRUE(test, up_is_zero(first + i));
	}
	KUNIT_EXPECT_EQ(test, up_bytes(test), PAGE_SIZE * BLOCK_PAGES);

	/* Nothing is handed out twice. */
	bitmap_fill(taken, BLOCK_PAGES);
	other = unmapped_pool_alloc_home(t->pool, GFN(0), 1000, NULL, 0, GFP_KERNEL,
					 taken);
	KUNIT_EXPECT_PTR_EQ(test, other, first);
	KUNIT_EXPECT_TRUE(test, bitmap_empty(taken, BLOCK_PAGES));

	/* Another range has none if it has pages elsewhere, ... */
	for (i = 0; i < BLOCK_PAGES; i++)
		unmapped_pool_free(t->pool, first + i);
	bitmap_fill(taken, BLOCK_PAGES);
	__clear_bit(9, taken);
	other = unmapped_pool_alloc_home(t->pool, GFN(1), 0, NULL, 0, GFP_KERNEL, taken);
	KUNIT_EXPECT_NULL(test, other);
	KUNIT_EXPECT_TRUE(test, bitmap_empty(taken, BLOCK_PAGES));

	/* ... or else one of its own, an idle one if there is any. */
	bitmap_fill(taken, BLOCK_PAGES);
	other = unmapped_pool_alloc_home(t->pool, GFN(1), 0, NULL, 0, GFP_KERNEL, taken);
	KUNIT_EXPECT_PTR_EQ(test, other, first);
	KUNIT_EXPECT_TRUE(test, bitmap_full(taken, BLOCK_PAGES));
	bitmap_fill(taken, BLOCK_PAGES);
	other = unmapped_pool_alloc_home(t->pool, GFN(2), 0, NULL, 0, GFP_KERNEL, taken);
	if (other) {
		KUNIT_EXPECT_PTR_NE(test, other, first);
		KUNIT_EXPECT_TRUE(test, bitmap_full(taken, BLOCK_PAGES));
		for (i = 0; i < BLOCK_PAGES; i++)
			unmapped_pool_free(t->pool, other + i);
	}

	for (i = 0; i < BLOCK_PAGES; i++)
		unmapped_pool_free(t->pool, first + i);
	up_put(test);

	/* There is none. */
	t->pool = unmapped_pool_create(OWNER, NULL, NULL);
	KUNIT_ASSERT_FALSE(test, IS_ERR(t->pool));
	t->max_order = 3;
	kunit_activate_static_stub(test, unmapped_alloc_order, up_alloc_limited);
	bitmap_fill(taken, BLOCK_PAGES);
	other = unmapped_pool_alloc_home(t->pool, GFN(0), 0, NULL, 0, GFP_KERNEL, taken);
	kunit_deactivate_static_stub(test, unmapped_alloc_order);
	KUNIT_EXPECT_NULL(test, other);
	KUNIT_EXPECT_TRUE(test, bitmap_empty(taken, BLOCK_PAGES));
	KUNIT_EXPECT_EQ(test, up_bytes(test), 0);
	up_put_and_expect_nothing(test);
}

/* Memory for the owner that is as large as a block, and none of the pool's. */
static void up_test_alloc_mapped(struct kunit *test)
{
	struct up_test *t = test->priv;
	struct page *page;
	unsigned int i;

	page = unmapped_pool_alloc_mapped(t->pool, NULL, 0, GFP_HIGHUSER | __GFP_ZERO);
	if (!page)
		kunit_skip(test, "no block of memory");

	KUNIT_EXPECT_TRUE(test, IS_ALIGNED(page_to_pfn(page), BLOCK_PAGES));
	for (i = 0; i < BLOCK_PAGES; i++) {
		KUNIT_ASSERT_FALSE(test, PageCompound(page + i));
		KUNIT_ASSERT_EQ(test, page_count(page + i), 1);
		KUNIT_ASSERT_TRUE(test, kernel_page_present(page + i));
		KUNIT_ASSERT_FALSE(test, page_is_unmapped(page + i));
		KUNIT_ASSERT_TRUE(test, up_is_zero(page + i));
		put_page(page + i);
	}
	KUNIT_EXPECT_EQ(test, up_bytes(test), 0);
	up_put_and_expect_nothing(test);
}

static void up_test_fallback(struct kunit *test)
{
	struct up_test *t = test->priv;
	struct page *page[24];
	unsigned int i;

	kunit_activate_static_stub(test, unmapped_alloc_order, up_alloc_limited);
	kunit_activate_static_stub(test, unmapped_set_valid, up_set_valid);

	for (i = 0; i < ARRAY_SIZE(page); i++) {
		t->max_order = i < 16 ? 3 : 0;
		page[i] = up_alloc(test, GFN(0) + i, true);
		KUNIT_EXPECT_FALSE(test, kernel_page_present(page[i]));
		KUNIT_EXPECT_TRUE(test, up_is_zero(page[i]));
		up_fill(test, page[i], ~0ULL);
	}
	KUNIT_EXPECT_EQ(test, t->last_order, 0);
	KUNIT_EXPECT_EQ(test, up_bytes(test), ARRAY_SIZE(page) * PAGE_SIZE);

	/* Nothing at all: an error, and then what is reserved for others. */
	t->no_memory = true;
	KUNIT_EXPECT_EQ(test, PTR_ERR(unmapped_pool_alloc(t->pool, GFN(3), 0, true, NULL, 0,
							  GFP_KERNEL)), -ENOMEM);
	KUNIT_EXPECT_EQ(test, up_bytes(test), ARRAY_SIZE(page) * PAGE_SIZE);

	for (i = 0; i < ARRAY_SIZE(page); i++)
		unmapped_pool_free(t->pool, page[i]);
	up_put_and_expect_nothing(test);
	KUNIT_EXPECT_EQ(test, t->dirty_pages, 0);
	for (i = 0; i < ARRAY_SIZE(page); i++)
		KUNIT_EXPECT_TRUE(test, kernel_page_present(page[i]));
}

#ifdef CONFIG_NUMA
/*
 * A policy that can't be heeded: for pages without a home a block is taken once
 * in a while to try, and not for each of them.
 */
static void up_test_policy(struct kunit *test)
{
	struct mempolicy pol = { .mode = MPOL_PREFERRED };
	struct up_test *t = test->priv;
	struct page *page[2 * 8];
	unsigned int i;

	t->max_order = 3;
	kunit_activate_static_stub(test, unmapped_alloc_order, up_alloc_limited);
	for (i = 0; i < ARRAY_SIZE(page); i++) {
		/* Nowhere, so it is always another node; nor is there a home for any. */
		page[i] = unmapped_pool_alloc(t->pool, GFN(0) + i, i, i % 2, &pol, 0,
					      GFP_KERNEL);
		KUNIT_ASSERT_FALSE(test, IS_ERR(page[i]));
		if (i < 8)
			KUNIT_EXPECT_LE(test, up_bytes(test), 2 * 8 * PAGE_SIZE);
	}
	KUNIT_EXPECT_LE(test, up_bytes(test), 3 * 8 * PAGE_SIZE);

	for (i = 0; i < ARRAY_SIZE(page); i++)
		unmapped_pool_free(t->pool, page[i]);

	/* A set of nodes without memory binds nobody. */
	pol.mode = MPOL_BIND;
	page[0] = unmapped_pool_alloc(t->pool, GFN(0), 0, false, &pol, 0, GFP_KERNEL);
	KUNIT_EXPECT_FALSE(test, IS_ERR(page[0]));
	if (!IS_ERR(page[0]))
		unmapped_pool_free(t->pool, page[0]);
	up_put_and_expect_nothing(test);
}
#endif

static void up_test_no_memory_takes_reserved(struct kunit *test)
{
	struct up_test *t = test->priv;
	struct page *page = up_alloc(test, GFN(0), true), *other;

	up_need_large(test, &page, 1);

	t->no_memory = true;
	kunit_activate_static_stub(test, unmapped_alloc_order, up_alloc_limited);
	other = up_alloc(test, GFN(1), true);
	KUNIT_EXPECT_PTR_NE(test, page, other);
	unmapped_pool_free(t->pool, page);
	unmapped_pool_free(t->pool, other);
	up_put_and_expect_nothing(test);
}

static void up_test_zap_fails(struct kunit *test)
{
	struct up_test *t = test->priv;
	struct page *page;

	/* The worker, which the stubs do not apply to, is to come later. */
	unmapped_retry_delay = 5 * HZ;
	kunit_activate_static_stub(test, unmapped_set_valid, up_set_valid);
	t->fail_zap = true;
	page = unmapped_pool_alloc(t->pool, GFN(0), 0, true, NULL, 0, GFP_KERNEL);
	KUNIT_EXPECT_EQ(test, PTR_ERR(page), -ENOMEM);
	/* Both halves are back. */
	KUNIT_EXPECT_EQ(test, up_bytes(test), 0);
	KUNIT_EXPECT_GT(test, t->restored_pages, 0);

	/* And once more without a way back: it is kept, and not used. */
	t->fail_restore = true;
	page = unmapped_pool_alloc(t->pool, GFN(0), 0, true, NULL, 0, GFP_KERNEL);
	KUNIT_EXPECT_EQ(test, PTR_ERR(page), -ENOMEM);
	KUNIT_EXPECT_GT(test, up_bytes(test), 0);
	KUNIT_EXPECT_EQ(test, up_bytes(test), up_quarantined(test));

	up_put(test);
	up_wait(test);
}

static void up_test_restore_fails(struct kunit *test)
{
	struct up_test *t = test->priv;
	struct page *page = up_alloc(test, GFN(0), true);
	u64 bytes = up_bytes(test);

	up_fill(test, page, ~0ULL);
	unmapped_retry_delay = 5 * HZ;
	kunit_activate_static_stub(test, unmapped_set_valid, up_set_valid);
	t->fail_restore = true;
	unmapped_pool_free(t->pool, page);
	up_put(test);
	KUNIT_EXPECT_EQ(test, t->dirty_pages, 0);
	KUNIT_EXPECT_EQ(test, up_bytes(test), bytes);
	KUNIT_EXPECT_EQ(test, up_quarantined(test), bytes);
	KUNIT_EXPECT_TRUE(test, page_is_unmapped(page));
	KUNIT_EXPECT_EQ(test, page_count(page), 1);

	up_wait(test);
	KUNIT_EXPECT_TRUE(test, kernel_page_present(page));
}

static void up_test_shrink(struct kunit *test)
{
	struct up_test *t = test->priv;
	struct page *page = up_alloc(test, GFN(0), true);
	struct page *other = up_alloc(test, GFN(1), true);
	u64 bytes = up_bytes(test);

	/* Nothing to be had from blocks in use. */
	KUNIT_EXPECT_EQ(test, unmapped_pool_shrink(ULONG_MAX), 0);
	KUNIT_EXPECT_EQ(test, up_bytes(test), bytes);

	/* What the pool kept goes. */
	unmapped_pool_free(t->pool, page);
	KUNIT_EXPECT_EQ(test, up_bytes(test), bytes);
	KUNIT_EXPECT_EQ(test, unmapped_pool_shrink(1) << PAGE_SHIFT, bytes / 2);
	KUNIT_EXPECT_EQ(test, up_bytes(test), bytes / 2);
	KUNIT_EXPECT_TRUE(test, kernel_page_present(page));

	/* Reclaim leaves it to a worker. */
	unmapped_pool_free(t->pool, other);
	KUNIT_EXPECT_EQ(test, up_bytes(test), bytes / 2);
	drop_slab();
	up_wait(test);
	up_put_and_expect_nothing(test);
}

#if defined(CONFIG_PROC_FS) && defined(CONFIG_X86)
static unsigned long up_meminfo(const char *name)
{
	static char buf[512];
	struct seq_file m = { .buf = buf, .size = sizeof(buf) - 1 };
	unsigned long kb = 0;
	char *p;

	arch_report_meminfo(&m);
	buf[m.count] = 0;
	p = strstr(buf, name);
	if (p && sscanf(p + strlen(name), " %lu kB", &kb) != 1)
		kb = 0;
	return kb;
}

static void up_test_large_entries(struct kunit *test)
{
	struct up_test *t = test->priv;
	struct page *page[6];
	unsigned long small;
	unsigned int i, pass;

	if (!up_meminfo("DirectMap2M:"))
		kunit_skip(test, "the direct map has no 2 MiB entries");

	/*
	 * Only in a second pass it is clear that it is the same memory.  In the
	 * first one blocks may come where the direct map is small already.
	 */
	for (pass = 0; pass < 2; pass++) {
		small = up_meminfo("DirectMap4k:");
		for (i = 0; i < ARRAY_SIZE(page); i++)
			page[i] = up_alloc(test, GFN(i), true);
		up_need_large(test, page, ARRAY_SIZE(page));
		KUNIT_EXPECT_EQ(test, up_meminfo("DirectMap4k:"), small);
		for (i = 0; i < ARRAY_SIZE(page); i++)
			unmapped_pool_free(t->pool, page[i]);
		unmapped_pool_shrink(ULONG_MAX);
		KUNIT_EXPECT_EQ(test, up_bytes(test), 0);
		KUNIT_EXPECT_EQ(test, up_meminfo("DirectMap4k:"), small);
	}
	up_put_and_expect_nothing(test);
}
#endif

#ifdef CONFIG_MEMORY_FAILURE
/* Leaves two pages behind which stay poisoned until reboot. */
static void up_test_memory_failure(struct kunit *test)
{
	struct up_test *t = test->priv;
	struct page *page = up_alloc(test, GFN(0) + 7, true);
	struct page *idle, *other;

	up_need_large(test, &page, 1);
	idle = page + 1;

	/* Handed out: the owner hears of it and gives it back. */
	KUNIT_EXPECT_EQ(test, memory_failure(page_to_pfn(page), MF_SW_SIMULATED), 0);
	KUNIT_EXPECT_EQ(test, t->mf_calls, 1);
	KUNIT_EXPECT_EQ(test, t->mf_index, GFN(0) + 7);
	KUNIT_EXPECT_PTR_EQ(test, t->mf_page, page);
	KUNIT_EXPECT_TRUE(test, PageHWPoison(page));
	KUNIT_EXPECT_EQ(test, memory_failure(page_to_pfn(page), MF_SW_SIMULATED), -EHWPOISON);
	KUNIT_EXPECT_EQ(test, t->mf_calls, 1);

	/* Not handed out: nobody has to hear of it. */
	KUNIT_EXPECT_EQ(test, memory_failure(page_to_pfn(idle), MF_SW_SIMULATED), 0);
	KUNIT_EXPECT_EQ(test, t->mf_calls, 1);
	KUNIT_EXPECT_EQ(test, up_quarantined(test), PAGE_SIZE);

	KUNIT_EXPECT_EQ(test, soft_offline_page(page_to_pfn(page + 2), 0), -EOPNOTSUPP);
	KUNIT_EXPECT_EQ(test, unpoison_memory(page_to_pfn(idle)), -EOPNOTSUPP);

	unmapped_pool_free(t->pool, page);
	KUNIT_EXPECT_EQ(test, up_quarantined(test), 2 * PAGE_SIZE);
	other = up_alloc(test, GFN(0) + 7, true);
	KUNIT_EXPECT_PTR_NE(test, other, page);
	unmapped_pool_free(t->pool, other);
	other = up_alloc(test, GFN(0) + 8, true);
	KUNIT_EXPECT_PTR_NE(test, other, idle);
	unmapped_pool_free(t->pool, other);

	/* Their neighbours go back, they themselves never. */
	up_put(test);
	KUNIT_EXPECT_EQ(test, up_bytes(test), 2 * PAGE_SIZE);
	KUNIT_EXPECT_EQ(test, up_quarantined(test), 2 * PAGE_SIZE);
	KUNIT_EXPECT_TRUE(test, page_is_unmapped(page));
	KUNIT_EXPECT_TRUE(test, page_is_unmapped(idle));
	KUNIT_EXPECT_FALSE(test, kernel_page_present(page));
	KUNIT_EXPECT_FALSE(test, kernel_page_present(idle));
	KUNIT_EXPECT_FALSE(test, page_is_unmapped(page - 1));
	KUNIT_EXPECT_FALSE(test, page_is_unmapped(page + 2));
	KUNIT_EXPECT_TRUE(test, kernel_page_present(page - 1));
	KUNIT_EXPECT_TRUE(test, kernel_page_present(page + 2));
	KUNIT_EXPECT_EQ(test, memory_failure(page_to_pfn(page), MF_SW_SIMULATED), -EHWPOISON);
	KUNIT_EXPECT_EQ(test, t->mf_calls, 1);
}

/* No callback after unregistration. */
static void up_test_unregister(struct kunit *test)
{
	struct up_test *t = test->priv;
	struct page *page = up_alloc(test, GFN(0), false);

	unmapped_pool_unregister(t->pool);
	KUNIT_EXPECT_EQ(test, unmapped_pool_memory_failure(page), 0);
	KUNIT_EXPECT_EQ(test, t->mf_calls, 0);
	/* Only a test may do that. */
	ClearPageHWPoison(page);
	unmapped_pool_free(t->pool, page);
	up_put_and_expect_nothing(test);
}
#endif

/* Several owners of pages at once, all of which check what they have. */
struct up_worker {
	struct task_struct	*task;
	struct kunit		*test;
	struct up_test		*t;
	unsigned int		id;
	unsigned long		errors;
	struct page		*page;		/* up_alloc_other() */
	struct completion	done;
};

#define UP_STRESS_PAGES		64
#define UP_STRESS_ROUNDS	1500

static int up_stress(void *data)
{
	struct page *page[UP_STRESS_PAGES] = {};
	struct up_worker *w = data;
	struct rnd_state rnd;
	unsigned int i, n;

	/* For the stub, if there is one. */
	current->kunit_test = w->test;
	prandom_seed_state(&rnd, w->id + 1);
	for (n = 0; n < UP_STRESS_ROUNDS + UP_STRESS_PAGES; n++) {
		u32 r = prandom_u32_state(&rnd);
		u64 tag, found = 0;

		/* In the end everything is given back. */
		i = n < UP_STRESS_ROUNDS ? r % UP_STRESS_PAGES : n - UP_STRESS_ROUNDS;
		tag = (u64)w->id << 32 | (i + 1);

		if (page[i]) {
			if (unmapped_page_read(page[i], 8 * i, &found, 8) || found != tag ||
			    kernel_page_present(page[i]))
				w->errors++;
			unmapped_pool_free(w->t->pool, page[i]);
			page[i] = NULL;
		} else if (n < UP_STRESS_ROUNDS) {
			page[i] = unmapped_pool_alloc(w->t->pool, GFN(i % 8) + w->id * 64 + i, i,
						      r & 0x10000, NULL, 0, GFP_KERNEL);
			if (IS_ERR(page[i])) {
				page[i] = NULL;
				w->errors++;
			} else if (!up_is_zero(page[i]) ||
				   unmapped_page_write(page[i], 8 * i, &tag, 8)) {
				w->errors++;
			}
		}
		if (!(n % 64))
			unmapped_pool_shrink(ULONG_MAX);
	}
	current->kunit_test = NULL;
	complete(&w->done);
	return 0;
}

static void up_run_stress(struct kunit *test)
{
	struct up_worker *w;
	unsigned int i, nr = min(num_online_cpus() + 1, 6);

	w = kunit_kcalloc(test, nr, sizeof(*w), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, w);
	for (i = 0; i < nr; i++) {
		w[i].test = test;
		w[i].t = test->priv;
		w[i].id = i;
		init_completion(&w[i].done);
		w[i].task = kthread_run(up_stress, &w[i], "up_stress/%u", i);
		if (IS_ERR(w[i].task)) {
			w[i].errors++;
			complete(&w[i].done);
		}
	}
	for (i = 0; i < nr; i++) {
		wait_for_completion(&w[i].done);
		KUNIT_EXPECT_EQ(test, w[i].errors, 0);
	}
	up_put_and_expect_nothing(test);
}

static void up_test_stress(struct kunit *test)
{
	up_run_stress(test);
}

/* Blocks of a page: all the time one is added, and one gone. */
static void up_test_stress_small(struct kunit *test)
{
	kunit_activate_static_stub(test, unmapped_alloc_order, up_alloc_limited);
	up_run_stress(test);
}

/* The first one who wants memory gets it when the second has what it came for. */
static struct page *up_alloc_in_turn(struct mempolicy *pol, pgoff_t ilx, gfp_t gfp,
				     unsigned int order)
{
	struct up_test *t = kunit_get_current_test()->priv;

	if (atomic_fetch_inc(&t->nr_allocs) == 0) {
		complete(&t->first_came);
		t->waited = !wait_for_completion_timeout(&t->second_has, 20 * HZ);
	}
	return up_alloc_limited(pol, ilx, gfp, order);
}

static struct page *up_alloc_block(struct up_test *t, u64 gfn)
{
	DECLARE_BITMAP(taken, BLOCK_PAGES);

	bitmap_fill(taken, BLOCK_PAGES);
	return unmapped_pool_alloc_home(t->pool, gfn, 0, NULL, 0, GFP_KERNEL, taken);
}

static int up_alloc_other(void *data)
{
	struct up_worker *w = data;

	current->kunit_test = w->test;
	w->page = unmapped_pool_alloc(w->t->pool, GFN(0), 0, true, NULL, 0, GFP_KERNEL);
	current->kunit_test = NULL;
	complete(&w->done);
	return 0;
}

/*
 * Who adds a block for a range does not wait for who adds one for another, or for
 * none; and finds what someone else has added for the same range.
 */
static void up_test_grow_apart(struct kunit *test)
{
	struct page *page, *block, *same = NULL;
	struct up_test *t = test->priv;
	struct up_worker *w;
	unsigned int i;
	u64 bytes;

	w = kunit_kcalloc(test, 2, sizeof(*w), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, w);
	t->max_order = UNMAPPED_BLOCK_ORDER;
	init_completion(&t->first_came);
	init_completion(&t->second_has);
	for (i = 0; i < 2; i++) {
		w[i].test = test;
		w[i].t = t;
		init_completion(&w[i].done);
	}

	kunit_activate_static_stub(test, unmapped_alloc_order, up_alloc_in_turn);
	/* Nothing may end the test as long as one of these runs. */
	w[0].task = kthread_run(up_alloc_other, &w[0], "up_alloc_other");
	if (IS_ERR(w[0].task)) {
		kunit_deactivate_static_stub(test, unmapped_alloc_order);
		KUNIT_FAIL_AND_ABORT(test, "no kthread");
	}
	wait_for_completion(&t->first_came);
	w[1].task = kthread_run(up_alloc_other, &w[1], "up_alloc_other");
	block = up_alloc_block(t, GFN(1));
	page = unmapped_pool_alloc(t->pool, GFN(2), 0, false, NULL, 0, GFP_KERNEL);
	complete(&t->second_has);
	wait_for_completion(&w[0].done);
	if (!IS_ERR(w[1].task)) {
		wait_for_completion(&w[1].done);
		same = w[1].page;
	}
	kunit_deactivate_static_stub(test, unmapped_alloc_order);
	bytes = up_bytes(test);

	KUNIT_EXPECT_FALSE(test, t->waited);
	KUNIT_EXPECT_FALSE(test, IS_ERR(page));
	KUNIT_EXPECT_FALSE(test, IS_ERR_OR_NULL(w[0].page));
	KUNIT_EXPECT_FALSE(test, IS_ERR_OR_NULL(same));
	if (!IS_ERR(page))
		unmapped_pool_free(t->pool, page);
	if (!IS_ERR_OR_NULL(w[0].page))
		unmapped_pool_free(t->pool, w[0].page);
	if (!IS_ERR_OR_NULL(same))
		unmapped_pool_free(t->pool, same);
	for (i = 0; block && i < BLOCK_PAGES; i++)
		unmapped_pool_free(t->pool, block + i);
	up_put_and_expect_nothing(test);
	if (!block || t->last_order != UNMAPPED_BLOCK_ORDER)
		kunit_skip(test, "needs three blocks of full size");
	KUNIT_EXPECT_EQ(test, bytes, 3 * BLOCK_PAGES * PAGE_SIZE);
	KUNIT_EXPECT_EQ(test, atomic_read(&t->nr_allocs), 3);
}

static struct kunit_case up_cases[] = {
	KUNIT_CASE(up_test_window),
	KUNIT_CASE(up_test_is_zero),
	KUNIT_CASE(up_test_window_clear),
	KUNIT_CASE(up_test_free_range),
	KUNIT_CASE(up_test_window_fault),
	KUNIT_CASE(up_test_window_task),
	KUNIT_CASE(up_test_cmpxchg),
	KUNIT_CASE(up_test_copy_page),
	KUNIT_CASE(up_test_window_stale),
	KUNIT_CASE(up_test_kernel_image),
	KUNIT_CASE(up_test_absent),
	KUNIT_CASE(up_test_other_cpus),
	KUNIT_CASE(up_test_scrub),
	KUNIT_CASE(up_test_free_clean),
	KUNIT_CASE(up_test_quarantine),
	KUNIT_CASE_SLOW(up_test_quarantine_put),
	KUNIT_CASE(up_test_free_after_put),
	KUNIT_CASE(up_test_home),
	KUNIT_CASE(up_test_alloc_home),
	KUNIT_CASE(up_test_alloc_mapped),
#if defined(CONFIG_PROC_FS) && defined(CONFIG_X86)
	KUNIT_CASE(up_test_large_entries),
#endif
	KUNIT_CASE(up_test_fallback),
#ifdef CONFIG_NUMA
	KUNIT_CASE(up_test_policy),
#endif
	KUNIT_CASE(up_test_no_memory_takes_reserved),
	KUNIT_CASE_SLOW(up_test_zap_fails),
	KUNIT_CASE_SLOW(up_test_restore_fails),
	KUNIT_CASE(up_test_shrink),
	KUNIT_CASE(up_test_grow_apart),
	KUNIT_CASE_SLOW(up_test_stress),
	KUNIT_CASE_SLOW(up_test_stress_small),
#ifdef CONFIG_MEMORY_FAILURE
	KUNIT_CASE(up_test_unregister),
	KUNIT_CASE(up_test_memory_failure),
#endif
	{}
};

static struct kunit_suite up_suite = {
	.name = "unmapped_pool",
	.init = up_init,
	.exit = up_exit,
	.test_cases = up_cases,
};

kunit_test_suite(up_suite);
