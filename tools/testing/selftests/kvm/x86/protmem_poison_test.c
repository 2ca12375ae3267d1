// SPDX-License-Identifier: GPL-2.0-only
/*
 * Memory errors in pages of protected memory: in use or not, private, shared or
 * hidden.
 *
 * Nobody but the one who needs the contents is hurt, and a broken page never
 * comes back, so that this leaves a page off the direct map for each error:
 * other tests of protected memory that run later in the same boot see them.
 */
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include <linux/kernel-page-flags.h>

#include "kselftest_harness.h"
#include "kvm_syscalls.h"
#include "protmem.h"

#define GPA		PROTMEM_GPA
#define HWPOISON	"/sys/kernel/debug/hwpoison/"
#define TRACE_EVENT	"kvmmmu/kvm_mmu_set_spte"
#define NR		16
#define SEED		31

static int inject(u64 pfn)
{
	char buf[32];

	snprintf(buf, sizeof(buf), "%#lx", pfn);
	return protmem_write_file(HWPOISON "corrupt-pfn", buf);
}

static int unpoison(u64 pfn)
{
	char buf[32];

	snprintf(buf, sizeof(buf), "%#lx", pfn);
	return protmem_write_file(HWPOISON "unpoison-pfn", buf);
}

static u64 page_flags(u64 pfn)
{
	int fd = open("/proc/kpageflags", O_RDONLY);
	u64 flags = 0;

	TEST_ASSERT(fd >= 0 && pread(fd, &flags, 8, pfn * 8) == 8,
		    "/proc/kpageflags: %d", errno);
	close(fd);
	return flags;
}

static bool is_poisoned(u64 pfn)
{
	return page_flags(pfn) & BIT_ULL(KPF_HWPOISON);
}

/* In the hands of the page allocator? */
static bool is_free(u64 pfn)
{
	return page_flags(pfn) & BIT_ULL(KPF_BUDDY);
}

/* The page that the guest has been given for @gpa since protmem_trace_start(). */
static u64 traced_pfn(u64 gpa)
{
	FILE *f = fopen(PROTMEM_TRACE, "r");
	u64 gfn, spte, pages, pfn = 0;
	char line[512], *s, *l;
	int level;

	TEST_ASSERT(f, "no " PROTMEM_TRACE);
	while (fgets(line, sizeof(line), f)) {
		s = strstr(line, "kvm_mmu_set_spte: ");
		l = s ? strstr(s, " level ") : NULL;
		if (!l || sscanf(s, "kvm_mmu_set_spte: gfn %lx spte %lx", &gfn,
				 &spte) != 2 || sscanf(l, " level %d", &level) != 1)
			continue;
		pages = 1ull << (9 * (level - 1));
		gfn &= ~(pages - 1);
		if (gpa / PAGE_SIZE - gfn < pages)
			pfn = ((spte & GENMASK_ULL(51, 12)) >> 12) + gpa / PAGE_SIZE - gfn;
	}
	fclose(f);
	TEST_ASSERT(pfn, "gpa %lx was not mapped", gpa);
	return pfn;
}

static u64 pagemap_pfn(const void *mem)
{
	int fd = open("/proc/self/pagemap", O_RDONLY);
	u64 entry;

	TEST_ASSERT(fd >= 0 && pread(fd, &entry, 8, (u64)mem / PAGE_SIZE * 8) == 8 &&
		    entry >> 63, "pagemap");
	close(fd);
	return entry & GENMASK_ULL(54, 0);
}

FIXTURE(poison) {
	struct protmem_vm p;
	s64 off, quarantined;
	u64 pfn[NR];
};

FIXTURE_SETUP(poison)
{
	self->off = protmem_off_direct_map();
	self->quarantined = protmem_read_sysfs("quarantined_bytes");
}

/* What remains off the direct map is nothing but broken pages: how many? */
static s64 pages_lost(FIXTURE_DATA(poison) *self)
{
	s64 off, quarantined;
	int i;

	for (i = 0; i < 500; i++) {
		off = protmem_off_direct_map() - self->off;
		quarantined = protmem_read_sysfs("quarantined_bytes") -
			      self->quarantined;
		if (off == quarantined)
			return off / PAGE_SIZE;
		usleep(20000);
	}
	return -1;
}

FIXTURE_TEARDOWN(poison)
{
	protmem_trace_stop(TRACE_EVENT);
}

static void create(FIXTURE_DATA(poison) *self, u64 caps)
{
	struct protmem_opts opts = { .caps = caps };
	int i;

	protmem_vm_create(&self->p, &opts);
	TEST_ASSERT_EQ(protmem_trace_start(TRACE_EVENT), 0);
	if (caps == PROTMEM_CAPS)
		TEST_ASSERT_EQ(protmem_make_private(&self->p, GPA, PROTMEM_SIZE), 0);
	protmem_call(&self->p, 0, guest_fill, GPA, NR * PAGE_SIZE, SEED);
	for (i = 0; i < NR; i++)
		self->pfn[i] = traced_pfn(GPA + i * PAGE_SIZE);
}

/* The errno of a KVM_RUN with @fn, which is not to come to its end. */
static int failing_call(struct protmem_vm *p, protmem_fn_t fn, u64 a, u64 b, u64 c)
{
	int r;

	protmem_prepare(p, 0, fn, a, b, c, 0);
	r = _vcpu_run(p->vcpu[0]) ? errno : 0;
	if (r)
		protmem_vcpu_reset(p, 0);
	return r;
}

static u64 check_others(struct protmem_vm *p, int broken)
{
	u64 bad = 0;
	int i;

	for (i = 0; i < NR; i++) {
		if (i != broken)
			bad = bad ?: protmem_call(p, 0, guest_check,
						  GPA + i * PAGE_SIZE, PAGE_SIZE, SEED);
	}
	return bad;
}

TEST_F(poison, private_page)
{
	struct protmem_vm *p = &self->p;
	u64 pfn, gpa = GPA + 3 * PAGE_SIZE, val;

	create(self, PROTMEM_CAPS);
	pfn = self->pfn[3];
	ASSERT_EQ(0, inject(pfn));
	EXPECT_TRUE(is_poisoned(pfn));

	/* The guest is told, the VMM sees no more than before. */
	EXPECT_EQ(EHWPOISON, failing_call(p, guest_read64, gpa, 0, 0));
	EXPECT_EQ(KVM_EXIT_MEMORY_FAULT, p->vcpu[0]->run->exit_reason);
	EXPECT_EQ(gpa, p->vcpu[0]->run->memory_fault.gpa);
	EXPECT_EQ(BUS_ADRERR, protmem_try_read(protmem_hva(p, gpa), &val));
	EXPECT_EQ(0, check_others(p, 3));

	/* It can't be shared, as nobody could read what it held. */
	EXPECT_EQ(EHWPOISON, failing_call(p, guest_convert, gpa, PAGE_SIZE,
					  KVM_MAP_GPA_RANGE_DECRYPTED));
	EXPECT_TRUE(protmem_is_private(p, gpa));

	/* Once is enough, and there is no way back. */
	EXPECT_EQ(-EHWPOISON, inject(pfn));
	EXPECT_EQ(-EOPNOTSUPP, unpoison(pfn));

	/* A prefix of a range with it in the middle. */
	EXPECT_EQ(EHWPOISON, failing_call(p, guest_convert, GPA, NR * PAGE_SIZE,
					  KVM_MAP_GPA_RANGE_DECRYPTED));
	EXPECT_FALSE(protmem_is_private(p, GPA + 2 * PAGE_SIZE));
	EXPECT_TRUE(protmem_is_private(p, gpa));
	EXPECT_EQ(3 * PAGE_SIZE, protmem_mismatch(p->mem, GPA, 3 * PAGE_SIZE, SEED));
	EXPECT_EQ(0, check_others(p, 3));

	/* With its contents the error goes, and another page comes. */
	ASSERT_EQ(0, protmem_reset(p));
	TEST_ASSERT_EQ(protmem_trace_start(TRACE_EVENT), 0);
	ASSERT_EQ(0, protmem_make_private(p, GPA, PROTMEM_SIZE));
	ASSERT_EQ(0, protmem_call(p, 0, guest_check_zero, GPA, PROTMEM_SIZE));
	EXPECT_NE(pfn, traced_pfn(gpa));
	protmem_call(p, 0, guest_fill, GPA, PROTMEM_SIZE, SEED + 1);
	EXPECT_EQ(0, protmem_call(p, 0, guest_check, GPA, PROTMEM_SIZE, SEED + 1));

	protmem_vm_free(p);
	EXPECT_EQ(1, pages_lost(self));
	EXPECT_TRUE(is_poisoned(pfn));
	EXPECT_FALSE(is_free(pfn));
	EXPECT_FALSE(is_poisoned(self->pfn[2]));
	EXPECT_FALSE(is_poisoned(self->pfn[4]));
}

/* Of a block that the guest has by one entry, and then by one without the page. */
static void large_block(FIXTURE_DATA(poison) *self, u64 caps)
{
	struct protmem_vm *p = &self->p;
	u64 gpa = GPA + 3 * PAGE_SIZE, large;
	int i;

	create(self, caps);
	large = vm_get_stat(p->vm, pages_2m);
	TEST_ASSERT(large, "no block was to be had");
	TEST_ASSERT_EQ(inject(self->pfn[3]), 0);
	TEST_ASSERT_EQ(vm_get_stat(p->vm, pages_2m), large - 1);

	for (i = 0; i < 2; i++) {
		TEST_ASSERT_EQ(check_others(p, 3), 0);
		TEST_ASSERT_EQ(protmem_call(p, 0, guest_check_zero, GPA + NR * PAGE_SIZE,
					    SZ_2M - NR * PAGE_SIZE), 0);
		TEST_ASSERT_EQ(failing_call(p, guest_write64, gpa, 1, 0), EHWPOISON);
		TEST_ASSERT_EQ(vm_get_stat(p->vm, pages_2m), large - 1);
	}

	protmem_vm_free(p);
	TEST_ASSERT_EQ(pages_lost(self), 1);
}

TEST_F(poison, large_private_block)
{
	large_block(self, PROTMEM_CAPS);
}

TEST_F(poison, large_hidden_block)
{
	large_block(self, PROTMEM_CAPS_HIDE);
}

TEST_F(poison, large_shared_block)
{
	struct protmem_opts opts = { .caps = PROTMEM_CAPS };
	u64 pfn, val, large, gpa = GPA + 3 * PAGE_SIZE;
	struct protmem_vm *p = &self->p;
	int i;

	protmem_vm_create(p, &opts);
	protmem_call(p, 0, guest_nop);
	large = vm_get_stat(p->vm, pages_2m);
	protmem_call(p, 0, guest_fill, GPA, SZ_2M, SEED);
	ASSERT_EQ(large + 1, vm_get_stat(p->vm, pages_2m));
	ASSERT_EQ(0, protmem_try_read(protmem_hva(p, gpa), &val));
	pfn = pagemap_pfn(protmem_hva(p, gpa));

	ASSERT_EQ(-EBUSY, inject(pfn));
	EXPECT_TRUE(is_poisoned(pfn));
	EXPECT_EQ(large, vm_get_stat(p->vm, pages_2m));
	for (i = 0; i < 2; i++) {
		EXPECT_EQ(0, check_others(p, 3));
		EXPECT_EQ(EHWPOISON, failing_call(p, guest_read64, gpa, 0, 0));
		EXPECT_EQ(large, vm_get_stat(p->vm, pages_2m));
	}
	EXPECT_EQ(BUS_MCEERR_AR, protmem_try_read(protmem_hva(p, gpa), &val));

	/* Without the page, and with another one in its place. */
	EXPECT_EQ(0, protmem_punch(p->gmem, gpa - GPA, PAGE_SIZE));
	EXPECT_EQ(0, protmem_call(p, 0, guest_check_zero, gpa, PAGE_SIZE));
	protmem_call(p, 0, guest_fill, GPA, SZ_2M, SEED + 1);
	EXPECT_EQ(0, protmem_call(p, 0, guest_check, GPA, SZ_2M, SEED + 1));
	EXPECT_EQ(large, vm_get_stat(p->vm, pages_2m));

	protmem_vm_free(p);
	EXPECT_EQ(0, pages_lost(self));
	EXPECT_TRUE(is_poisoned(pfn));
	EXPECT_FALSE(is_free(pfn));
}

/* The VM dies without having noticed. */
TEST_F(poison, private_page_unnoticed)
{
	create(self, PROTMEM_CAPS);
	ASSERT_EQ(0, inject(self->pfn[0]));
	ASSERT_EQ(0, inject(self->pfn[1]));
	ASSERT_EQ(0, inject(self->pfn[9]));
	protmem_vm_free(&self->p);
	EXPECT_EQ(3, pages_lost(self));
	EXPECT_TRUE(is_poisoned(self->pfn[9]));
	EXPECT_FALSE(is_free(self->pfn[9]));
}

/* A page of a block that is kept for its gfn, which the guest has not touched. */
TEST_F(poison, reserved_page)
{
	struct protmem_opts opts = { .caps = PROTMEM_CAPS };
	u64 pfn, gpa = GPA + NR * PAGE_SIZE;
	struct protmem_vm *p = &self->p;
	int i;

	/* What has contents when it is converted gets a page each, not the rest. */
	protmem_vm_create(p, &opts);
	ASSERT_EQ(0, fallocate(p->gmem, FALLOC_FL_KEEP_SIZE, 0, NR * PAGE_SIZE));
	protmem_call(p, 0, guest_fill, GPA, NR * PAGE_SIZE, SEED);
	ASSERT_EQ(0, protmem_make_private(p, GPA, PROTMEM_SIZE));
	ASSERT_EQ(NR * PAGE_SIZE, vm_get_stat(p->vm, protmem_private_bytes));
	TEST_ASSERT_EQ(protmem_trace_start(TRACE_EVENT), 0);
	ASSERT_EQ(0, check_others(p, -1));
	for (i = 0; i < NR; i++)
		self->pfn[i] = traced_pfn(GPA + i * PAGE_SIZE);
	/* Else the block has been too small for a home. */
	ASSERT_EQ(self->pfn[0] + NR - 1, self->pfn[NR - 1]);
	pfn = self->pfn[NR - 1] + 1;
	ASSERT_EQ(0, inject(pfn));
	EXPECT_TRUE(is_poisoned(pfn));
	EXPECT_EQ(self->quarantined + PAGE_SIZE,
		  protmem_read_sysfs("quarantined_bytes"));

	TEST_ASSERT_EQ(protmem_trace_start(TRACE_EVENT), 0);
	EXPECT_EQ(0, protmem_call(p, 0, guest_check_zero, gpa, 2 * PAGE_SIZE));
	EXPECT_NE(pfn, traced_pfn(gpa));
	EXPECT_EQ(pfn + 1, traced_pfn(gpa + PAGE_SIZE));
	protmem_call(p, 0, guest_fill, gpa, PAGE_SIZE, SEED);
	EXPECT_EQ(0, protmem_call(p, 0, guest_check, gpa, PAGE_SIZE, SEED));
	EXPECT_EQ(0, check_others(p, -1));

	protmem_vm_free(p);
	EXPECT_EQ(1, pages_lost(self));
	EXPECT_FALSE(is_free(pfn));
}

/* A page that was in use, and is kept for the next one who needs one. */
TEST_F(poison, free_page)
{
	struct protmem_vm *p = &self->p;
	u64 pfn, gpa = GPA + 5 * PAGE_SIZE;

	create(self, PROTMEM_CAPS);
	pfn = self->pfn[5];
	ASSERT_EQ(0, protmem_make_shared(p, gpa, PAGE_SIZE));
	ASSERT_EQ(0, inject(pfn));
	EXPECT_TRUE(is_poisoned(pfn));
	EXPECT_EQ(0, check_others(p, -1));
	EXPECT_EQ(PAGE_SIZE, protmem_mismatch(protmem_hva(p, gpa), gpa, PAGE_SIZE,
					      SEED));
	TEST_ASSERT_EQ(protmem_trace_start(TRACE_EVENT), 0);
	ASSERT_EQ(0, protmem_make_private(p, gpa, PAGE_SIZE));
	EXPECT_EQ(0, check_others(p, -1));
	EXPECT_NE(pfn, traced_pfn(gpa));

	protmem_vm_free(p);
	EXPECT_EQ(1, pages_lost(self));
	EXPECT_FALSE(is_free(pfn));
}

TEST_F(poison, shared_page)
{
	struct protmem_vm *p = &self->p;
	u64 pfn, gpa = GPA + 7 * PAGE_SIZE, val;

	create(self, PROTMEM_CAPS);
	ASSERT_EQ(0, protmem_make_shared(p, gpa, PAGE_SIZE));
	ASSERT_EQ(0, protmem_try_read(protmem_hva(p, gpa), &val));
	pfn = pagemap_pfn(protmem_hva(p, gpa));
	ASSERT_NE(self->pfn[7], pfn);
	ASSERT_EQ(0, protmem_call(p, 0, guest_check, gpa, PAGE_SIZE, SEED));

	/*
	 * As in any guest_memfd: the page stays there, which memory_failure()
	 * calls a failure, but nobody gets to see it.
	 */
	ASSERT_EQ(-EBUSY, inject(pfn));
	EXPECT_TRUE(is_poisoned(pfn));
	EXPECT_EQ(BUS_MCEERR_AR, protmem_try_read(protmem_hva(p, gpa), &val));
	EXPECT_EQ(EHWPOISON, failing_call(p, guest_read64, gpa, 0, 0));
	EXPECT_EQ(KVM_EXIT_MEMORY_FAULT, p->vcpu[0]->run->exit_reason);
	EXPECT_EQ(EHWPOISON, failing_call(p, guest_convert, gpa, PAGE_SIZE,
					  KVM_MAP_GPA_RANGE_ENCRYPTED));
	EXPECT_FALSE(protmem_is_private(p, gpa));
	EXPECT_EQ(0, check_others(p, 7));

	/* It is the VMM's to drop, but its old mapping remembers the error. */
	EXPECT_EQ(0, protmem_punch(p->gmem, gpa - GPA, PAGE_SIZE));
	EXPECT_EQ(0, protmem_call(p, 0, guest_check_zero, gpa, PAGE_SIZE));
	EXPECT_EQ(BUS_MCEERR_AR, protmem_try_read(protmem_hva(p, gpa), &val));
	ASSERT_EQ(protmem_hva(p, gpa),
		  mmap(protmem_hva(p, gpa), PAGE_SIZE, PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_FIXED, p->gmem, gpa - GPA));
	ASSERT_EQ(0, protmem_try_read(protmem_hva(p, gpa), &val));
	EXPECT_EQ(0, val);
	EXPECT_NE(pfn, pagemap_pfn(protmem_hva(p, gpa)));
	ASSERT_EQ(0, protmem_make_private(p, gpa, PAGE_SIZE));
	EXPECT_EQ(0, check_others(p, 7));

	protmem_vm_free(p);
	/* It never was off the direct map. */
	EXPECT_EQ(0, pages_lost(self));
	EXPECT_TRUE(is_poisoned(pfn));
	EXPECT_FALSE(is_free(pfn));
}

TEST_F(poison, hidden_page)
{
	struct protmem_vm *p = &self->p;
	u64 pfn, gpa = GPA + 11 * PAGE_SIZE, val;

	create(self, PROTMEM_CAPS_HIDE);
	pfn = self->pfn[11];
	ASSERT_EQ(NR * PAGE_SIZE, protmem_mismatch(p->mem, GPA, NR * PAGE_SIZE, SEED));
	ASSERT_EQ(0, inject(pfn));
	EXPECT_TRUE(is_poisoned(pfn));

	EXPECT_EQ(BUS_MCEERR_AR, protmem_try_read(protmem_hva(p, gpa), &val));
	EXPECT_EQ(EHWPOISON, failing_call(p, guest_read64, gpa, 0, 0));
	EXPECT_EQ(KVM_EXIT_MEMORY_FAULT, p->vcpu[0]->run->exit_reason);
	EXPECT_EQ(0, check_others(p, 11));
	EXPECT_EQ(11 * PAGE_SIZE, protmem_mismatch(p->mem, GPA, 11 * PAGE_SIZE, SEED));

	EXPECT_EQ(0, protmem_punch(p->gmem, gpa - GPA, PAGE_SIZE));
	EXPECT_EQ(0, protmem_try_read(protmem_hva(p, gpa), &val));
	EXPECT_EQ(0, val);
	TEST_ASSERT_EQ(protmem_trace_start(TRACE_EVENT), 0);
	EXPECT_EQ(0, protmem_call(p, 0, guest_check_zero, gpa, PAGE_SIZE));
	EXPECT_NE(pfn, traced_pfn(gpa));

	protmem_vm_free(p);
	EXPECT_EQ(1, pages_lost(self));
	EXPECT_FALSE(is_free(pfn));
}

/* Errors in whatever page there is, while the guest converts it. */
static u64 guest_swing(u64 gpa, u64 size, u64 seed, u64 cmd_gva)
{
	struct protmem_cmd *cmd = (void *)cmd_gva;
	u64 r;

	while (!READ_ONCE(cmd->stop)) {
		r = __kvm_hypercall_map_gpa_range(gpa, size,
						  KVM_MAP_GPA_RANGE_DECRYPTED) ?:
		    guest_check(gpa, size, seed, 0) ?:
		    __kvm_hypercall_map_gpa_range(gpa, size,
						  KVM_MAP_GPA_RANGE_ENCRYPTED) ?:
		    guest_check(gpa, size, seed, 0);
		if (r)
			return r;
		WRITE_ONCE(cmd->count, cmd->count + 1);
	}
	return 0;
}

static void *swinging_vcpu(void *arg)
{
	struct protmem_vm *p = arg;

	return (void *)(long)(_vcpu_run(p->vcpu[0]) ? errno : 0);
}

TEST_F(poison, while_converting)
{
	struct protmem_vm *p = &self->p;
	int rounds = 10, i, j, r, injected = 0;
	s64 lost = 0, now;
	pthread_t t;
	void *err;

	if (protmem_nr_cpus() < 2)
		SKIP(return, "needs 2 CPUs");

	for (i = 0; i < rounds; i++) {
		create(self, PROTMEM_CAPS);
		protmem_trace_stop(TRACE_EVENT);
		protmem_prepare(p, 0, guest_swing, GPA, NR * PAGE_SIZE, SEED,
				p->cmd_gva[0]);
		p->cmd[0]->stop = 0;
		p->cmd[0]->count = 0;
		kvm_pthread_create(&t, NULL, swinging_vcpu, p);
		while (READ_ONCE(p->cmd[0]->count) < 1 + i)
			sched_yield();
		/*
		 * Most of them are in use at any time, as the pool has few others;
		 * one that it has given back is a shared folio now, perhaps.
		 */
		for (j = 0; j < NR; j += 3) {
			r = inject(self->pfn[j]);
			EXPECT_TRUE(!r || r == -EBUSY);
			usleep(1000);
		}
		WRITE_ONCE(p->cmd[0]->stop, 1);
		kvm_pthread_join(t, &err);
		/* It came upon one, or there was none in its way. */
		EXPECT_TRUE(!err || (long)err == EHWPOISON) {
			TH_LOG("round %d: KVM_RUN: errno %ld", i, (long)err);
		}
		if (!err)
			EXPECT_EQ(0, p->cmd[0]->ret);
		protmem_vm_free(p);
		for (j = 0; j < NR; j += 3) {
			EXPECT_TRUE(is_poisoned(self->pfn[j]));
			EXPECT_FALSE(is_free(self->pfn[j]));
		}
		/* The pool may have given back some of them before it was their turn. */
		injected += (NR + 2) / 3;
		now = pages_lost(self);
		EXPECT_LE(lost, now);
		EXPECT_GE(injected, now);
		lost = now;
	}
	EXPECT_LT(injected / 2, lost);
	TH_LOG("%d errors, %ld pages of the pool lost", injected, lost);
}

#define NR_MAPS		256

struct contest {
	struct protmem_vm *p;
	bool stop;
	u64 nr_faults, nr_conversions;
};

/* A page without entries is found by a fault, which waits for the locked folio. */
static void *faulting(void *arg)
{
	struct contest *c = arg;
	void *mem = kvm_mmap(PAGE_SIZE, PROT_READ, MAP_SHARED, c->p->gmem);

	while (!READ_ONCE(c->stop)) {
		madvise(mem, PAGE_SIZE, MADV_POPULATE_READ);
		madvise(mem, PAGE_SIZE, MADV_DONTNEED);
		c->nr_faults++;
	}
	kvm_munmap(mem, PAGE_SIZE);
	return NULL;
}

/* Others, so that the page stays what it is. */
static void *converting(void *arg)
{
	struct contest *c = arg;
	u64 done;

	while (!READ_ONCE(c->stop)) {
		TEST_ASSERT(!protmem_set_attr(c->p->gmem, PAGE_SIZE, NR * PAGE_SIZE,
					      KVM_MEMORY_ATTRIBUTE_PRIVATE,
					      KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE, &done) &&
			    !protmem_set_attr(c->p->gmem, PAGE_SIZE, NR * PAGE_SIZE, 0,
					      KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE, &done),
			    "Conversions of other pages");
		c->nr_conversions += 2;
	}
	return NULL;
}

/*
 * memory_failure() has the folio locked while it has many mappings to look for.
 * If it waited for the conversions then, and these for the faults, nobody would
 * ever come to an end: neither does this test then, nor can it be killed.
 */
TEST_F(poison, shared_page_contest)
{
	struct protmem_opts opts = { .caps = PROTMEM_CAPS };
	struct contest c = { .p = &self->p };
	pthread_t faults, conversions;
	void *map[NR_MAPS];
	int i, j, r;
	u64 pfn;

	if (protmem_nr_cpus() < 2)
		SKIP(return, "needs 2 CPUs");

	protmem_vm_create(&self->p, &opts);
	protmem_fill(&self->p, GPA, (NR + 1) * PAGE_SIZE, SEED);
	pthread_create(&faults, NULL, faulting, &c);
	pthread_create(&conversions, NULL, converting, &c);
	for (i = 0; i < 30; i++) {
		for (j = 0; j < NR_MAPS; j++) {
			map[j] = kvm_mmap(PAGE_SIZE, PROT_READ, MAP_SHARED,
					  self->p.gmem);
			ASSERT_EQ(0, madvise(map[j], PAGE_SIZE, MADV_POPULATE_READ));
		}
		pfn = pagemap_pfn(map[0]);
		r = inject(pfn);
		EXPECT_TRUE(!r || r == -EBUSY);
		EXPECT_TRUE(is_poisoned(pfn));
		EXPECT_EQ(BUS_MCEERR_AR, protmem_try_read(map[0], &(u64){0}));
		for (j = 0; j < NR_MAPS; j++)
			kvm_munmap(map[j], PAGE_SIZE);
		ASSERT_EQ(0, protmem_punch(self->p.gmem, 0, PAGE_SIZE));
	}
	WRITE_ONCE(c.stop, true);
	pthread_join(faults, NULL);
	pthread_join(conversions, NULL);
	EXPECT_LT(0, c.nr_conversions);
	TH_LOG("%lu faults, %lu conversions", c.nr_faults, c.nr_conversions);
	EXPECT_EQ(NR * PAGE_SIZE,
		  protmem_mismatch(protmem_hva(&self->p, GPA + PAGE_SIZE),
				   GPA + PAGE_SIZE, NR * PAGE_SIZE, SEED));
	protmem_vm_free(&self->p);
	EXPECT_EQ(0, pages_lost(self));
}

int main(int argc, char **argv)
{
	protmem_require();
	__TEST_REQUIRE(!access(HWPOISON "corrupt-pfn", W_OK),
		       "no " HWPOISON "corrupt-pfn: it needs root, debugfs and CONFIG_HWPOISON_INJECT");
	__TEST_REQUIRE(!access("/proc/kpageflags", R_OK),
		       "no /proc/kpageflags: it needs CONFIG_PROC_PAGE_MONITOR");
	return test_harness_run(argc, argv);
}
