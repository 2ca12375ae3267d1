// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM_RESET_PROTECTED_MEMORY: the one way to open the latch again costs all of
 * the guest's memory, and whatever a vCPU was in the middle of.
 */
#include <pthread.h>
#include <string.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/uio.h>

#include "kselftest_harness.h"
#include "kvm_syscalls.h"
#include "protmem.h"

#define ZERO		KVM_SET_MEMORY_ATTRIBUTES2_ZERO
#define PRIVATE		KVM_MEMORY_ATTRIBUTE_PRIVATE
#define GPA		PROTMEM_GPA
#define NPAGES		16ull
#define SIZE		(NPAGES * PAGE_SIZE)
#define SEED		0x4e5e7

PROTMEM_FIXTURE(reset);

static void check_pristine(struct protmem_vm *p)
{
	u64 attributes, run;

	TEST_ASSERT_EQ(protmem_get_attr(p->gmem, 0, p->size, &attributes, &run), 0);
	TEST_ASSERT_EQ(attributes, 0);
	TEST_ASSERT_EQ(run, p->size);
	TEST_ASSERT_EQ(vm_get_stat(p->vm, protmem_private_bytes), 0);
	TEST_ASSERT_EQ(protmem_first_nonzero(p->mem, p->size), p->size);
}

/* Mutant killed: reset that keeps pages, or state, or the latch. */
TEST_F(reset, contents_state_and_latch)
{
	struct protmem_vm *p = &self->p;

	ASSERT_EQ(0, protmem_make_private(p, GPA, SIZE));
	protmem_call(p, 0, guest_fill, GPA, SIZE, SEED);
	protmem_fill(p, GPA + SIZE, SIZE, SEED);
	EXPECT_EQ(SIZE, vm_get_stat(p->vm, protmem_private_bytes));
	EXPECT_EQ(-EPERM, protmem_delete_slot(p, PROTMEM_SLOT));

	ASSERT_EQ(0, protmem_reset(p));
	check_pristine(p);
	/* One empty block may be kept for the next life. */
	EXPECT_GE(SZ_2M, vm_get_stat(p->vm, protmem_block_bytes));

	/* The guest's loop is in ordinary memory and goes on. */
	EXPECT_EQ(0, protmem_call(p, 0, guest_check_zero, GPA, 2 * SIZE));

	/* The latch is open. */
	EXPECT_EQ(0, protmem_set_attr(p->gmem, 0, SIZE, PRIVATE, ZERO, NULL));
	EXPECT_EQ(0, protmem_set_attr(p->gmem, 0, SIZE, 0, ZERO, NULL));
	EXPECT_EQ(0, protmem_delete_slot(p, PROTMEM_SLOT));
	EXPECT_EQ(0, protmem_set_slot(p, PROTMEM_SLOT, GPA, p->size, 0));

	/* And can be shut again. */
	EXPECT_EQ(0, protmem_make_private(p, GPA, SIZE));
	EXPECT_EQ(-EPERM, protmem_delete_slot(p, PROTMEM_SLOT));
}

/* What the guest left must not come back with the pages of the next life. */
TEST_F(reset, private_memory_comes_back_empty)
{
	struct protmem_vm *p = &self->p;
	int i;

	for (i = 0; i < 20; i++) {
		ASSERT_EQ(0, protmem_make_private(p, GPA, p->size));
		ASSERT_EQ(0, protmem_call(p, 0, guest_check_zero, GPA, SIZE));
		protmem_call(p, 0, guest_fill, GPA, SIZE, SEED + i);
		ASSERT_EQ(0, protmem_call(p, 0, guest_check, GPA, SIZE, SEED + i));
		ASSERT_EQ(0, protmem_reset(p));
		check_pristine(p);
		protmem_vcpu_reset(p, 0);
	}
}

TEST(gives_back_to_the_direct_map)
{
	struct protmem_opts opts = { .caps = PROTMEM_CAPS, .size = SZ_16M };
	s64 before = protmem_off_direct_map();
	struct protmem_vm p;

	if (before < 0)
		SKIP(return, "no figure of what is off the direct map");

	protmem_vm_create(&p, &opts);
	ASSERT_EQ(0, protmem_make_private(&p, GPA, p.size));
	protmem_call(&p, 0, guest_fill, GPA, p.size, SEED);
	EXPECT_LE(before + (s64)p.size, protmem_off_direct_map());
	ASSERT_EQ(0, protmem_reset(&p));
	/* One empty block may be kept for the next life, ... */
	EXPECT_GE(before + SZ_2M, protmem_off_direct_map());
	/* ... but not beyond the last one. */
	protmem_vm_free(&p);
	EXPECT_EQ(before, protmem_wait_off_direct_map(before));
}

/* Of a VM that has used nothing, or has no slot, or has several. */
TEST_F(reset, nothing_to_do)
{
	struct protmem_vm *p = &self->p;

	EXPECT_EQ(0, protmem_reset(p));
	EXPECT_EQ(0, protmem_reset(p));
	EXPECT_EQ(0, protmem_delete_slot(p, PROTMEM_SLOT));
	EXPECT_EQ(0, protmem_reset(p));
}

/* Memory that is bound to no slot when the reset comes is wiped like all. */
TEST_F(reset, unbound_memory)
{
	struct protmem_vm *p = &self->p;

	ASSERT_EQ(0, protmem_set_attr(p->gmem, 0, SIZE, PRIVATE, ZERO, NULL));
	protmem_call(p, 0, guest_fill, GPA, SIZE, SEED);
	ASSERT_EQ(0, protmem_delete_slot(p, PROTMEM_SLOT));
	ASSERT_EQ(0, protmem_reset(p));
	ASSERT_EQ(0, protmem_set_slot(p, PROTMEM_SLOT, GPA, p->size, 0));
	check_pristine(p);
	EXPECT_EQ(0, protmem_call(p, 0, guest_check_zero, GPA, SIZE));
}

/* A page that the host has pinned at that time keeps its old contents. */
TEST_F(reset, pinned_shared_page)
{
	struct protmem_vm *p = &self->p;
	struct iovec iov = { .iov_base = p->mem, .iov_len = PAGE_SIZE };
	u64 buf[PAGE_SIZE / 8];
	int fds[2];

	protmem_fill(p, GPA, PAGE_SIZE, SEED);
	ASSERT_EQ(0, pipe(fds));
	ASSERT_EQ(PAGE_SIZE, vmsplice(fds[1], &iov, 1, 0));
	ASSERT_EQ(0, protmem_reset(p));
	check_pristine(p);
	protmem_call(p, 0, guest_fill, GPA, PAGE_SIZE, SEED + 1);
	ASSERT_EQ(PAGE_SIZE, read(fds[0], buf, sizeof(buf)));
	EXPECT_EQ(PAGE_SIZE, protmem_mismatch(buf, GPA, PAGE_SIZE, SEED));
	close(fds[0]);
	close(fds[1]);
}

static u64 guest_spin(u64 cmd_gva, u64 b, u64 c, u64 d)
{
	struct protmem_cmd *cmd = (void *)cmd_gva;

	while (!READ_ONCE(cmd->stop)) {
		WRITE_ONCE(cmd->count, cmd->count + 1);
		/* Reaches the host, without leaving the kernel. */
		kvm_hypercall(KVM_HC_VAPIC_POLL_IRQ, 0, 0, 0, 0);
	}
	return 0;
}

static void *run_thread(void *arg)
{
	protmem_run(arg, 0);
	return NULL;
}

TEST_F(reset, busy_while_a_vcpu_runs)
{
	struct protmem_vm *p = &self->p;
	pthread_t thread;

	ASSERT_EQ(0, protmem_make_private(p, GPA, SIZE));
	protmem_call(p, 0, guest_fill, GPA, SIZE, SEED);

	p->cmd[0]->stop = 0;
	p->cmd[0]->count = 0;
	protmem_prepare(p, 0, guest_spin, p->cmd_gva[0], 0, 0, 0);
	pthread_create(&thread, NULL, run_thread, p);
	while (!READ_ONCE(p->cmd[0]->count))
		usleep(1000);
	EXPECT_EQ(-EBUSY, protmem_reset(p));
	EXPECT_TRUE(protmem_is_private(p, GPA));
	WRITE_ONCE(p->cmd[0]->stop, 1);
	pthread_join(thread, NULL);

	/* Nothing has happened. */
	EXPECT_EQ(0, protmem_call(p, 0, guest_check, GPA, SIZE, SEED));
	EXPECT_EQ(0, protmem_reset(p));
	check_pristine(p);
}

static u64 guest_outs(u64 gpa, u64 n, u64 c, u64 d)
{
	asm volatile("cld; rep outsb"
		     : "+S"(gpa), "+c"(n) : "d"(PROTMEM_STRING_PORT) : "memory");
	return gpa;
}

static u64 guest_movs_from_mmio(u64 gpa, u64 n, u64 c, u64 d)
{
	u64 src = PROTMEM_MMIO_GPA;

	asm volatile("cld; rep movsb"
		     : "+D"(gpa), "+c"(n), "+S"(src) : : "memory");
	return gpa;
}

static u64 guest_movs_to_mmio(u64 gpa, u64 n, u64 c, u64 d)
{
	u64 dst = PROTMEM_MMIO_GPA;

	asm volatile("cld; rep movsb"
		     : "+S"(gpa), "+c"(n), "+D"(dst) : : "memory");
	return gpa;
}

/* Answer what the exit asks for with 0x5a. */
static void answer(struct kvm_vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;

	if (run->exit_reason == KVM_EXIT_IO &&
	    run->io.direction == KVM_EXIT_IO_IN)
		memset((u8 *)run + run->io.data_offset, 0x5a,
		       run->io.size * run->io.count);
	else if (run->exit_reason == KVM_EXIT_MMIO && !run->mmio.is_write)
		memset(run->mmio.data, 0x5a, sizeof(run->mmio.data));
}

/* Stop the vCPU in the middle of a string instruction. */
static void stop_in_string(struct protmem_vm *p, protmem_fn_t fn, int exits)
{
	struct kvm_vcpu *vcpu = p->vcpu[0];
	struct kvm_run *run = vcpu->run;
	int i;

	protmem_prepare(p, 0, fn, GPA, SIZE - 8, 0, 0);
	for (i = 0; i < exits; i++) {
		vcpu_run(vcpu);
		TEST_ASSERT(run->exit_reason == KVM_EXIT_IO ||
			    run->exit_reason == KVM_EXIT_MMIO,
			    "Unexpected exit %s",
			    exit_reason_str(run->exit_reason));
		TEST_ASSERT(run->exit_reason != KVM_EXIT_IO ||
			    run->io.port == PROTMEM_STRING_PORT,
			    "Unexpected port %x", run->io.port);
		answer(vcpu);
	}
}

static void test_mid_string(struct __test_metadata *_metadata,
			    struct protmem_vm *p, protmem_fn_t fn, int exits)
{
	struct kvm_vcpu *vcpu = p->vcpu[0];
	struct kvm_regs before, after;
	int r;

	/* 1. With the registers left alone, to see what KVM_RUN does to them. */
	ASSERT_EQ(0, protmem_make_private(p, GPA, SIZE));
	protmem_call(p, 0, guest_fill, GPA, SIZE, SEED);
	stop_in_string(p, fn, exits);
	vcpu_regs_get(vcpu, &before);
	ASSERT_EQ(0, protmem_reset(p));
	check_pristine(p);

	vcpu->run->immediate_exit = 1;
	r = __vcpu_run(vcpu);
	vcpu->run->immediate_exit = 0;
	EXPECT_EQ(-1, r);
	EXPECT_EQ(EINTR, errno);
	vcpu_regs_get(vcpu, &after);
	EXPECT_EQ(before.rip, after.rip);
	EXPECT_EQ(before.rcx, after.rcx);
	EXPECT_EQ(before.rsi, after.rsi);
	EXPECT_EQ(before.rdi, after.rdi);
	/* Mutant killed: a pending completion that survives writes its data. */
	check_pristine(p);

	/* 2. The way a VMM does it. */
	protmem_vcpu_reset(p, 0);
	EXPECT_EQ(77, protmem_call(p, 0, guest_nop, 77));
	check_pristine(p);

	/* 3. Registers first, memory next. */
	ASSERT_EQ(0, protmem_make_private(p, GPA, SIZE));
	protmem_call(p, 0, guest_fill, GPA, SIZE, SEED);
	stop_in_string(p, fn, exits);
	protmem_vcpu_reset(p, 0);
	ASSERT_EQ(0, protmem_reset(p));
	EXPECT_EQ(78, protmem_call(p, 0, guest_nop, 78));
	check_pristine(p);
}

TEST_F(reset, in_the_middle_of_outs)
{
	test_mid_string(_metadata, &self->p, guest_outs, 1);
	test_mid_string(_metadata, &self->p, guest_outs, 2);
}

TEST_F(reset, in_the_middle_of_ins)
{
	test_mid_string(_metadata, &self->p, guest_ins, 1);
	test_mid_string(_metadata, &self->p, guest_ins, 3);
}

TEST_F(reset, in_the_middle_of_movs_from_mmio)
{
	test_mid_string(_metadata, &self->p, guest_movs_from_mmio, 1);
	test_mid_string(_metadata, &self->p, guest_movs_from_mmio, 5);
}

TEST_F(reset, in_the_middle_of_movs_to_mmio)
{
	test_mid_string(_metadata, &self->p, guest_movs_to_mmio, 1);
	test_mid_string(_metadata, &self->p, guest_movs_to_mmio, 5);
}

/* The same instructions do run to their end when nobody interferes. */
TEST_F(reset, control_string_instructions_complete)
{
	static const protmem_fn_t fns[] = {
		guest_outs, guest_ins, guest_movs_from_mmio, guest_movs_to_mmio,
	};
	struct protmem_vm *p = &self->p;
	const u64 n = 64;
	int i;

	ASSERT_EQ(0, protmem_make_private(p, GPA, SIZE));
	for (i = 0; i < ARRAY_SIZE(fns); i++) {
		protmem_prepare(p, 0, fns[i], GPA, n, 0, 0);
		for (;;) {
			vcpu_run(p->vcpu[0]);
			if (protmem_done(p, 0))
				break;
			answer(p->vcpu[0]);
		}
		EXPECT_EQ(GPA + n, p->cmd[0]->ret);
	}
	EXPECT_EQ(0x5a5a5a5a5a5a5a5aull, protmem_call(p, 0, guest_read64, GPA));
}

/* A conversion that was interrupted is part of what is cleared. */
TEST_F(reset, in_the_middle_of_a_conversion)
{
	struct protmem_vm *p = &self->p;
	struct kvm_vcpu *vcpu = p->vcpu[0];
	int r;

	protmem_prepare(p, 0, guest_convert, GPA, p->size,
			KVM_MAP_GPA_RANGE_ENCRYPTED, 0);
	vcpu->run->immediate_exit = 1;
	r = __vcpu_run(vcpu);
	vcpu->run->immediate_exit = 0;
	EXPECT_EQ(-1, r);
	EXPECT_EQ(EINTR, errno);
	ASSERT_EQ(0, protmem_reset(p));
	check_pristine(p);
	protmem_vcpu_reset(p, 0);
	EXPECT_EQ(5, protmem_call(p, 0, guest_nop, 5));
	check_pristine(p);
}

TEST(not_for_ordinary_vms)
{
	struct protmem_opts opts = { .caps = PROTMEM_CAPS_ORDINARY };
	struct protmem_vm p;
	int r;

	protmem_vm_create(&p, &opts);
	protmem_fill(&p, GPA, PAGE_SIZE, SEED);
	r = protmem_reset(&p);
	EXPECT_TRUE(r == -ENOTTY || r == -EINVAL);
	EXPECT_EQ(PAGE_SIZE, protmem_mismatch(p.mem, GPA, PAGE_SIZE, SEED));
	protmem_vm_free(&p);
}

int main(int argc, char **argv)
{
	protmem_require();
	return test_harness_run(argc, argv);
}
