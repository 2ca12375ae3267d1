// SPDX-License-Identifier: GPL-2.0-only
/*
 * The page state of protected memory: KVM_{SET,GET}_MEMORY_ATTRIBUTES2 on the
 * guest_memfd, and its interplay with fallocate() and the statistics.
 */
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>

#include <linux/falloc.h>

#include "kselftest_harness.h"
#include "kvm_syscalls.h"
#include "protmem.h"

#define ZERO		KVM_SET_MEMORY_ATTRIBUTES2_ZERO
#define PRESERVE	KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE
#define PRIVATE		KVM_MEMORY_ATTRIBUTE_PRIVATE
#define GPA		PROTMEM_GPA
#define SEED		0xa774

PROTMEM_FIXTURE(attr);

static int set(struct protmem_vm *p, u64 page, u64 n, u64 attributes, u64 flags)
{
	return protmem_set_attr(p->gmem, page * PAGE_SIZE, n * PAGE_SIZE,
				attributes, flags, NULL);
}

static bool all_shared(struct protmem_vm *p)
{
	u64 attributes, run;

	return !protmem_get_attr(p->gmem, 0, p->size, &attributes, &run) &&
	       !attributes && run == p->size;
}

TEST_F(attr, bad_ranges)
{
	struct protmem_vm *p = &self->p;
	const u64 size = p->size;
	const struct { u64 offset, size; } bad[] = {
		{ 0, 0 },
		{ PAGE_SIZE, 0 },
		{ 1, PAGE_SIZE },
		{ PAGE_SIZE - 1, PAGE_SIZE },
		{ 0, 1 },
		{ 0, PAGE_SIZE - 1 },
		{ 0, PAGE_SIZE + 1 },
		{ size, PAGE_SIZE },
		{ size - PAGE_SIZE, 2 * PAGE_SIZE },
		{ 0, size + PAGE_SIZE },
		{ size + PAGE_SIZE, PAGE_SIZE },
		{ -PAGE_SIZE, PAGE_SIZE },
		{ -PAGE_SIZE, 2 * PAGE_SIZE },
		{ PAGE_SIZE, -PAGE_SIZE },
		{ PAGE_SIZE, -PAGE_SIZE - PAGE_SIZE },
		{ BIT_ULL(63), PAGE_SIZE },
		{ 0, BIT_ULL(63) },
		{ BIT_ULL(63), BIT_ULL(63) },
		{ 0, -PAGE_SIZE },
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		EXPECT_EQ(-EINVAL, protmem_set_attr(p->gmem, bad[i].offset,
						    bad[i].size, PRIVATE, ZERO,
						    NULL)) {
			TH_LOG("%#lx %#lx", bad[i].offset, bad[i].size);
		}
		EXPECT_EQ(-EINVAL, protmem_get_attr(p->gmem, bad[i].offset,
						    bad[i].size, NULL, NULL)) {
			TH_LOG("%#lx %#lx", bad[i].offset, bad[i].size);
		}
	}
	EXPECT_TRUE(all_shared(p));
}

TEST_F(attr, bad_flags_and_attributes)
{
	struct protmem_vm *p = &self->p;
	static const struct { u64 attributes, flags; } bad[] = {
		{ PRIVATE, 0 },
		{ 0, 0 },
		{ PRIVATE, ZERO | PRESERVE },
		{ PRIVATE, ZERO | BIT(2) },
		{ PRIVATE, BIT(2) },
		{ PRIVATE, BIT_ULL(63) | ZERO },
		{ BIT(0), ZERO },
		{ BIT(1) | PRIVATE, ZERO },
		{ BIT_ULL(63) | PRIVATE, ZERO },
		{ -1ull, ZERO },
		{ PRIVATE, -1ull },
	};
	struct kvm_memory_attributes2 attrs;
	int i;

	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		EXPECT_EQ(-EINVAL, set(p, 0, 4, bad[i].attributes,
				       bad[i].flags)) {
			TH_LOG("%#lx %#lx", bad[i].attributes, bad[i].flags);
		}
	}

	for (i = 0; i < ARRAY_SIZE(attrs.reserved); i++) {
		memset(&attrs, 0, sizeof(attrs));
		attrs.size = PAGE_SIZE;
		attrs.attributes = PRIVATE;
		attrs.flags = ZERO;
		attrs.reserved[i] = 1;
		EXPECT_EQ(-1, ioctl(p->gmem, KVM_SET_MEMORY_ATTRIBUTES2, &attrs));
		EXPECT_EQ(EINVAL, errno);
		attrs.attributes = 0;
		attrs.flags = 0;
		EXPECT_EQ(-1, ioctl(p->gmem, KVM_GET_MEMORY_ATTRIBUTES2, &attrs));
		EXPECT_EQ(EINVAL, errno);
	}

	/* Asking takes a range and nothing else. */
	memset(&attrs, 0, sizeof(attrs));
	attrs.size = PAGE_SIZE;
	attrs.attributes = PRIVATE;
	EXPECT_EQ(-1, ioctl(p->gmem, KVM_GET_MEMORY_ATTRIBUTES2, &attrs));
	EXPECT_EQ(EINVAL, errno);
	attrs.attributes = 0;
	attrs.flags = ZERO;
	EXPECT_EQ(-1, ioctl(p->gmem, KVM_GET_MEMORY_ATTRIBUTES2, &attrs));
	EXPECT_EQ(EINVAL, errno);
	EXPECT_TRUE(all_shared(p));
}

TEST_F(attr, bad_pointers)
{
	struct protmem_vm *p = &self->p;
	struct kvm_memory_attributes2 *ro;
	unsigned long ptrs[] = { 0, -1ul, 0xffff888000000000ul, 1ul << 62 };
	int i;

	for (i = 0; i < ARRAY_SIZE(ptrs); i++) {
		EXPECT_EQ(-1, ioctl(p->gmem, KVM_SET_MEMORY_ATTRIBUTES2, ptrs[i]));
		EXPECT_EQ(EFAULT, errno);
		EXPECT_EQ(-1, ioctl(p->gmem, KVM_GET_MEMORY_ATTRIBUTES2, ptrs[i]));
		EXPECT_EQ(EFAULT, errno);
	}
	EXPECT_TRUE(all_shared(p));

	/* An answer that cannot be written. */
	ro = kvm_mmap(PAGE_SIZE, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1);
	ro->size = PAGE_SIZE;
	mprotect(ro, PAGE_SIZE, PROT_READ);
	EXPECT_EQ(-1, ioctl(p->gmem, KVM_GET_MEMORY_ATTRIBUTES2, ro));
	EXPECT_EQ(EFAULT, errno);

	/* The argument in the very memory that is asked about, and private. */
	ASSERT_EQ(0, set(p, 0, 1, PRIVATE, ZERO));
	EXPECT_EQ(-1, ioctl(p->gmem, KVM_GET_MEMORY_ATTRIBUTES2, p->mem));
	EXPECT_EQ(EFAULT, errno);
	EXPECT_EQ(-1, ioctl(p->gmem, KVM_SET_MEMORY_ATTRIBUTES2, p->mem));
	EXPECT_EQ(EFAULT, errno);
}

/* The argument lives in the page that its own call makes private. */
TEST_F(attr, argument_in_the_converted_page)
{
	struct protmem_vm *p = &self->p;
	struct kvm_memory_attributes2 *attrs = (void *)p->mem;

	attrs->size = PAGE_SIZE;
	attrs->attributes = PRIVATE;
	attrs->flags = PRESERVE;
	/* Whether or not error_offset could be written: no oops, no mix-up. */
	ioctl(p->gmem, KVM_SET_MEMORY_ATTRIBUTES2, attrs);
	EXPECT_TRUE(protmem_is_private(p, GPA));
	EXPECT_EQ(PAGE_SIZE, protmem_call(p, 0, guest_read64, GPA + 8));
}

TEST_F(attr, other_files)
{
	int null = open("/dev/null", O_RDWR);

	EXPECT_EQ(-ENOTTY, protmem_set_attr(null, 0, PAGE_SIZE, PRIVATE, ZERO,
					    NULL));
	EXPECT_EQ(-ENOTTY, protmem_get_attr(null, 0, PAGE_SIZE, NULL, NULL));
	close(null);
}

/* Page states belong to protected memory, which is what a bind makes it. */
TEST(unbound_memory)
{
	struct protmem_opts opts = { .caps = PROTMEM_CAPS, .no_slot = true };
	struct protmem_vm p;

	protmem_vm_create(&p, &opts);
	EXPECT_EQ(-EINVAL, set(&p, 0, 1, PRIVATE, ZERO));
	EXPECT_EQ(-EINVAL, protmem_get_attr(p.gmem, 0, PAGE_SIZE, NULL, NULL));
	ASSERT_EQ(0, protmem_set_slot(&p, PROTMEM_SLOT, GPA, p.size, 0));
	EXPECT_EQ(0, set(&p, 0, 1, PRIVATE, ZERO));
	protmem_vm_free(&p);
}

TEST(ordinary_memory)
{
	struct protmem_opts opts = { .caps = PROTMEM_CAPS, .no_slot = true };
	struct protmem_vm p;

	protmem_vm_create(&p, &opts);
	vm_set_user_memory_region2(p.vm, PROTMEM_SLOT, KVM_MEM_GUEST_MEMFD, GPA,
				   p.size, p.mem, p.gmem, 0);
	EXPECT_EQ(-EINVAL, set(&p, 0, 1, PRIVATE, ZERO));
	protmem_vm_free(&p);
}

TEST_F(attr, get_runs)
{
	struct protmem_vm *p = &self->p;
	const u64 total = p->size / PAGE_SIZE;
	const struct { u64 page, n, attributes; } map[] = {
		{ 0, 4, 0 }, { 4, 3, PRIVATE }, { 7, 1, 0 }, { 8, 1, PRIVATE },
		{ 9, 500, 0 }, { 509, 20, PRIVATE }, { 529, 1, 0 },
		{ 530, total - 530, PRIVATE },
	};
	u64 attributes, run, page;
	int i;

	for (i = 0; i < ARRAY_SIZE(map); i++) {
		if (map[i].attributes)
			ASSERT_EQ(0, set(p, map[i].page, map[i].n, PRIVATE, ZERO));
	}
	for (i = 0; i < ARRAY_SIZE(map); i++) {
		for (page = map[i].page; page < map[i].page + map[i].n; page++) {
			u64 left = map[i].page + map[i].n - page;

			ASSERT_EQ(0, protmem_get_attr(p->gmem, page * PAGE_SIZE,
						      p->size - page * PAGE_SIZE,
						      &attributes, &run));
			ASSERT_EQ(map[i].attributes, attributes);
			ASSERT_EQ(left * PAGE_SIZE, run);
			/* No further than asked for. */
			ASSERT_EQ(0, protmem_get_attr(p->gmem, page * PAGE_SIZE,
						      PAGE_SIZE, &attributes,
						      &run));
			ASSERT_EQ(map[i].attributes, attributes);
			ASSERT_EQ(PAGE_SIZE, run);
		}
	}
}

/* Overlapping changes against a model of one bit per page. */
TEST_F(attr, overlap)
{
	struct protmem_vm *p = &self->p;
	enum { N = 96 };
	bool model[N] = {};
	u64 i, j, page, n;
	u32 rnd = 4711;

	for (i = 0; i < 400; i++) {
		bool to_private;

		rnd = rnd * 1103515245 + 12345;
		page = (rnd >> 8) % N;
		n = 1 + (rnd >> 16) % (N - page);
		to_private = rnd >> 31;

		ASSERT_EQ(0, set(p, page, n, to_private ? PRIVATE : 0,
				 rnd & 0x10 ? ZERO : PRESERVE));
		for (j = page; j < page + n; j++)
			model[j] = to_private;
		for (j = 0; j < N; j++) {
			ASSERT_EQ(model[j],
				  protmem_is_private(p, GPA + j * PAGE_SIZE)) {
				TH_LOG("step %lu page %lu", i, j);
			}
		}
	}
}

TEST_F(attr, untouched_pages_have_no_contents)
{
	struct protmem_vm *p = &self->p;

	ASSERT_EQ(0, set(p, 0, 64, PRIVATE, PRESERVE));
	EXPECT_EQ(0, vm_get_stat(p->vm, protmem_private_bytes));
	ASSERT_EQ(0, set(p, 0, 64, 0, PRESERVE));
	EXPECT_EQ(0, vm_get_stat(p->vm, protmem_shared_bytes));
	EXPECT_EQ(64 * PAGE_SIZE, protmem_first_nonzero(p->mem, 64 * PAGE_SIZE));
	ASSERT_EQ(0, set(p, 0, 64, PRIVATE, PRESERVE));
	EXPECT_EQ(0, protmem_call(p, 0, guest_check_zero, GPA, 64 * PAGE_SIZE));
}

/*
 * Private pages of zeroes are shared without a copy of them, and those with a single
 * byte of data keep it.  First the VMM shares them, if it still may, then the guest.
 */
TEST_F(attr, zeroes_become_holes)
{
	static const u64 at[] = { 0, 8, 56, 64, PAGE_SIZE / 2, PAGE_SIZE - 8 };
	const u64 n = 32, size = n * PAGE_SIZE;
	struct protmem_vm *p = &self->p;
	u64 i, round;

	for (round = PROTMEM_RUN_LATCHES; round < 2; round++) {
		ASSERT_EQ(0, set(p, 0, n, PRIVATE, ZERO));
		ASSERT_EQ(0, protmem_call(p, 0, guest_check_zero, GPA, size));
		for (i = 0; i < ARRAY_SIZE(at); i++)
			protmem_call(p, 0, guest_write64,
				     GPA + (2 * i + 1) * PAGE_SIZE + at[i], 1ULL << 56);
		EXPECT_EQ(size, vm_get_stat(p->vm, protmem_private_bytes));

		ASSERT_EQ(0, round ? protmem_make_shared(p, GPA, size) :
				     set(p, 0, n, 0, PRESERVE));
		EXPECT_EQ(0, vm_get_stat(p->vm, protmem_private_bytes));
		EXPECT_EQ(ARRAY_SIZE(at) * PAGE_SIZE, vm_get_stat(p->vm, protmem_shared_bytes));

		for (i = 0; i < n; i++) {
			u8 *page = p->mem + i * PAGE_SIZE;
			u64 first = i / 2 < ARRAY_SIZE(at) && i % 2 ? at[i / 2] : PAGE_SIZE;

			EXPECT_EQ(first, protmem_first_nonzero(page, PAGE_SIZE));
			if (first == PAGE_SIZE)
				continue;
			EXPECT_EQ(1ULL << 56, *(u64 *)(page + first));
			*(u64 *)(page + first) = 0;
			EXPECT_EQ(PAGE_SIZE, protmem_first_nonzero(page, PAGE_SIZE));
		}

		/* The holes are shared memory like any other. */
		protmem_call(p, 0, guest_fill, GPA, size, SEED);
		EXPECT_EQ(size, protmem_mismatch(p->mem, GPA, size, SEED));
		EXPECT_EQ(size, vm_get_stat(p->vm, protmem_shared_bytes));

		/* Of the pages that came free, those with data were scrubbed. */
		ASSERT_EQ(0, protmem_punch(p->gmem, 0, size));
		ASSERT_EQ(0, protmem_make_private(p, GPA, size));
		ASSERT_EQ(0, protmem_call(p, 0, guest_check_zero, GPA, size));
		protmem_call(p, 0, guest_fill, GPA, size, SEED);
		ASSERT_EQ(0, protmem_make_shared(p, GPA, size));
		EXPECT_EQ(size, protmem_mismatch(p->mem, GPA, size, SEED));
	}
	ASSERT_EQ(0, protmem_make_private(p, GPA, size));
	EXPECT_EQ(0, protmem_call(p, 0, guest_check, GPA, size, SEED));
}

/* Half a terabyte of untouched memory costs no more than a page of it. */
TEST(huge)
{
	struct protmem_opts opts = { .caps = PROTMEM_CAPS, .no_slot = true };
	const u64 huge = 1ull << 39;
	struct timespec start;
	struct protmem_vm p;
	u64 attributes, run;
	void *hva;
	s64 ns;
	int fd;

	protmem_vm_create(&p, &opts);
	if (huge >> PAGE_SHIFT >= p.vm->max_gfn - (GPA >> PAGE_SHIFT)) {
		protmem_vm_free(&p);
		SKIP(return, "needs 40 guest physical address bits");
	}
	fd = vm_create_guest_memfd(p.vm, huge, PROTMEM_GMEM_FLAGS);
	/* Nobody uses it, but it has to be an address. */
	hva = kvm_mmap(huge, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
	if (__vm_set_user_memory_region2(p.vm, 11, PROTMEM_FLAGS, GPA, huge,
					 hva, fd, 0)) {
		/* KVM's own structures for the slot are what is too large. */
		ASSERT_EQ(ENOMEM, errno);
		kvm_munmap(hva, huge);
		close(fd);
		protmem_vm_free(&p);
		SKIP(return, "no memory for a slot of 512 GiB here");
	}
	clock_gettime(CLOCK_MONOTONIC, &start);
	EXPECT_EQ(0, protmem_set_attr(fd, 0, huge, PRIVATE, PRESERVE, NULL));
	EXPECT_EQ(0, protmem_get_attr(fd, PAGE_SIZE, huge - PAGE_SIZE,
				      &attributes, &run));
	EXPECT_EQ(PRIVATE, attributes);
	EXPECT_EQ(huge - PAGE_SIZE, run);
	EXPECT_EQ(0, protmem_set_attr(fd, 0, huge, 0, PRESERVE, NULL));
	EXPECT_EQ(0, protmem_set_attr(fd, 0, huge, PRIVATE, ZERO, NULL));
	ns = timespec_to_ns(timespec_elapsed(start));
	EXPECT_LT(ns, 5000000000ll);
	TH_LOG("%ld us", ns / 1000);
	protmem_delete_slot(&p, 11);
	kvm_munmap(hva, huge);
	close(fd);
	protmem_vm_free(&p);
}

static void on_alarm(int sig)
{
}

static void alarm_every(int us)
{
	struct sigaction sa = { .sa_handler = on_alarm };
	struct itimerval it = {
		.it_interval.tv_usec = us,
		.it_value.tv_usec = us,
	};

	sigaction(SIGALRM, &sa, NULL);
	setitimer(ITIMER_REAL, &it, NULL);
}

/*
 * A signal leaves a finished prefix and says where it ends.  The harness's own
 * timeout is in another process.
 */
TEST(signals)
{
	struct protmem_opts opts = { .caps = PROTMEM_CAPS, .size = SZ_32M };
	u64 size = SZ_32M, off, err, attributes, run;
	int r, round, eintr = 0, stuck;
	struct protmem_vm p;

	protmem_vm_create(&p, &opts);
	protmem_fill(&p, GPA, size, SEED);
	for (round = 0; round < 4; round++) {
		u64 to = round & 1 ? 0 : PRIVATE;

		alarm_every(2000);
		for (off = 0, stuck = 0; ; ) {
			r = protmem_set_attr(p.gmem, off, size - off, to,
					     PRESERVE, &err);
			if (!r)
				break;
			ASSERT_EQ(-EINTR, r);
			eintr++;
			ASSERT_EQ(0, err % PAGE_SIZE);
			ASSERT_LE(off, err);
			ASSERT_LT(err, size);
			stuck = err == off ? stuck + 1 : 0;
			ASSERT_LT(stuck, 1000);

			/* All before it is done, nothing behind it. */
			if (err) {
				ASSERT_EQ(0, protmem_get_attr(p.gmem, 0, size,
							      &attributes, &run));
				ASSERT_EQ(to, attributes);
				ASSERT_EQ(err, run);
			}
			off = err;
		}
		alarm_every(0);
		ASSERT_EQ(0, protmem_get_attr(p.gmem, 0, size, &attributes, &run));
		ASSERT_EQ(to, attributes);
		ASSERT_EQ(size, run);
	}
	EXPECT_EQ(size, protmem_mismatch(p.mem, GPA, size, SEED));
	TH_LOG("%d interruptions in %d rounds of %lu MiB", eintr, round,
	       size >> 20);
	EXPECT_LT(0, eintr);
	protmem_vm_free(&p);
}

/* Preallocating where the state is private must not make a shared page. */
TEST_F(attr, allocate_where_private)
{
	struct protmem_vm *p = &self->p;
	u64 val;

	ASSERT_EQ(0, set(p, 0, 8, PRIVATE, ZERO));
	fallocate(p->gmem, FALLOC_FL_KEEP_SIZE, 0, 16 * PAGE_SIZE);
	EXPECT_TRUE(protmem_is_private(p, GPA));
	EXPECT_EQ(BUS_ADRERR, protmem_try_read(p->mem, &val));
	EXPECT_EQ(0, protmem_call(p, 0, guest_check_zero, GPA, 8 * PAGE_SIZE));
	EXPECT_GE(8 * PAGE_SIZE, vm_get_stat(p->vm, protmem_private_bytes));
	EXPECT_GE(8 * PAGE_SIZE, vm_get_stat(p->vm, protmem_shared_bytes));
}

TEST_F(attr, statistics)
{
	struct protmem_vm *p = &self->p;
	s64 global = protmem_off_direct_map();
	u64 conversions = vm_get_stat(p->vm, protmem_conversions);
	u64 refused = vm_get_stat(p->vm, protmem_refused);
	u64 val;

	EXPECT_EQ(0, conversions);
	EXPECT_EQ(0, refused);
	EXPECT_EQ(0, vm_get_stat(p->vm, protmem_private_bytes));
	EXPECT_EQ(0, vm_get_stat(p->vm, protmem_shared_bytes));
	EXPECT_EQ(0, vm_get_stat(p->vm, protmem_block_bytes));

	/* Whoever else comes first gets the block. */
	ASSERT_EQ(0, fallocate(p->gmem, FALLOC_FL_KEEP_SIZE, 0, 32 * PAGE_SIZE));
	protmem_fill(p, GPA, 32 * PAGE_SIZE, SEED);
	EXPECT_EQ(32 * PAGE_SIZE, vm_get_stat(p->vm, protmem_shared_bytes));

	ASSERT_EQ(0, set(p, 0, 20, PRIVATE, PRESERVE));
	EXPECT_EQ(12 * PAGE_SIZE, vm_get_stat(p->vm, protmem_shared_bytes));
	EXPECT_EQ(20 * PAGE_SIZE, vm_get_stat(p->vm, protmem_private_bytes));
	EXPECT_LE(20 * PAGE_SIZE, vm_get_stat(p->vm, protmem_block_bytes));
	EXPECT_EQ(conversions + 20, vm_get_stat(p->vm, protmem_conversions));
	if (global >= 0)
		EXPECT_EQ(global + (s64)vm_get_stat(p->vm, protmem_block_bytes),
			  protmem_off_direct_map());

	EXPECT_EQ(BUS_ADRERR, protmem_try_read(p->mem, &val));
	EXPECT_EQ(refused + 1, vm_get_stat(p->vm, protmem_refused));
	EXPECT_EQ(0, protmem_try_read(p->mem + 20 * PAGE_SIZE, &val));
	EXPECT_EQ(refused + 1, vm_get_stat(p->vm, protmem_refused));

	ASSERT_EQ(0, set(p, 10, 10, 0, PRESERVE));
	EXPECT_EQ(22 * PAGE_SIZE, vm_get_stat(p->vm, protmem_shared_bytes));
	EXPECT_EQ(10 * PAGE_SIZE, vm_get_stat(p->vm, protmem_private_bytes));
	EXPECT_EQ(conversions + 30, vm_get_stat(p->vm, protmem_conversions));

	ASSERT_EQ(0, protmem_punch(p->gmem, 0, p->size));
	EXPECT_EQ(0, vm_get_stat(p->vm, protmem_shared_bytes));
	EXPECT_EQ(0, vm_get_stat(p->vm, protmem_private_bytes));
}

/*
 * In these the guest runs between the VMM's changes, after which there are none where
 * that closes the latch: arm64/protmem_hypercall_test has what is left then.
 */
#if !PROTMEM_RUN_LATCHES

/* Mutant killed: no copy, or a copy of the wrong page. */
TEST_F(attr, preserve)
{
	struct protmem_vm *p = &self->p;
	const u64 size = 40 * PAGE_SIZE;
	u64 val;

	protmem_fill(p, GPA, size, SEED);
	ASSERT_EQ(0, set(p, 0, 40, PRIVATE, PRESERVE));
	EXPECT_EQ(0, protmem_call(p, 0, guest_check, GPA, size, SEED));
	/* Mutant killed: the VMM's page table entry is not zapped. */
	EXPECT_EQ(BUS_ADRERR, protmem_try_read(p->mem, &val));
	EXPECT_EQ(BUS_ADRERR, protmem_try_read(p->mem + size - 8, &val));
	EXPECT_EQ(BUS_ADRERR, protmem_try_write(p->mem, 1));

	protmem_call(p, 0, guest_fill, GPA, size, SEED + 1);
	ASSERT_EQ(0, set(p, 0, 40, 0, PRESERVE));
	EXPECT_EQ(size, protmem_mismatch(p->mem, GPA, size, SEED + 1));

	/* To what it is already: nothing. */
	ASSERT_EQ(0, set(p, 0, 40, 0, PRESERVE));
	EXPECT_EQ(size, protmem_mismatch(p->mem, GPA, size, SEED + 1));
	ASSERT_EQ(0, set(p, 10, 10, PRIVATE, PRESERVE));
	ASSERT_EQ(0, set(p, 0, 40, PRIVATE, PRESERVE));
	EXPECT_EQ(0, protmem_call(p, 0, guest_check, GPA, size, SEED + 1));
}

TEST_F(attr, zero)
{
	struct protmem_vm *p = &self->p;
	const u64 size = 40 * PAGE_SIZE;
	u64 val;

	protmem_fill(p, GPA, size, SEED);
	ASSERT_EQ(0, set(p, 0, 40, PRIVATE, ZERO));
	EXPECT_EQ(BUS_ADRERR, protmem_try_read(p->mem, &val));
	EXPECT_EQ(0, protmem_call(p, 0, guest_check_zero, GPA, size));

	protmem_call(p, 0, guest_fill, GPA, size, SEED + 1);
	ASSERT_EQ(0, set(p, 0, 40, 0, ZERO));
	EXPECT_EQ(size, protmem_first_nonzero(p->mem, size));
	EXPECT_EQ(0, protmem_call(p, 0, guest_check_zero, GPA, size));
}

/*
 * Private pages that are given up are used again for other pages of the VM,
 * which must find them empty.  Mutant killed: no scrub.
 */
TEST_F(attr, reused_pages_are_empty)
{
	struct protmem_vm *p = &self->p;
	const u64 half = p->size / 2, n = half / PAGE_SIZE;
	int i;

	for (i = 0; i < 4; i++) {
		ASSERT_EQ(0, set(p, 0, n, PRIVATE, ZERO));
		protmem_call(p, 0, guest_fill, GPA, half, SEED + i);
		ASSERT_EQ(0, set(p, 0, n, 0, i & 1 ? ZERO : PRESERVE));
		/* Two ways to ask for new ones. */
		ASSERT_EQ(0, set(p, n, n, PRIVATE, ZERO));
		ASSERT_EQ(0, protmem_call(p, 0, guest_check_zero, GPA + half, half));
		ASSERT_EQ(0, protmem_punch(p->gmem, half, half));
		ASSERT_EQ(0, protmem_call(p, 0, guest_check_zero, GPA + half, half));
		ASSERT_EQ(0, set(p, n, n, 0, ZERO));
		ASSERT_EQ(0, protmem_punch(p->gmem, 0, p->size));
	}
}

TEST_F(attr, punch_hole_keeps_the_state)
{
	struct protmem_vm *p = &self->p;

	ASSERT_EQ(0, set(p, 0, 8, PRIVATE, ZERO));
	protmem_call(p, 0, guest_fill, GPA, 8 * PAGE_SIZE, SEED);
	protmem_fill(p, GPA + 8 * PAGE_SIZE, 8 * PAGE_SIZE, SEED);
	EXPECT_EQ(8 * PAGE_SIZE, vm_get_stat(p->vm, protmem_private_bytes));
	EXPECT_EQ(8 * PAGE_SIZE, vm_get_stat(p->vm, protmem_shared_bytes));

	EXPECT_EQ(0, protmem_punch(p->gmem, 4 * PAGE_SIZE, 8 * PAGE_SIZE));
	EXPECT_EQ(4 * PAGE_SIZE, vm_get_stat(p->vm, protmem_private_bytes));
	EXPECT_EQ(4 * PAGE_SIZE, vm_get_stat(p->vm, protmem_shared_bytes));
	EXPECT_TRUE(protmem_is_private(p, GPA + 7 * PAGE_SIZE));
	EXPECT_FALSE(protmem_is_private(p, GPA + 8 * PAGE_SIZE));

	EXPECT_EQ(0, protmem_call(p, 0, guest_check, GPA, 4 * PAGE_SIZE, SEED));
	EXPECT_EQ(0, protmem_call(p, 0, guest_check_zero, GPA + 4 * PAGE_SIZE,
				  8 * PAGE_SIZE));
	EXPECT_EQ(4 * PAGE_SIZE,
		  protmem_mismatch(protmem_hva(p, GPA + 12 * PAGE_SIZE),
				   GPA + 12 * PAGE_SIZE, 4 * PAGE_SIZE, SEED));
}

/* Two threads change the state under each other and a third asks. */
struct flipper {
	struct protmem_vm *p;
	u64 seed;
	bool stop;
};

static void *flip_thread(void *arg)
{
	struct flipper *f = arg;
	u64 i, r = f->seed;

	for (i = 0; !READ_ONCE(f->stop); i++) {
		r = r * 6364136223846793005ull + 1442695040888963407ull;
		TEST_ASSERT_EQ(set(f->p, (r >> 40) % 56, 1 + (r >> 50) % 8,
				   r >> 63 ? PRIVATE : 0,
				   r >> 62 & 1 ? ZERO : PRESERVE), 0);
	}
	return NULL;
}

TEST_F(attr, concurrent)
{
	u64 iterations = protmem_test_iterations(3000), i, attributes, run, val;
	struct protmem_vm *p = &self->p;
	struct flipper f[2] = { { p, 1 }, { p, 2 } };
	pthread_t thread[2];

	pthread_create(&thread[0], NULL, flip_thread, &f[0]);
	pthread_create(&thread[1], NULL, flip_thread, &f[1]);
	for (i = 0; i < iterations; i++) {
		u64 page = i % 64;

		ASSERT_EQ(0, protmem_get_attr(p->gmem, page * PAGE_SIZE,
					      p->size - page * PAGE_SIZE,
					      &attributes, &run));
		ASSERT_NE(0, run);
		protmem_try_read(p->mem + page * PAGE_SIZE, &val);
		if (i % 64 == 0)
			protmem_call(p, 0, guest_check_zero, GPA, 64 * PAGE_SIZE);
	}
	f[0].stop = true;
	f[1].stop = true;
	pthread_join(thread[0], NULL);
	pthread_join(thread[1], NULL);
	ASSERT_EQ(0, set(p, 0, 64, 0, ZERO));
	EXPECT_TRUE(all_shared(p));
	EXPECT_EQ(0, vm_get_stat(p->vm, protmem_private_bytes));
	TH_LOG("%lu iterations", i);
}

#endif /* !PROTMEM_RUN_LATCHES */

int main(int argc, char **argv)
{
	protmem_require();
	return test_harness_run(argc, argv);
}
