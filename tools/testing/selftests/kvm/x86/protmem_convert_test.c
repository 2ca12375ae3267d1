// SPDX-License-Identifier: GPL-2.0-only
/*
 * The guest shares and unshares its memory with KVM_HC_MAP_GPA_RANGE, which
 * KVM handles by itself for a VM with KVM_PROTMEM_GUEST_CONVERT.
 */
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/uio.h>

#include "kselftest_harness.h"
#include "kvm_syscalls.h"
#include "protmem.h"

#define ENCRYPTED	KVM_MAP_GPA_RANGE_ENCRYPTED
#define DECRYPTED	KVM_MAP_GPA_RANGE_DECRYPTED
#define GPA		PROTMEM_GPA
#define SEED		0xc0f1e

PROTMEM_FIXTURE(convert);

static u64 guest_hypercall(u64 nr, u64 a0, u64 a1, u64 a2)
{
	return kvm_hypercall(nr, a0, a1, a2, 0);
}

static s64 hc(struct protmem_vm *p, u64 gpa, u64 npages, u64 attrs)
{
	return protmem_call(p, 0, guest_hypercall, KVM_HC_MAP_GPA_RANGE, gpa,
			    npages, attrs);
}

static void check_refused(struct protmem_vm *p, u64 gpa)
{
	u64 val;

	TEST_ASSERT_EQ(protmem_try_read(protmem_hva(p, gpa), &val), BUS_ADRERR);
	TEST_ASSERT_EQ(protmem_try_write(protmem_hva(p, gpa), 1), BUS_ADRERR);
}

/*
 * Both directions, contents seen from both sides.  Everything is touched by
 * both sides before each step, so that there are mappings to get wrong.
 *
 * Mutants killed: the user fault is not refused; no copy.
 */
TEST_F(convert, contents_from_both_sides)
{
	struct protmem_vm *p = &self->p;
	const u64 size = 24 * PAGE_SIZE;
	int i;

	protmem_fill(p, GPA, size, SEED);
	for (i = 0; i < 10; i++) {
		/* The VMM wrote last. */
		ASSERT_EQ(0, protmem_call(p, 0, guest_check, GPA, size, SEED + i));
		ASSERT_EQ(0, protmem_make_private(p, GPA, size));
		ASSERT_EQ(0, protmem_call(p, 0, guest_check, GPA, size, SEED + i));
		protmem_call(p, 0, guest_fill, GPA, size, ~(SEED + i));
		check_refused(p, GPA);
		check_refused(p, GPA + size - PAGE_SIZE);
		ASSERT_EQ(0, protmem_call(p, 0, guest_check, GPA, size, ~(SEED + i)));

		/* The guest wrote last. */
		ASSERT_EQ(0, protmem_make_shared(p, GPA, size));
		ASSERT_EQ(size, protmem_mismatch(p->mem, GPA, size, ~(SEED + i)));
		ASSERT_EQ(0, protmem_call(p, 0, guest_check, GPA, size, ~(SEED + i)));
		protmem_fill(p, GPA, size, SEED + i + 1);
	}
}

/* Neighbours are not affected, whatever is converted between them. */
TEST_F(convert, neighbours)
{
	struct protmem_vm *p = &self->p;
	const u64 size = 16 * PAGE_SIZE;
	u64 i;

	ASSERT_EQ(0, protmem_make_private(p, GPA, size));
	protmem_call(p, 0, guest_fill, GPA, size, SEED);

	for (i = 0; i < 16; i += 2)
		ASSERT_EQ(0, protmem_make_shared(p, GPA + i * PAGE_SIZE, PAGE_SIZE));
	ASSERT_EQ(0, protmem_call(p, 0, guest_check, GPA, size, SEED));
	for (i = 0; i < 16; i++) {
		if (i & 1) {
			check_refused(p, GPA + i * PAGE_SIZE);
			continue;
		}
		ASSERT_EQ(PAGE_SIZE,
			  protmem_mismatch(p->mem + i * PAGE_SIZE,
					   GPA + i * PAGE_SIZE, PAGE_SIZE, SEED));
	}
	/* The rest in one go, over what is shared already. */
	ASSERT_EQ(0, protmem_make_shared(p, GPA, size));
	ASSERT_EQ(size, protmem_mismatch(p->mem, GPA, size, SEED));
	ASSERT_EQ(0, protmem_make_private(p, GPA, size));
	ASSERT_EQ(0, protmem_make_private(p, GPA, size));
	ASSERT_EQ(0, protmem_call(p, 0, guest_check, GPA, size, SEED));
}

/*
 * What the VMM didn't touch before, and nobody else either.
 *
 * Mutant killed: the guest's fault looks for a page and not at the state.
 */
TEST_F(convert, untouched)
{
	struct protmem_vm *p = &self->p;
	const u64 size = 16 * PAGE_SIZE;

	ASSERT_EQ(0, protmem_make_private(p, GPA, size));
	check_refused(p, GPA);
	ASSERT_EQ(0, protmem_call(p, 0, guest_check_zero, GPA, size));
	/* What the guest got are private pages, by the figures, too. */
	EXPECT_EQ(size, vm_get_stat(p->vm, protmem_private_bytes));
	EXPECT_EQ(0, vm_get_stat(p->vm, protmem_shared_bytes));
	ASSERT_EQ(0, protmem_make_shared(p, GPA, size));
	ASSERT_EQ(size, protmem_first_nonzero(p->mem, size));
	ASSERT_EQ(0, protmem_make_shared(p, GPA + size, size));
	ASSERT_EQ(size, protmem_first_nonzero(p->mem + size, size));
}

/*
 * The private pages that come free when the guest shares are used again for
 * other pages of it.  Mutant killed: no scrub of what was left.
 */
TEST_F(convert, reused_pages_are_empty)
{
	struct protmem_vm *p = &self->p;
	const u64 half = p->size / 2;
	int i;

	for (i = 0; i < 4; i++) {
		ASSERT_EQ(0, protmem_make_private(p, GPA, half));
		protmem_call(p, 0, guest_fill, GPA, half, SEED);
		ASSERT_EQ(0, protmem_make_shared(p, GPA, half));
		ASSERT_EQ(half, protmem_mismatch(p->mem, GPA, half, SEED));

		ASSERT_EQ(0, protmem_make_private(p, GPA + half, half));
		ASSERT_EQ(0, protmem_call(p, 0, guest_check_zero, GPA + half, half));
		ASSERT_EQ(0, protmem_make_shared(p, GPA + half, half));
		ASSERT_EQ(0, protmem_punch(p->gmem, 0, p->size));
	}
}

TEST_F(convert, results)
{
	struct protmem_vm *p = &self->p;
	const u64 npages = p->size / PAGE_SIZE, end = GPA + p->size;
	const struct { const char *what; u64 gpa, n, attrs; s64 ret; } t[] = {
		{ "misaligned", GPA + 1, 1, ENCRYPTED, -KVM_EINVAL },
		{ "misaligned, share", GPA + 8, 1, DECRYPTED, -KVM_EINVAL },
		{ "no pages", GPA, 0, ENCRYPTED, -KVM_EINVAL },
		{ "no pages, share", GPA, 0, DECRYPTED, -KVM_EINVAL },
		{ "wraps", GPA, -1ull, ENCRYPTED, -KVM_EINVAL },
		{ "wraps in bytes", GPA, 1ull << 52, ENCRYPTED, -KVM_EINVAL },
		{ "wraps, share", GPA, -1ull, DECRYPTED, -KVM_EINVAL },
		{ "past the end", GPA, npages + 1, ENCRYPTED, -KVM_EINVAL },
		{ "last page and one more", end - PAGE_SIZE, 2, ENCRYPTED,
		  -KVM_EINVAL },
		{ "no slot", PROTMEM_MMIO_GPA, 1, ENCRYPTED, -KVM_EINVAL },
		{ "no slot, above", end, 1, ENCRYPTED, -KVM_EINVAL },
		{ "no slot and a slot", GPA - PAGE_SIZE, 2, ENCRYPTED,
		  -KVM_EINVAL },
		{ "ordinary", 0x3000, 1, ENCRYPTED, -KVM_EINVAL },
		{ "beyond any address", 1ull << 56, 1, ENCRYPTED, -KVM_EINVAL },
		{ "ordinary, share", 0x3000, 1, DECRYPTED, 0 },
		{ "share", GPA, 4, DECRYPTED, 0 },
		{ "share all", GPA, npages, DECRYPTED, 0 },
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(t); i++) {
		EXPECT_EQ(t[i].ret, hc(p, t[i].gpa, t[i].n, t[i].attrs)) {
			TH_LOG("%s", t[i].what);
		}
	}

	/* All 64 bits of the number count in 64-bit mode. */
	EXPECT_EQ(-KVM_ENOSYS,
		  (s64)protmem_call(p, 0, guest_hypercall,
				    BIT_ULL(32) | KVM_HC_MAP_GPA_RANGE, GPA, 1,
				    ENCRYPTED));
	EXPECT_FALSE(protmem_is_private(p, GPA));

	/* The last one has shared whatever a failure left behind ... */
	EXPECT_EQ(0, protmem_delete_slot(p, PROTMEM_SLOT));
	EXPECT_EQ(0, protmem_set_slot(p, PROTMEM_SLOT, GPA, p->size, 0));

	/* ... and all can begin again.  The page size is only a hint. */
	EXPECT_EQ(0, hc(p, GPA, 1, ENCRYPTED | KVM_MAP_GPA_RANGE_PAGE_SZ_2M));
	EXPECT_TRUE(protmem_is_private(p, GPA));
	EXPECT_FALSE(protmem_is_private(p, GPA + PAGE_SIZE));
	EXPECT_EQ(0, hc(p, GPA + PAGE_SIZE, 1,
			ENCRYPTED | KVM_MAP_GPA_RANGE_PAGE_SZ_1G));
	EXPECT_EQ(0, hc(p, end - PAGE_SIZE, 1, ENCRYPTED));
	EXPECT_TRUE(protmem_is_private(p, end - PAGE_SIZE));
}

/* Two slots that touch are one range for the guest. */
TEST_F(convert, across_slots)
{
	struct protmem_vm *p = &self->p;
	u64 gpa = GPA + p->size;
	int fd = vm_create_guest_memfd(p->vm, SZ_1M, PROTMEM_GMEM_FLAGS);
	u8 *mem = kvm_mmap(SZ_1M, PROT_READ | PROT_WRITE, MAP_SHARED, fd);

	vm_set_user_memory_region2(p->vm, 11, PROTMEM_FLAGS, gpa, SZ_1M, mem,
				   fd, 0);
	virt_map(p->vm, gpa, gpa, SZ_1M / PAGE_SIZE);
	ASSERT_EQ(0, protmem_make_private(p, gpa - 4 * PAGE_SIZE, 8 * PAGE_SIZE));
	protmem_call(p, 0, guest_fill, gpa - 4 * PAGE_SIZE, 8 * PAGE_SIZE, SEED);
	check_refused(p, gpa - PAGE_SIZE);
	ASSERT_EQ(0, protmem_make_shared(p, gpa - 4 * PAGE_SIZE, 8 * PAGE_SIZE));
	EXPECT_EQ(4 * PAGE_SIZE, protmem_mismatch(mem, gpa, 4 * PAGE_SIZE, SEED));
	kvm_munmap(mem, SZ_1M);
	close(fd);
}

TEST(not_enabled)
{
	struct protmem_opts opts = { .caps = PROTMEM_CAPS_NO_CONVERT };
	struct protmem_vm p;

	protmem_vm_create(&p, &opts);
	EXPECT_EQ(-KVM_ENOSYS, hc(&p, GPA, 1, ENCRYPTED));
	EXPECT_EQ(-KVM_ENOSYS, hc(&p, GPA, 1, DECRYPTED));
	EXPECT_FALSE(protmem_is_private(&p, GPA));
	protmem_vm_free(&p);
}

static void make_user(struct kvm_vm *vm, u64 table, int level)
{
	u64 *pte = addr_gpa2hva(vm, table);
	int i;

	for (i = 0; i < 512; i++) {
		if (!(pte[i] & PTE_PRESENT_MASK(&vm->mmu)))
			continue;
		pte[i] |= PTE_USER_MASK(&vm->mmu);
		if (level > PG_LEVEL_4K && !(pte[i] & PTE_HUGE_MASK(&vm->mmu)))
			make_user(vm, pte[i] & PHYSICAL_PAGE_MASK, level - 1);
	}
}

/* The test guests have neither SMEP nor SMAP. */
static void make_user_accessible(struct kvm_vm *vm)
{
	make_user(vm, vm->mmu.pgd, vm->mmu.pgtable_levels);
}

/* Guest user space has no business here. */
static u64 guest_cpl3(u64 cmd_gva, u64 b, u64 c, u64 d)
{
	struct protmem_cmd *cmd = (void *)cmd_gva;

	for (;;) {
		cmd->ret = __kvm_hypercall_map_gpa_range(GPA, PAGE_SIZE,
							 cmd->arg[1]);
		/* IOPL is 3. */
		asm volatile("outb %%al, %%dx"
			     : : "a"(0), "d"(PROTMEM_DONE_PORT) : "memory");
	}
	return 0;
}

TEST_F(convert, user_mode)
{
	struct protmem_vm *p = &self->p;
	struct kvm_sregs sregs;
	struct kvm_regs regs;

	make_user_accessible(p->vm);
	vcpu_sregs_get(p->vcpu[0], &sregs);
	sregs.cs.dpl = 3;
	sregs.cs.selector |= 3;
	sregs.ss.dpl = 3;
	sregs.ss.selector |= 3;
	vcpu_sregs_set(p->vcpu[0], &sregs);
	vcpu_regs_get(p->vcpu[0], &regs);
	regs.rip = (u64)guest_cpl3;
	regs.rdi = p->cmd_gva[0];
	regs.rflags |= 3 << 12;
	vcpu_regs_set(p->vcpu[0], &regs);

	p->cmd[0]->arg[1] = ENCRYPTED;
	EXPECT_EQ(-KVM_EPERM, (s64)protmem_run(p, 0));
	EXPECT_FALSE(protmem_is_private(p, GPA));
	p->cmd[0]->arg[1] = DECRYPTED;
	EXPECT_EQ(-KVM_EPERM, (s64)protmem_run(p, 0));
}

TEST(notification)
{
	struct protmem_opts opts = {
		.caps = PROTMEM_CAPS,
		.exit_flags = KVM_PROTMEM_EXIT_CONVERT,
	};
	struct protmem_vm p;
	struct kvm_run *run;
	struct kvm_regs regs;
	u64 tail;

	protmem_vm_create(&p, &opts);
	run = p.vcpu[0]->run;

	/* Told afterwards, with everything done. */
	protmem_prepare(&p, 0, guest_convert, GPA + 2 * PAGE_SIZE, 4 * PAGE_SIZE,
			ENCRYPTED, 0);
	vcpu_run(p.vcpu[0]);
	ASSERT_EQ(KVM_EXIT_PROTECTED_MEMORY, run->exit_reason);
	EXPECT_EQ(GPA + 2 * PAGE_SIZE, run->protected_memory.gpa);
	EXPECT_EQ(4 * PAGE_SIZE, run->protected_memory.size);
	EXPECT_EQ(KVM_MEMORY_ATTRIBUTE_PRIVATE, run->protected_memory.attributes);
	EXPECT_EQ(0, run->protected_memory.flags);
	EXPECT_TRUE(protmem_is_private(&p, GPA + 2 * PAGE_SIZE));
	vcpu_regs_get(p.vcpu[0], &regs);
	EXPECT_EQ(0, regs.rax);

	/* Nothing that the VMM writes there reaches the guest. */
	memset(run->padding, 0xff, sizeof(run->padding));
	EXPECT_EQ(0, protmem_run(&p, 0));
	EXPECT_EQ(0, p.nr_convert_exits);

	EXPECT_EQ(0, protmem_make_shared(&p, GPA + 3 * PAGE_SIZE, PAGE_SIZE));
	EXPECT_EQ(1, p.nr_convert_exits);
	EXPECT_EQ(GPA + 3 * PAGE_SIZE, p.convert_gpa);
	EXPECT_EQ(PAGE_SIZE, p.convert_size);
	EXPECT_EQ(0, p.convert_attributes);
	EXPECT_EQ(0, p.convert_flags);

	/* A failure is between KVM and the guest ... */
	EXPECT_EQ(-KVM_EINVAL, (s64)protmem_make_private(&p, GPA + 1, PAGE_SIZE));
	EXPECT_EQ(1, p.nr_convert_exits);

	/* ... but for the pages that were converted before it. */
	tail = GPA + p.size - 2 * PAGE_SIZE;
	EXPECT_EQ(-KVM_EINVAL, (s64)protmem_make_private(&p, tail, 3 * PAGE_SIZE));
	EXPECT_EQ(2, p.nr_convert_exits);
	EXPECT_EQ(tail, p.convert_gpa);
	EXPECT_EQ(2 * PAGE_SIZE, p.convert_size);
	EXPECT_EQ(KVM_MEMORY_ATTRIBUTE_PRIVATE, p.convert_attributes);
	EXPECT_TRUE(protmem_is_private(&p, tail));
	EXPECT_TRUE(protmem_is_private(&p, tail + PAGE_SIZE));
	protmem_vm_free(&p);
}

TEST_F(convert, no_notification_unless_asked)
{
	struct protmem_vm *p = &self->p;

	EXPECT_EQ(0, protmem_make_private(p, GPA, SZ_1M));
	EXPECT_EQ(0, protmem_make_shared(p, GPA, SZ_1M));
	EXPECT_EQ(0, p->nr_convert_exits);
}

/* KVM_CAP_EXIT_HYPERCALL must not let the VMM answer in KVM's place. */
TEST_F(convert, vmm_cannot_take_the_hypercall_over)
{
	struct protmem_vm *p = &self->p;

	/* Refused or accepted, it makes no difference. */
	__vm_enable_cap(p->vm, KVM_CAP_EXIT_HYPERCALL, BIT(KVM_HC_MAP_GPA_RANGE));
	EXPECT_EQ(0, protmem_make_private(p, GPA, PAGE_SIZE));
	EXPECT_TRUE(protmem_is_private(p, GPA));
	EXPECT_EQ(0, protmem_make_shared(p, GPA, PAGE_SIZE));
	EXPECT_FALSE(protmem_is_private(p, GPA));
}

static s64 now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return timespec_to_ns(ts);
}

/* Untouched memory costs the same whatever its size. */
TEST(large_untouched)
{
	struct protmem_opts opts = { .caps = PROTMEM_CAPS, .size = SZ_1G };
	struct protmem_vm p;
	s64 t;

	protmem_vm_create(&p, &opts);
	t = now_ns();
	EXPECT_EQ(0, protmem_make_private(&p, GPA, SZ_64M));
	EXPECT_EQ(0, protmem_make_shared(&p, GPA, SZ_64M));
	EXPECT_EQ(0, protmem_make_private(&p, GPA, SZ_1G));
	EXPECT_EQ(0, protmem_make_shared(&p, GPA, SZ_1G));
	EXPECT_EQ(0, protmem_make_private(&p, GPA, SZ_1G));
	t = now_ns() - t;
	EXPECT_EQ(0, vm_get_stat(p.vm, protmem_private_bytes));
	EXPECT_GT(2000000000ll, t);
	TH_LOG("%ld us", t / 1000);
	EXPECT_EQ(0, protmem_call(&p, 0, guest_check_zero,
				  GPA + SZ_512M - PAGE_SIZE, 2 * PAGE_SIZE));
	protmem_vm_free(&p);
}

static void on_alarm(int sig)
{
}

/*
 * Signals in the middle of a large range: KVM_RUN comes back with EINTR, and
 * going on completes it without the guest noticing.
 */
TEST(signals)
{
	struct protmem_opts opts = { .caps = PROTMEM_CAPS, .size = SZ_32M };
	struct sigaction sa = { .sa_handler = on_alarm };
	struct itimerval it = {
		.it_interval.tv_usec = 2000,
		.it_value.tv_usec = 2000,
	};
	int round, eintr = 0, partial = 0, r;
	u64 size = SZ_32M, attributes, run;
	struct protmem_vm p;

	protmem_vm_create(&p, &opts);
	protmem_fill(&p, GPA, size, SEED);
	sigaction(SIGALRM, &sa, NULL);

	for (round = 0; round < 4; round++) {
		protmem_prepare(&p, 0, guest_convert, GPA, size,
				round & 1 ? DECRYPTED : ENCRYPTED, 0);
		setitimer(ITIMER_REAL, &it, NULL);
		for (;;) {
			r = __vcpu_run(p.vcpu[0]);
			if (!r)
				break;
			ASSERT_EQ(EINTR, errno);
			eintr++;
			ASSERT_EQ(0, protmem_get_attr(p.gmem, 0, size,
						      &attributes, &run));
			if (run != size)
				partial++;
		}
		setitimer(ITIMER_REAL, &(struct itimerval){}, NULL);
		ASSERT_TRUE(protmem_done(&p, 0));
		ASSERT_EQ(0, p.cmd[0]->ret);
		ASSERT_EQ(0, protmem_get_attr(p.gmem, 0, size, &attributes, &run));
		ASSERT_EQ(size, run);
		ASSERT_EQ(round & 1 ? 0 : KVM_MEMORY_ATTRIBUTE_PRIVATE, attributes);
	}
	EXPECT_EQ(size, protmem_mismatch(p.mem, GPA, size, SEED));
	TH_LOG("%d interruptions, %d of them with a part done", eintr, partial);
	EXPECT_LT(0, eintr);
	protmem_vm_free(&p);
}

static void pre_fault(struct protmem_vm *p, u64 gpa, u64 size)
{
	struct kvm_pre_fault_memory range = { .gpa = gpa, .size = size };

	while (range.size)
		vcpu_ioctl(p->vcpu[0], KVM_PRE_FAULT_MEMORY, &range);
}

/*
 * The VMM pins a shared page in a pipe, the guest unshares it and puts a secret
 * there.  Whoever reads the pipe gets the page as it was.
 *
 * Mutant killed: remapping the page instead of exchanging it.
 */
static void pin_by_vmsplice(struct __test_metadata *_metadata,
			    struct protmem_vm *p, bool prefault)
{
	const int n = 8;
	struct iovec iov = { .iov_base = p->mem, .iov_len = n * PAGE_SIZE };
	u8 *buf = malloc(n * PAGE_SIZE);
	int fds[2], round;

	ASSERT_EQ(0, pipe(fds));
	for (round = 0; round < 5; round++) {
		protmem_fill(p, GPA, n * PAGE_SIZE, SEED + round);
		/* The guest has it mapped, too. */
		if (prefault)
			pre_fault(p, GPA, n * PAGE_SIZE);
		else
			ASSERT_EQ(0, protmem_call(p, 0, guest_check, GPA,
						  n * PAGE_SIZE, SEED + round));
		ASSERT_EQ(n * PAGE_SIZE, vmsplice(fds[1], &iov, 1, 0));
		ASSERT_EQ(0, protmem_make_private(p, GPA, n * PAGE_SIZE));
		ASSERT_EQ(0, protmem_call(p, 0, guest_check, GPA, n * PAGE_SIZE,
					  SEED + round));
		protmem_call(p, 0, guest_fill, GPA, n * PAGE_SIZE, ~SEED);
		ASSERT_EQ(n * PAGE_SIZE, read(fds[0], buf, n * PAGE_SIZE));
		ASSERT_EQ(n * PAGE_SIZE,
			  protmem_mismatch(buf, GPA, n * PAGE_SIZE, SEED + round));
		ASSERT_EQ(0, protmem_call(p, 0, guest_check, GPA, n * PAGE_SIZE,
					  ~SEED));
		ASSERT_EQ(0, protmem_make_shared(p, GPA, n * PAGE_SIZE));
		ASSERT_EQ(n * PAGE_SIZE, protmem_mismatch(p->mem, GPA,
							  n * PAGE_SIZE, ~SEED));
	}
	free(buf);
}

TEST_F(convert, pinned_by_vmsplice)
{
	pin_by_vmsplice(_metadata, &self->p, false);
}

/*
 * Once more with a slot whose userspace_addr leads elsewhere, so that zapping
 * the VMM's mapping does not zap the second stage as well.
 *
 * Mutant killed: the second stage is not zapped, and still maps the old page.
 */
TEST(second_stage_is_zapped)
{
	struct protmem_opts opts = { .caps = PROTMEM_CAPS, .decoy = true };
	struct protmem_vm p;

	protmem_vm_create(&p, &opts);
	pin_by_vmsplice(_metadata, &p, false);
	protmem_vm_free(&p);
}

/*
 * The same with entries that no guest has used yet.  Where EPT has no accessed
 * bits they grant neither read, write nor execute, but they lead to a page.
 *
 * Mutant killed: such entries are not taken for present when zapping.
 */
TEST(prefaulted_is_zapped)
{
	struct protmem_opts opts = { .caps = PROTMEM_CAPS, .decoy = true };
	const u64 size = 8 * PAGE_SIZE;
	struct protmem_vm p;
	int round;

	protmem_vm_create(&p, &opts);
	pin_by_vmsplice(_metadata, &p, true);

	/* From private to shared: the guest reads what the VMM has written. */
	for (round = 0; round < 5; round++) {
		ASSERT_EQ(0, protmem_make_private(&p, GPA, size));
		pre_fault(&p, GPA, size);
		ASSERT_EQ(0, protmem_make_shared(&p, GPA, size));
		protmem_fill(&p, GPA, size, SEED + round);
		ASSERT_EQ(0, protmem_call(&p, 0, guest_check, GPA, size,
					  SEED + round));
	}
	protmem_vm_free(&p);
}

/* The same with a write through the pin: what a splice moves is the old page. */
TEST_F(convert, pinned_across_many_conversions)
{
	struct protmem_vm *p = &self->p;
	struct iovec iov = { .iov_base = p->mem, .iov_len = PAGE_SIZE };
	u8 *buf = malloc(PAGE_SIZE);
	int fds[2], i;

	ASSERT_EQ(0, pipe(fds));
	for (i = 0; i < 8; i++) {
		protmem_fill(p, GPA, PAGE_SIZE, SEED + i);
		ASSERT_EQ(PAGE_SIZE, vmsplice(fds[1], &iov, 1, 0));
		ASSERT_EQ(0, protmem_make_private(p, GPA, PAGE_SIZE));
		protmem_call(p, 0, guest_fill, GPA, PAGE_SIZE, ~SEED);
		/* Share something harmless only. */
		protmem_call(p, 0, guest_fill, GPA, PAGE_SIZE, 0);
		ASSERT_EQ(0, protmem_make_shared(p, GPA, PAGE_SIZE));
	}
	for (i = 0; i < 8; i++) {
		ASSERT_EQ(PAGE_SIZE, read(fds[0], buf, PAGE_SIZE));
		ASSERT_EQ(PAGE_SIZE, protmem_mismatch(buf, GPA, PAGE_SIZE, SEED + i));
	}
	free(buf);
}

/*
 * A write from a shared page waits for room in a pipe; the page turns private
 * in the meantime.  It may fail, or deliver what was shared.
 */
TEST_F(convert, io_uring_write_in_flight)
{
	struct protmem_vm *p = &self->p;
	u8 *buf = malloc(PAGE_SIZE);
	int fds[2], r, i, size;
	struct protmem_ring ring;

	r = protmem_ring_open(&ring);
	if (r)
		SKIP(return, "io_uring_setup: %s", strerror(-r));

	ASSERT_EQ(0, pipe(fds));
	size = fcntl(fds[1], F_SETPIPE_SZ, PAGE_SIZE);
	ASSERT_LT(0, size);
	memset(buf, 0, PAGE_SIZE);
	for (i = 0; i < size / PAGE_SIZE; i++)
		ASSERT_EQ(PAGE_SIZE, write(fds[1], buf, PAGE_SIZE));

	protmem_fill(p, GPA, PAGE_SIZE, SEED);
	ASSERT_EQ(1, protmem_ring_submit(&ring, IORING_OP_WRITE, fds[1],
					 p->mem, PAGE_SIZE, -1));
	ASSERT_EQ(0, protmem_make_private(p, GPA, PAGE_SIZE));
	protmem_call(p, 0, guest_fill, GPA, PAGE_SIZE, ~SEED);

	for (i = 0; i < size / PAGE_SIZE; i++)
		ASSERT_EQ(PAGE_SIZE, read(fds[0], buf, PAGE_SIZE));
	r = protmem_ring_wait(&ring);
	TH_LOG("result %d", r);
	if (r < 0) {
		EXPECT_EQ(-EFAULT, r);
	} else {
		ASSERT_EQ(r, read(fds[0], buf, r));
		EXPECT_EQ(r, protmem_mismatch(buf, GPA, r, SEED));
	}
	EXPECT_EQ(0, protmem_call(p, 0, guest_check, GPA, PAGE_SIZE, ~SEED));
	protmem_ring_close(&ring);
	free(buf);
}

/* A read into such a page must not change what the guest has there. */
TEST_F(convert, io_uring_read_in_flight)
{
	struct protmem_vm *p = &self->p;
	struct protmem_ring ring;
	int fds[2], r;

	r = protmem_ring_open(&ring);
	if (r)
		SKIP(return, "io_uring_setup: %s", strerror(-r));

	ASSERT_EQ(0, pipe(fds));
	protmem_fill(p, GPA, PAGE_SIZE, SEED);
	ASSERT_EQ(1, protmem_ring_submit(&ring, IORING_OP_READ, fds[0], p->mem, 64,
					 -1));
	ASSERT_EQ(0, protmem_make_private(p, GPA, PAGE_SIZE));
	ASSERT_EQ(0, protmem_call(p, 0, guest_check, GPA, PAGE_SIZE, SEED));
	protmem_call(p, 0, guest_fill, GPA, PAGE_SIZE, ~SEED);
	ASSERT_EQ(64, write(fds[1], &ring.params, 64));
	r = protmem_ring_wait(&ring);
	TH_LOG("result %d", r);
	/* A pin would have let it go to the old page, which is as good. */
	EXPECT_TRUE(r == -EFAULT || r == 64);
	EXPECT_EQ(0, protmem_call(p, 0, guest_check, GPA, PAGE_SIZE, ~SEED));
	protmem_ring_close(&ring);
}

/*
 * A second vCPU writes a counter all the time while the first moves the page
 * back and forth: no write may be lost.
 *
 * Mutant killed: the second stage is zapped after the copy.
 */
static u64 guest_counter(u64 cmd_gva, u64 gpa, u64 c, u64 d)
{
	struct protmem_cmd *cmd = (void *)cmd_gva;
	u64 i = 0, val = 0;

	WRITE_ONCE(*(u64 *)gpa, 0);
	while (!READ_ONCE(cmd->stop)) {
		/* Read and write are apart, and nobody else writes. */
		if (READ_ONCE(*(u64 *)gpa) != val)
			return 1;
		/* Now and then all of the page is zeroes, which is shared in another way. */
		val = ++i & 1 ? i : 0;
		WRITE_ONCE(*(u64 *)gpa, val);
		WRITE_ONCE(cmd->count, i);
	}
	return READ_ONCE(*(u64 *)gpa) == val ? 0 : 2;
}

static void *counter_thread(void *arg)
{
	protmem_run(arg, 1);
	return NULL;
}

TEST(no_write_is_lost)
{
	struct protmem_opts opts = { .caps = PROTMEM_CAPS, .nr_vcpus = 2 };
	u64 iterations = protmem_test_iterations(2000), i;
	struct protmem_vm p;
	pthread_t thread;

	if (protmem_nr_cpus() < 2)
		SKIP(return, "needs 2 CPUs");

	protmem_vm_create(&p, &opts);
	p.cmd[1]->stop = 0;
	p.cmd[1]->count = 0;
	protmem_prepare(&p, 1, guest_counter, p.cmd_gva[1], GPA + PAGE_SIZE, 0, 0);
	pthread_create(&thread, NULL, counter_thread, &p);
	while (!READ_ONCE(p.cmd[1]->count))
		sched_yield();
	for (i = 0; i < iterations; i++) {
		/* Vary how much is copied around it. */
		u64 n = 1 + i % 3;

		ASSERT_EQ(0, protmem_make_private(&p, GPA, n * PAGE_SIZE));
		ASSERT_EQ(0, protmem_make_shared(&p, GPA, n * PAGE_SIZE));
	}
	WRITE_ONCE(p.cmd[1]->stop, 1);
	pthread_join(thread, NULL);
	EXPECT_EQ(0, p.cmd[1]->ret);
	TH_LOG("%lu conversions, %lu writes", 2 * i, p.cmd[1]->count);
	protmem_vm_free(&p);
}

/*
 * The VMM writes a counter all the time.  What it has written before the page
 * turned private is there, after that its writes fail: none is lost.
 *
 * Mutant killed: the VMM's entry is not zapped before the copy.
 */
struct writer {
	struct protmem_vm *p;
	u64 done, stop;
};

static void *writer_thread(void *arg)
{
	struct writer *w = arg;
	u64 i = 1;

	while (!READ_ONCE(w->stop)) {
		if (!protmem_try_write(w->p->mem, i))
			WRITE_ONCE(w->done, i++);
	}
	return NULL;
}

TEST_F(convert, no_write_of_the_vmm_is_lost)
{
	u64 iterations = protmem_test_iterations(500), i, done = 0;
	/* The more are copied at once, the longer is the time for a write. */
	const u64 size = 16 * PAGE_SIZE;
	struct protmem_vm *p = &self->p;
	struct writer w = { p };
	pthread_t thread;

	if (protmem_nr_cpus() < 2)
		SKIP(return, "needs 2 CPUs");

	protmem_fill(p, GPA, size, SEED);
	pthread_create(&thread, NULL, writer_thread, &w);
	for (i = 0; i < iterations; i++) {
		while (READ_ONCE(w.done) == done)
			sched_yield();
		ASSERT_EQ(0, protmem_make_private(p, GPA, size));
		done = READ_ONCE(w.done);
		ASSERT_LE(done, protmem_call(p, 0, guest_read64, GPA));
		ASSERT_EQ(0, protmem_make_shared(p, GPA, size));
	}
	WRITE_ONCE(w.stop, 1);
	pthread_join(thread, NULL);
	TH_LOG("%lu conversions, %lu writes", 2 * i, w.done);
}

/*
 * The VMM reads without pause.  From the moment the guest knows that the page is
 * private, no read of the VMM may succeed.
 *
 * Mutants killed: no recheck of the state in the fault path; no zap; a VMM that
 * faults a page in behind the conversion's back.
 */
struct reader {
	struct protmem_vm *p;
	u64 ok, refused, leaks, stop;
};

static void *reader_thread(void *arg)
{
	struct reader *r = arg;
	u64 val;

	while (!READ_ONCE(r->stop)) {
		if (protmem_try_read(r->p->mem, &val)) {
			r->refused++;
			continue;
		}
		r->ok++;
		/* Bit 63 is in secrets only. */
		if (val >> 63)
			r->leaks++;
	}
	return NULL;
}

static u64 guest_flip(u64 gpa, u64 iterations, u64 c, u64 d)
{
	u64 i;

	for (i = 0; i < iterations; i++) {
		if (__kvm_hypercall_map_gpa_range(gpa, PAGE_SIZE, ENCRYPTED))
			return 1 + 4 * i;
		WRITE_ONCE(*(u64 *)gpa, i | BIT_ULL(63));
		if (READ_ONCE(*(u64 *)gpa) != (i | BIT_ULL(63)))
			return 2 + 4 * i;
		WRITE_ONCE(*(u64 *)gpa, i);
		if (__kvm_hypercall_map_gpa_range(gpa, PAGE_SIZE, DECRYPTED))
			return 3 + 4 * i;
		if (READ_ONCE(*(u64 *)gpa) != i)
			return 4 + 4 * i;
	}
	return 0;
}

TEST_F(convert, reader_never_sees_private_contents)
{
	u64 iterations = protmem_test_iterations(3000);
	struct protmem_vm *p = &self->p;
	struct reader r[2] = { { p }, { p } };
	pthread_t thread[2];
	int i;

	if (protmem_nr_cpus() < 2)
		SKIP(return, "needs 2 CPUs");

	for (i = 0; i < 2; i++)
		pthread_create(&thread[i], NULL, reader_thread, &r[i]);
	EXPECT_EQ(0, protmem_call(p, 0, guest_flip, GPA, iterations));
	for (i = 0; i < 2; i++) {
		WRITE_ONCE(r[i].stop, 1);
		pthread_join(thread[i], NULL);
		EXPECT_EQ(0, r[i].leaks);
	}
	TH_LOG("%lu iterations: %lu reads, %lu refused", iterations,
	       r[0].ok + r[1].ok, r[0].refused + r[1].refused);
	EXPECT_LT(0, r[0].refused + r[1].refused);
}

int main(int argc, char **argv)
{
	protmem_require();
	return test_harness_run(argc, argv);
}
