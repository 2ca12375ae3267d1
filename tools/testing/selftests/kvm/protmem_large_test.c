// SPDX-License-Identifier: GPL-2.0-only
/*
 * Large mappings of protected memory in the second stage: when a block is mapped
 * by one entry, and that this never maps a page that is not, or no longer, the
 * guest's at that place.
 */
#include <fcntl.h>
#include <pthread.h>
#include <time.h>
#include <unistd.h>

#include "kselftest_harness.h"
#include "kvm_syscalls.h"
#include "protmem.h"

#define GPA		PROTMEM_GPA
#define BLOCK		SZ_2M
#define NR_BLOCKS	4
#define SIZE		(NR_BLOCKS * BLOCK)
#define SEED		0x1a46e
/* How long a block stays small after a page of it was shared: KVM's choice. */
#define SWING_US	250000
/* By the host's ticks, of which a busy emulator may be late with many. */
#define SWING_OVER_US	(8 * SWING_US)

/*
 * The slot has all of its blocks in the guest_memfd from @offset on: what the
 * VMM chooses there, and for its own mapping, is none of the guest's business.
 */
struct layout {
	u64 caps;
	u64 offset;
};

static const struct layout private_aligned = { PROTMEM_CAPS, 0 };
static const struct layout private_misaligned = { PROTMEM_CAPS, 3 * PAGE_SIZE };
static const struct layout hidden_aligned = { PROTMEM_CAPS_HIDE, 0 };
static const struct layout hidden_misaligned = { PROTMEM_CAPS_HIDE, BLOCK - PAGE_SIZE };

FIXTURE(large) {
	struct protmem_vm p;
	const struct layout *l;
	s64 before;
	u64 large;
};

FIXTURE_VARIANT(large) {
	const struct layout *l;
};

FIXTURE_VARIANT_ADD(large, private) { .l = &private_aligned };
FIXTURE_VARIANT_ADD(large, private_misaligned) { .l = &private_misaligned };
FIXTURE_VARIANT_ADD(large, hidden) { .l = &hidden_aligned };
FIXTURE_VARIANT_ADD(large, hidden_misaligned) { .l = &hidden_misaligned };

static void set_up(FIXTURE_DATA(large) *self, const struct layout *l)
{
	struct protmem_opts opts = {
		.caps = l->caps,
		.size = SIZE + BLOCK,
		.nr_vcpus = 2,
		.no_slot = true,
	};
	struct protmem_vm *p = &self->p;

	self->l = l;
	self->before = protmem_off_direct_map();
	protmem_vm_create(p, &opts);
	TEST_ASSERT(!protmem_set_slot(p, PROTMEM_SLOT, GPA, SIZE, l->offset),
		    "no slot at offset %#lx", l->offset);

	/* All that the guest runs, and none of it in the slot. */
	protmem_call(p, 0, guest_nop);
	protmem_call(p, 1, guest_nop);
	self->large = protmem_arch_nr_large(p->vm);
}

FIXTURE_SETUP(large)
{
	set_up(self, variant->l);
}

FIXTURE_TEARDOWN(large)
{
	protmem_vm_free(&self->p);
	EXPECT_EQ(self->before, protmem_wait_off_direct_map(self->before));
}

/* The same for what only private memory has. */
FIXTURE(convertible) {
	FIXTURE_DATA(large) d;
};

FIXTURE_VARIANT(convertible) {
	const struct layout *l;
};

FIXTURE_VARIANT_ADD(convertible, aligned) { .l = &private_aligned };
FIXTURE_VARIANT_ADD(convertible, misaligned) { .l = &private_misaligned };

FIXTURE_SETUP(convertible)
{
	set_up(&self->d, variant->l);
}

FIXTURE_TEARDOWN(convertible)
{
	protmem_vm_free(&self->d.p);
	EXPECT_EQ(self->d.before, protmem_wait_off_direct_map(self->d.before));
}

static bool is_private(const struct layout *l)
{
	return l->caps & KVM_PROTMEM_USER;
}

static u8 *hva(FIXTURE_DATA(large) *d, u64 gpa)
{
	return d->p.mem + d->l->offset + (gpa - GPA);
}

/* By the VMM, which may do that at any time. */
static int make_private(FIXTURE_DATA(large) *d, u64 gpa, u64 size)
{
	if (!is_private(d->l))
		return 0;
	return protmem_set_attr(d->p.gmem, d->l->offset + (gpa - GPA), size,
				KVM_MEMORY_ATTRIBUTE_PRIVATE,
				KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE, NULL);
}

/* By the VMM as long as it can, or else by the guest. */
static int share(FIXTURE_DATA(large) *d, u64 gpa, u64 size)
{
	if (PROTMEM_RUN_LATCHES)
		return protmem_make_shared(&d->p, gpa, size);
	return protmem_set_attr(d->p.gmem, d->l->offset + (gpa - GPA), size, 0,
				KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE, NULL);
}

/* May the VMM take away what is private, where the guest has run? */
static bool is_latched(FIXTURE_DATA(large) *d)
{
	return PROTMEM_RUN_LATCHES && is_private(d->l);
}

static bool refused(const u8 *mem)
{
	u64 val;

	return protmem_try_read(mem, &val);
}

#define EXPECT_LARGE(n)	\
	EXPECT_EQ(d->large + (n), protmem_arch_nr_large(d->p.vm))

TEST_F(large, first_touch)
{
	FIXTURE_DATA(large) *d = self;
	struct protmem_vm *p = &d->p;
	int i;

	ASSERT_EQ(0, make_private(d, GPA, SIZE));
	EXPECT_EQ(0, vm_get_stat(p->vm, protmem_private_bytes));

	/* Wherever in the block it is. */
	for (i = 0; i < NR_BLOCKS; i++) {
		protmem_call(p, i & 1, guest_write64,
			     GPA + i * BLOCK + i * 100 * PAGE_SIZE, i + 1);
		EXPECT_LARGE(i + 1);
		EXPECT_EQ((i + 1) * BLOCK, vm_get_stat(p->vm, protmem_private_bytes));
		EXPECT_EQ((i + 1) * BLOCK, vm_get_stat(p->vm, protmem_block_bytes));
	}
	for (i = 0; i < NR_BLOCKS; i++) {
		EXPECT_EQ(i + 1, protmem_call(p, 0, guest_read64,
					      GPA + i * BLOCK + i * 100 * PAGE_SIZE));
		protmem_call(p, 0, guest_write64,
			     GPA + i * BLOCK + i * 100 * PAGE_SIZE, 0);
	}
	EXPECT_EQ(0, protmem_call(p, 1, guest_check_zero, GPA, SIZE));
	protmem_call(p, 0, guest_fill, GPA, SIZE, SEED);
	EXPECT_EQ(0, protmem_call(p, 1, guest_check, GPA, SIZE, SEED));
	EXPECT_LARGE(NR_BLOCKS);
	EXPECT_EQ(SIZE, vm_get_stat(p->vm, protmem_private_bytes));

	if (!is_private(d->l)) {
		EXPECT_EQ(SIZE, protmem_mismatch(hva(d, GPA), GPA, SIZE, SEED));
	} else {
		for (i = 0; i < NR_BLOCKS; i++)
			EXPECT_TRUE(refused(hva(d, GPA + i * BLOCK)));
	}
}

/* A block is one entry only as long as all of it is private. */
TEST_F(convertible, one_page_shared_and_back)
{
	FIXTURE_DATA(large) *d = &self->d;
	struct protmem_vm *p = &d->p;
	u64 page = GPA + BLOCK + 7 * PAGE_SIZE;
	int i;

	ASSERT_EQ(0, make_private(d, GPA, SIZE));
	protmem_call(p, 0, guest_fill, GPA, SIZE, SEED);
	EXPECT_LARGE(NR_BLOCKS);

	for (i = 0; i < 3; i++) {
#ifdef __x86_64__
		u64 small = vm_get_stat(p->vm, pages_4k);
#endif
		ASSERT_EQ(0, protmem_make_shared(p, page, PAGE_SIZE));
		EXPECT_LARGE(NR_BLOCKS - 1);
#ifdef __x86_64__
		/* Not that the guest has to ask for each of them again. */
		EXPECT_LE(small + BLOCK / PAGE_SIZE - 1, vm_get_stat(p->vm, pages_4k));
#endif
		EXPECT_EQ(SIZE - PAGE_SIZE, vm_get_stat(p->vm, protmem_private_bytes));
		EXPECT_EQ(PAGE_SIZE, vm_get_stat(p->vm, protmem_shared_bytes));
		EXPECT_EQ(PAGE_SIZE, protmem_mismatch(hva(d, page), page,
						      PAGE_SIZE, SEED + i));
		EXPECT_TRUE(refused(hva(d, page - PAGE_SIZE)));
		EXPECT_TRUE(refused(hva(d, page + PAGE_SIZE)));
		EXPECT_EQ(0, protmem_call(p, 1, guest_check, GPA + BLOCK,
					  page - (GPA + BLOCK), SEED));
		EXPECT_EQ(0, protmem_call(p, 1, guest_check, page + PAGE_SIZE,
					  GPA + SIZE - page - PAGE_SIZE, SEED));

		/* The same page for both, by any entry that the guest has. */
		protmem_call(p, 1, guest_fill, page, PAGE_SIZE, SEED + i + 1);
		EXPECT_EQ(PAGE_SIZE, protmem_mismatch(hva(d, page), page,
						      PAGE_SIZE, SEED + i + 1));
		EXPECT_LARGE(NR_BLOCKS - 1);

		/* Whole again: the first access to what was missing says so. */
		usleep(SWING_OVER_US);
		ASSERT_EQ(0, protmem_make_private(p, page, PAGE_SIZE));
		EXPECT_EQ(0, protmem_call(p, 0, guest_check, page, PAGE_SIZE,
					  SEED + i + 1));
		EXPECT_LARGE(NR_BLOCKS);
		EXPECT_EQ(SIZE, vm_get_stat(p->vm, protmem_private_bytes));
		EXPECT_EQ(0, vm_get_stat(p->vm, protmem_shared_bytes));
		EXPECT_EQ(SIZE, vm_get_stat(p->vm, protmem_block_bytes));
		EXPECT_TRUE(refused(hva(d, page)));
	}
}

/* What was written to when it was shared has its contents, wherever they went. */
TEST_F(convertible, converted_with_contents)
{
	FIXTURE_DATA(large) *d = &self->d;
	struct protmem_vm *p = &d->p;

	protmem_call(p, 0, guest_fill, GPA, SIZE, SEED);
	EXPECT_LARGE(NR_BLOCKS);
	ASSERT_EQ(0, protmem_make_private(p, GPA, SIZE));
	EXPECT_LARGE(0);
	EXPECT_EQ(0, protmem_call(p, 1, guest_check, GPA, SIZE, SEED));
	EXPECT_LARGE(NR_BLOCKS);
	EXPECT_EQ(SIZE, vm_get_stat(p->vm, protmem_block_bytes));

	ASSERT_EQ(0, protmem_make_shared(p, GPA, SIZE));
	EXPECT_LARGE(0);
	EXPECT_EQ(SIZE, protmem_mismatch(hva(d, GPA), GPA, SIZE, SEED));
	EXPECT_EQ(0, protmem_call(p, 1, guest_check, GPA, SIZE, SEED));
	EXPECT_LARGE(0);
}

/* Shared memory has no home, but comes in blocks all the same, whoever touches it. */
TEST_F(convertible, first_touch_of_shared)
{
	FIXTURE_DATA(large) *d = &self->d;
	struct protmem_vm *p = &d->p;
	u64 hole = GPA + BLOCK + 9 * PAGE_SIZE, page = GPA + 2 * BLOCK, rest, large;

	protmem_call(p, 0, guest_write64, GPA + BLOCK - PAGE_SIZE, 0);
	EXPECT_EQ(BLOCK, vm_get_stat(p->vm, protmem_shared_bytes));
	EXPECT_LARGE(1);
	*(u64 *)hva(d, GPA + BLOCK + 5 * PAGE_SIZE) = 0;
	EXPECT_EQ(2 * BLOCK, vm_get_stat(p->vm, protmem_shared_bytes));
	EXPECT_LARGE(1);
	EXPECT_EQ(0, protmem_call(p, 1, guest_check_zero, GPA, 2 * BLOCK));
	EXPECT_LARGE(2);
	protmem_call(p, 0, guest_fill, GPA, SIZE, SEED);
	EXPECT_LARGE(NR_BLOCKS);
	EXPECT_EQ(SIZE, vm_get_stat(p->vm, protmem_shared_bytes));
	EXPECT_EQ(SIZE, protmem_mismatch(hva(d, GPA), GPA, SIZE, SEED));
	EXPECT_EQ(0, vm_get_stat(p->vm, protmem_block_bytes));

	/* Without one of its pages it is not, but may be with what takes the place. */
	ASSERT_EQ(0, protmem_punch(p->gmem, d->l->offset + (hole - GPA), PAGE_SIZE));
	EXPECT_LARGE(NR_BLOCKS - 1);
	EXPECT_EQ(SIZE - PAGE_SIZE, vm_get_stat(p->vm, protmem_shared_bytes));
	EXPECT_EQ(0, protmem_call(p, 0, guest_check, GPA, hole - GPA, SEED));
	EXPECT_LARGE(NR_BLOCKS - 1);
	EXPECT_EQ(0, protmem_call(p, 1, guest_check_zero, hole, PAGE_SIZE));
	rest = hole + PAGE_SIZE;
	EXPECT_EQ(0, protmem_call(p, 0, guest_check, rest, GPA + SIZE - rest, SEED));
	EXPECT_EQ(SIZE, vm_get_stat(p->vm, protmem_shared_bytes));
	*(u64 *)hva(d, hole) = SEED;
	EXPECT_EQ(SEED, protmem_call(p, 0, guest_read64, hole));

	large = protmem_arch_nr_large(p->vm);
	ASSERT_EQ(0, protmem_make_private(p, page, PAGE_SIZE));
	EXPECT_EQ(large - 1, protmem_arch_nr_large(p->vm));
	EXPECT_TRUE(refused(hva(d, page)));
	EXPECT_EQ(0, protmem_call(p, 1, guest_check, page, BLOCK, SEED));
	protmem_call(p, 0, guest_fill, page, BLOCK, SEED + 1);
	EXPECT_EQ(large - 1, protmem_arch_nr_large(p->vm));
	EXPECT_TRUE(refused(hva(d, page)));
	rest = page + PAGE_SIZE;
	EXPECT_EQ(BLOCK - PAGE_SIZE, protmem_mismatch(hva(d, rest), rest,
						      BLOCK - PAGE_SIZE, SEED + 1));
}

/* Who allocates less than a block gets no more. */
TEST_F(convertible, shared_by_fallocate)
{
	FIXTURE_DATA(large) *d = &self->d;
	struct protmem_vm *p = &d->p;

	ASSERT_EQ(0, fallocate(p->gmem, FALLOC_FL_KEEP_SIZE,
			       d->l->offset + BLOCK - PAGE_SIZE, 2 * BLOCK));
	EXPECT_EQ(2 * BLOCK, vm_get_stat(p->vm, protmem_shared_bytes));
	EXPECT_EQ(0, protmem_call(p, 0, guest_check_zero, GPA + BLOCK, BLOCK));
	EXPECT_LARGE(1);
	EXPECT_EQ(0, protmem_call(p, 0, guest_check_zero, GPA, SIZE));
	EXPECT_EQ(SIZE, vm_get_stat(p->vm, protmem_shared_bytes));
	/* The first and the third had pages before, the second and the last are whole. */
	EXPECT_LARGE(2);
}

/* A block of zeroes is shared at once, and one with a word in its last page is not. */
TEST_F(convertible, blocks_of_zeroes_shared)
{
	FIXTURE_DATA(large) *d = &self->d;
	struct protmem_vm *p = &d->p;
	u64 last = GPA + 2 * BLOCK - 8;
	int i;

	ASSERT_EQ(0, make_private(d, GPA, SIZE));
	for (i = 0; i < NR_BLOCKS; i++)
		protmem_call(p, 0, guest_write64, GPA + i * BLOCK, 0);
	protmem_call(p, 0, guest_write64, last, SEED);
	EXPECT_LARGE(NR_BLOCKS);
	EXPECT_EQ(SIZE, vm_get_stat(p->vm, protmem_private_bytes));

	ASSERT_EQ(0, protmem_make_shared(p, GPA, SIZE));
	EXPECT_LARGE(0);
	EXPECT_EQ(0, vm_get_stat(p->vm, protmem_private_bytes));
	EXPECT_EQ(PAGE_SIZE, vm_get_stat(p->vm, protmem_shared_bytes));
	EXPECT_EQ(SEED, protmem_call(p, 1, guest_read64, last));
	EXPECT_EQ(SEED, *(u64 *)hva(d, last));
	*(u64 *)hva(d, last) = 0;
	EXPECT_EQ(SIZE, protmem_first_nonzero(hva(d, GPA), SIZE));
	EXPECT_EQ(0, protmem_call(p, 0, guest_check_zero, GPA, SIZE));

	/* What went back is as good as new. */
	ASSERT_EQ(0, protmem_make_private(p, GPA, SIZE));
	EXPECT_EQ(0, protmem_call(p, 0, guest_check_zero, GPA, SIZE));
}

static u64 guest_convert_pages(u64 gpa, u64 size, u64 to, u64 d)
{
	u64 end = gpa + size;

	for (; gpa < end; gpa += PAGE_SIZE) {
		if (guest_convert(gpa, PAGE_SIZE, to, 0))
			return gpa;
	}
	return 0;
}

/* In order, so that the pages make up blocks, and nothing is held beside those. */
TEST_F(convertible, converted_page_by_page)
{
	FIXTURE_DATA(large) *d = &self->d;
	struct protmem_vm *p = &d->p;

	protmem_call(p, 0, guest_fill, GPA, SIZE, SEED);
	ASSERT_EQ(0, protmem_call(p, 0, guest_convert_pages, GPA, SIZE, PROTMEM_TO_PRIVATE));
	EXPECT_EQ(0, protmem_call(p, 1, guest_check, GPA, SIZE, SEED));
	EXPECT_EQ(SIZE, vm_get_stat(p->vm, protmem_private_bytes));
	EXPECT_EQ(SIZE, vm_get_stat(p->vm, protmem_block_bytes));
	EXPECT_LARGE(NR_BLOCKS);

	ASSERT_EQ(0, protmem_call(p, 0, guest_convert_pages, GPA, SIZE, PROTMEM_TO_SHARED));
	EXPECT_EQ(SIZE, protmem_mismatch(hva(d, GPA), GPA, SIZE, SEED));
	EXPECT_EQ(0, vm_get_stat(p->vm, protmem_private_bytes));

	/* Populated anew, they are whole. */
	ASSERT_EQ(0, protmem_punch(p->gmem, d->l->offset, SIZE));
	ASSERT_EQ(0, protmem_call(p, 0, guest_convert_pages, GPA, SIZE, PROTMEM_TO_PRIVATE));
	EXPECT_EQ(0, protmem_call(p, 1, guest_check_zero, GPA, SIZE));
	EXPECT_LARGE(NR_BLOCKS);
	EXPECT_EQ(SIZE, vm_get_stat(p->vm, protmem_block_bytes));
}

/* What was empty has its pages later, and no block for them beside the others'. */
TEST_F(convertible, half_of_it_with_contents)
{
	FIXTURE_DATA(large) *d = &self->d;
	struct protmem_vm *p = &d->p;
	u64 gpa;

	for (gpa = GPA; gpa < GPA + SIZE; gpa += 2 * PAGE_SIZE) {
		protmem_fill(p, hva(d, gpa) - p->mem + GPA, PAGE_SIZE, SEED);
		ASSERT_EQ(0, protmem_punch(p->gmem, d->l->offset + (gpa - GPA) + PAGE_SIZE,
					   PAGE_SIZE));
	}
	ASSERT_EQ(0, protmem_call(p, 0, guest_convert_pages, GPA, SIZE, PROTMEM_TO_PRIVATE));
	EXPECT_EQ(SIZE / 2, vm_get_stat(p->vm, protmem_private_bytes));
	for (gpa = GPA + PAGE_SIZE; gpa < GPA + SIZE; gpa += 2 * PAGE_SIZE)
		EXPECT_EQ(0, protmem_call(p, 1, guest_check_zero, gpa, PAGE_SIZE));
	EXPECT_EQ(SIZE, vm_get_stat(p->vm, protmem_private_bytes));
	EXPECT_EQ(SIZE, vm_get_stat(p->vm, protmem_block_bytes));
}

TEST_F(convertible, block_with_a_shared_page)
{
	FIXTURE_DATA(large) *d = &self->d;
	struct protmem_vm *p = &d->p;
	u64 page = GPA + BLOCK - PAGE_SIZE;

	ASSERT_EQ(0, make_private(d, GPA, SIZE));
	ASSERT_EQ(0, share(d, page, PAGE_SIZE));
	protmem_call(p, 0, guest_fill, GPA, SIZE, SEED);
	EXPECT_EQ(0, protmem_call(p, 1, guest_check, GPA, SIZE, SEED));
	EXPECT_LARGE(NR_BLOCKS - 1);
	EXPECT_EQ(PAGE_SIZE, protmem_mismatch(hva(d, page), page,
					      PAGE_SIZE, SEED));
}

/* What a block has to spare is used elsewhere, and may not be mapped with the block. */
TEST_F(convertible, page_lent_elsewhere)
{
	FIXTURE_DATA(large) *d = &self->d;
	struct protmem_vm *p = &d->p;
	u64 page = GPA + 9 * PAGE_SIZE;

	ASSERT_EQ(0, make_private(d, GPA, BLOCK));
	protmem_call(p, 0, guest_fill, GPA, BLOCK, SEED);
	EXPECT_LARGE(1);
	ASSERT_EQ(0, share(d, page, PAGE_SIZE));
	EXPECT_EQ(PAGE_SIZE, protmem_mismatch(hva(d, page), page, PAGE_SIZE, SEED));

	/* The range is not all private, so it gets no block, but that page. */
	ASSERT_EQ(0, make_private(d, GPA + BLOCK, PAGE_SIZE));
	protmem_call(p, 0, guest_fill, GPA + BLOCK, PAGE_SIZE, SEED + 1);
	EXPECT_EQ(BLOCK, vm_get_stat(p->vm, protmem_private_bytes));
	EXPECT_EQ(BLOCK, vm_get_stat(p->vm, protmem_block_bytes));

	/* That it was shared just now is not to be why it stays in small entries. */
	usleep(SWING_OVER_US);
	ASSERT_EQ(0, make_private(d, page, PAGE_SIZE));
	EXPECT_EQ(0, protmem_call(p, 1, guest_check, GPA, BLOCK, SEED));
	EXPECT_EQ(0, protmem_call(p, 1, guest_check, GPA + BLOCK, PAGE_SIZE, SEED + 1));
	EXPECT_LARGE(0);
	protmem_call(p, 0, guest_fill, GPA, BLOCK, SEED + 2);
	EXPECT_EQ(0, protmem_call(p, 1, guest_check, GPA + BLOCK, PAGE_SIZE, SEED + 1));
}

TEST_F(large, punched)
{
	FIXTURE_DATA(large) *d = self;
	struct protmem_vm *p = &d->p;
	u64 hole = GPA + BLOCK + 5 * PAGE_SIZE;

	ASSERT_EQ(0, make_private(d, GPA, SIZE));
	protmem_call(p, 0, guest_fill, GPA, SIZE, SEED);
	EXPECT_LARGE(NR_BLOCKS);

	if (is_latched(d)) {
		EXPECT_EQ(-EPERM, protmem_punch(p->gmem, d->l->offset + (hole - GPA),
						PAGE_SIZE));
		EXPECT_LARGE(NR_BLOCKS);
		return;
	}
	ASSERT_EQ(0, protmem_punch(p->gmem, d->l->offset + (hole - GPA), PAGE_SIZE));
	EXPECT_LARGE(NR_BLOCKS - 1);
	EXPECT_EQ(0, protmem_call(p, 0, guest_check, GPA, hole - GPA, SEED));
	EXPECT_EQ(0, protmem_call(p, 0, guest_check_zero, hole, PAGE_SIZE));
	EXPECT_EQ(0, protmem_call(p, 0, guest_check, hole + PAGE_SIZE,
				  GPA + SIZE - hole - PAGE_SIZE, SEED));
	EXPECT_LARGE(NR_BLOCKS);
}

TEST_F(large, populated_by_fallocate)
{
	FIXTURE_DATA(large) *d = self;
	struct protmem_vm *p = &d->p;

	ASSERT_EQ(0, make_private(d, GPA, SIZE));
	ASSERT_EQ(0, fallocate(p->gmem, FALLOC_FL_KEEP_SIZE, d->l->offset, SIZE));
	EXPECT_EQ(SIZE, vm_get_stat(p->vm, protmem_private_bytes));
	EXPECT_EQ(SIZE, vm_get_stat(p->vm, protmem_block_bytes));
	EXPECT_EQ(0, protmem_call(p, 1, guest_check_zero, GPA, SIZE));
	EXPECT_LARGE(NR_BLOCKS);
}

#ifdef __x86_64__	/* KVM_CAP_PRE_FAULT_MEMORY */
TEST_F(large, pre_faulted)
{
	FIXTURE_DATA(large) *d = self;
	struct protmem_vm *p = &d->p;
	struct kvm_pre_fault_memory range = { .gpa = GPA, .size = SIZE };

	ASSERT_EQ(0, make_private(d, GPA, SIZE));
	ASSERT_EQ(0, __vcpu_ioctl(p->vcpu[0], KVM_PRE_FAULT_MEMORY, &range));
	EXPECT_LARGE(NR_BLOCKS);
	EXPECT_EQ(SIZE, vm_get_stat(p->vm, protmem_private_bytes));
	protmem_call(p, 0, guest_fill, GPA, SIZE, SEED);
	EXPECT_EQ(0, protmem_call(p, 1, guest_check, GPA, SIZE, SEED));
}
#endif

/* Gfns of one block that belong to two places, or slots, of a guest_memfd. */
TEST_F(large, slots_that_meet_in_a_block)
{
	FIXTURE_DATA(large) *d = self;
	struct protmem_vm *p = &d->p;
	u64 half = BLOCK / 2;

	ASSERT_EQ(0, protmem_delete_slot(p, PROTMEM_SLOT));
	/* The first block again, its halves in one place by two slots ... */
	ASSERT_EQ(0, protmem_set_slot(p, PROTMEM_SLOT, GPA, half, d->l->offset));
	ASSERT_EQ(0, protmem_set_slot(p, PROTMEM_SLOT + 1, GPA + half, half,
				      d->l->offset + half));
	ASSERT_EQ(0, make_private(d, GPA, BLOCK));
	protmem_call(p, 0, guest_fill, GPA, BLOCK, SEED);
	EXPECT_EQ(0, protmem_call(p, 1, guest_check, GPA, BLOCK, SEED));
	EXPECT_LARGE(0);
	if (is_latched(d)) {
		EXPECT_EQ(-EPERM, protmem_delete_slot(p, PROTMEM_SLOT));
		return;
	}

	/* ... and one slot once more, for what is there. */
	ASSERT_EQ(0, protmem_delete_slot(p, PROTMEM_SLOT));
	ASSERT_EQ(0, protmem_delete_slot(p, PROTMEM_SLOT + 1));
	ASSERT_EQ(0, protmem_set_slot(p, PROTMEM_SLOT, GPA, SIZE, d->l->offset));
	EXPECT_EQ(0, protmem_call(p, 1, guest_check, GPA, BLOCK, SEED));
	EXPECT_LARGE(1);
}

/*
 * The gfns of a block are given to other pages of the guest_memfd, while those that
 * had them keep their contents.
 */
TEST_F(large, other_pages_for_the_same_gfns)
{
	FIXTURE_DATA(large) *d = self;
	struct protmem_vm *p = &d->p;
	/* What the slot has left of the guest_memfd. */
	u64 offset = d->l->offset + SIZE, size = BLOCK - d->l->offset;

	ASSERT_EQ(0, make_private(d, GPA, BLOCK));
	protmem_call(p, 0, guest_fill, GPA, BLOCK, SEED);
	EXPECT_LARGE(1);
	if (is_latched(d)) {
		EXPECT_EQ(-EPERM, protmem_delete_slot(p, PROTMEM_SLOT));
		return;
	}

	ASSERT_EQ(0, protmem_delete_slot(p, PROTMEM_SLOT));
	EXPECT_LARGE(0);
	ASSERT_EQ(0, protmem_set_slot(p, PROTMEM_SLOT, GPA, size, offset));
	if (is_private(d->l))
		ASSERT_EQ(0, protmem_set_attr(p->gmem, offset, size,
					      KVM_MEMORY_ATTRIBUTE_PRIVATE,
					      KVM_SET_MEMORY_ATTRIBUTES2_ZERO, NULL));
	EXPECT_EQ(0, protmem_call(p, 1, guest_check_zero, GPA, size));
	protmem_call(p, 0, guest_fill, GPA, size, SEED + 1);

	ASSERT_EQ(0, protmem_delete_slot(p, PROTMEM_SLOT));
	ASSERT_EQ(0, protmem_set_slot(p, PROTMEM_SLOT, GPA, SIZE, d->l->offset));
	EXPECT_EQ(0, protmem_call(p, 1, guest_check, GPA, BLOCK, SEED));
	EXPECT_LARGE(1);

	ASSERT_EQ(0, protmem_delete_slot(p, PROTMEM_SLOT));
	ASSERT_EQ(0, protmem_set_slot(p, PROTMEM_SLOT, GPA, size, offset));
	EXPECT_EQ(0, protmem_call(p, 1, guest_check, GPA, size, SEED + 1));
}

/* For one page of a block: what the other vCPU does all the time. */
static u64 guest_hammer(u64 cmd_gva, u64 block, u64 page, u64 seed)
{
	struct protmem_cmd *cmd = (void *)cmd_gva;
	u64 n = 0, a;

	while (!READ_ONCE(cmd->stop)) {
		for (a = block; a < block + BLOCK; a += PAGE_SIZE) {
			if (a == page)
				continue;
			WRITE_ONCE(*(u64 *)(a + 8), ++n);
			if (READ_ONCE(*(u64 *)(a + 8)) != n ||
			    READ_ONCE(*(u64 *)a) != protmem_word(seed, a))
				return a;
		}
		WRITE_ONCE(cmd->count, n);
	}
	return 0;
}

/*
 * Private for a moment, in which nobody looks at it, and shared again: @n times.
 * An entry for the block that was made at the wrong time still has what was the
 * page then, and is scrubbed by now.  Returns what is wrong.
 */
static u64 guest_back_and_forth(u64 page, u64 val, u64 n, u64 d)
{
	for (WRITE_ONCE(*(u64 *)page, val); n; n--) {
		if (guest_convert(page, PAGE_SIZE, PROTMEM_TO_PRIVATE, 0) ||
		    guest_convert(page, PAGE_SIZE, PROTMEM_TO_SHARED, 0))
			return 1;
		if (READ_ONCE(*(u64 *)page) != val)
			return 2;
	}
	return 0;
}

static void *run_hammer(void *arg)
{
	struct protmem_vm *p = arg;

	return (void *)protmem_run(p, 1);
}

/*
 * A page goes back and forth while the rest of its block faults: an entry for the
 * block that is made at that time must not have the page as it was.
 */
TEST_F(convertible, neighbours_fault)
{
	FIXTURE_DATA(large) *d = &self->d;
	struct protmem_vm *p = &d->p;
	u64 page = GPA + 77 * PAGE_SIZE, i, n = protmem_test_iterations(20);
	struct protmem_cmd *cmd = p->cmd[1];
	pthread_t thread;
	void *hammered;
	u64 wrong = 0;

	ASSERT_EQ(0, make_private(d, GPA, BLOCK));
	protmem_call(p, 0, guest_fill, GPA, BLOCK, SEED);

	protmem_prepare(p, 1, guest_hammer, p->cmd_gva[1], GPA, page, SEED);
	ASSERT_EQ(0, pthread_create(&thread, NULL, run_hammer, p));

	/* The other vCPU has to be stopped, whatever is wrong. */
	for (i = 0; i < n; i++) {
		u64 val = 2 * i + 1, found = 0;

		wrong = protmem_call(p, 0, guest_back_and_forth, page, val, 50);
		if (wrong || protmem_try_read(hva(d, page), &found) || found != val ||
		    protmem_try_write(hva(d, page), val + 1) ||
		    protmem_call(p, 0, guest_read64, page) != val + 1)
			break;
	}
	WRITE_ONCE(cmd->stop, 1);
	pthread_join(thread, &hammered);
	EXPECT_EQ(0, wrong);
	ASSERT_EQ(n, i);
	EXPECT_EQ(NULL, hammered);
	ASSERT_EQ(0, protmem_make_private(p, page, PAGE_SIZE));
	ASSERT_TRUE(refused(hva(d, page)));
	EXPECT_NE(0, READ_ONCE(cmd->count));
	EXPECT_EQ(2 * n, protmem_call(p, 0, guest_read64, page));

	ASSERT_EQ(0, protmem_make_shared(p, page, PAGE_SIZE));
	usleep(SWING_OVER_US);
	ASSERT_EQ(0, protmem_make_private(p, page, PAGE_SIZE));
	EXPECT_EQ(2 * n, protmem_call(p, 0, guest_read64, page));
	EXPECT_LARGE(1);
}

static u64 now_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000ull + ts.tv_nsec / 1000;
}

/* What comes back at once may go again: its block is not made whole for that. */
TEST_F(convertible, page_that_swings)
{
	FIXTURE_DATA(large) *d = &self->d;
	struct protmem_vm *p = &d->p;
	u64 page = GPA + 5 * PAGE_SIZE, start, took;
	int i;

	ASSERT_EQ(0, make_private(d, GPA, SIZE));
	protmem_call(p, 0, guest_fill, GPA, SIZE, SEED);
	EXPECT_LARGE(NR_BLOCKS);

	/* On a slow machine it may take several tries to be fast enough, and see it. */
	for (i = 0; i < 100; i++) {
		start = now_us();
		ASSERT_EQ(0, protmem_make_shared(p, page, PAGE_SIZE));
		ASSERT_EQ(0, protmem_make_private(p, page, PAGE_SIZE));
		EXPECT_EQ(0, protmem_call(p, 0, guest_check, page, PAGE_SIZE, SEED));
		took = now_us() - start;
		if (took < SWING_US / 2 &&
		    protmem_arch_nr_large(p->vm) == d->large + NR_BLOCKS - 1)
			break;
	}
	ASSERT_LT(i, 100);

	/* All of a block at once is no such case. */
	ASSERT_EQ(0, protmem_make_shared(p, GPA + BLOCK, BLOCK));
	EXPECT_LARGE(NR_BLOCKS - 2);
	ASSERT_EQ(0, protmem_make_private(p, GPA + BLOCK, BLOCK));
	EXPECT_EQ(0, protmem_call(p, 0, guest_check, GPA + BLOCK, BLOCK, SEED));
	EXPECT_LARGE(NR_BLOCKS - 1);
}

int main(int argc, char **argv)
{
	protmem_require();
	return test_harness_run(argc, argv);
}
