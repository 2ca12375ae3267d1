// SPDX-License-Identifier: GPL-2.0-only
/*
 * The latch of protected memory: once the guest has made a page private, its
 * VMM may no longer share, drop, unbind or move private pages, and nothing else
 * becomes more difficult.
 */
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>

#include <linux/falloc.h>

#include "kselftest_harness.h"
#include "kvm_syscalls.h"
#include "protmem.h"

#define ZERO		KVM_SET_MEMORY_ATTRIBUTES2_ZERO
#define PRESERVE	KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE
#define PRIVATE		KVM_MEMORY_ATTRIBUTE_PRIVATE

/* Where the guest's private pages are in these tests. */
#define PRIV_PAGE	3
#define PRIV_OFF	(PRIV_PAGE * PAGE_SIZE)
#define PRIV_GPA	(PROTMEM_GPA + PRIV_OFF)
#define PRIV_SIZE	(2 * PAGE_SIZE)
#define SEED		0x1a7c4

PROTMEM_FIXTURE(latch);

static void do_latch(struct protmem_vm *p)
{
	TEST_ASSERT_EQ(protmem_make_private(p, PRIV_GPA, PRIV_SIZE), 0);
	protmem_call(p, 0, guest_fill, PRIV_GPA, PRIV_SIZE, SEED);
}

/* The guest's memory is as it left it, and private. */
static void check_intact(struct protmem_vm *p)
{
	u64 bad = protmem_call(p, 0, guest_check, PRIV_GPA, PRIV_SIZE, SEED);
	u64 val;

	TEST_ASSERT(!bad, "Private memory changed at 0x%lx", bad);
	TEST_ASSERT(protmem_is_private(p, PRIV_GPA) &&
		    protmem_is_private(p, PRIV_GPA + PAGE_SIZE),
		    "The state changed");
	TEST_ASSERT_EQ(protmem_try_read(protmem_hva(p, PRIV_GPA), &val),
		       BUS_ADRERR);
}

/* Before the latch the memory is the VMM's to arrange. */
TEST_F(latch, open_vmm_may_do_everything)
{
	struct protmem_vm *p = &self->p;

	/* Setting private from outside doesn't latch ... */
	ASSERT_EQ(0, protmem_set_attr(p->gmem, PRIV_OFF, PRIV_SIZE, PRIVATE,
				      PRESERVE, NULL));
	protmem_call(p, 0, guest_fill, PRIV_GPA, PRIV_SIZE, SEED);
	check_intact(p);

	/* ... so all of this still works. */
	EXPECT_EQ(0, protmem_punch(p->gmem, PRIV_OFF, PAGE_SIZE));
	EXPECT_TRUE(protmem_is_private(p, PRIV_GPA));
	EXPECT_EQ(0, protmem_call(p, 0, guest_check_zero, PRIV_GPA, PAGE_SIZE));
	EXPECT_EQ(0, protmem_set_attr(p->gmem, PRIV_OFF, PRIV_SIZE, PRIVATE,
				      ZERO, NULL));
	EXPECT_EQ(0, protmem_delete_slot(p, PROTMEM_SLOT));
	EXPECT_EQ(0, protmem_set_slot(p, PROTMEM_SLOT, PROTMEM_GPA, p->size, 0));
	EXPECT_EQ(0, protmem_set_attr(p->gmem, PRIV_OFF, PRIV_SIZE, 0, ZERO,
				      NULL));
	EXPECT_FALSE(protmem_is_private(p, PRIV_GPA));
}

/* Only a conversion that did something shuts it. */
TEST_F(latch, not_shut_by_sharing_or_failing)
{
	struct protmem_vm *p = &self->p;

	EXPECT_EQ(0, protmem_make_shared(p, PRIV_GPA, PRIV_SIZE));
	EXPECT_EQ(-KVM_EINVAL,
		  (s64)protmem_make_private(p, PRIV_GPA + 1, PAGE_SIZE));
	EXPECT_EQ(-KVM_EINVAL, (s64)protmem_make_private(p, 0, PAGE_SIZE));

	ASSERT_EQ(0, protmem_set_attr(p->gmem, PRIV_OFF, PRIV_SIZE, PRIVATE,
				      PRESERVE, NULL));
	EXPECT_EQ(0, protmem_set_attr(p->gmem, PRIV_OFF, PRIV_SIZE, 0, ZERO,
				      NULL));
}

/* Mutant killed: no latch check in KVM_SET_MEMORY_ATTRIBUTES2. */
TEST_F(latch, share_private_page)
{
	struct protmem_vm *p = &self->p;
	u64 err;

	do_latch(p);
	EXPECT_EQ(-EPERM, protmem_set_attr(p->gmem, PRIV_OFF, PAGE_SIZE, 0,
					   ZERO, &err));
	EXPECT_EQ(PRIV_OFF, err);
	EXPECT_EQ(-EPERM, protmem_set_attr(p->gmem, PRIV_OFF, PAGE_SIZE, 0,
					   PRESERVE, &err));
	EXPECT_EQ(PRIV_OFF, err);
	check_intact(p);

	/* A range that starts with shared pages; one that ends with them. */
	EXPECT_EQ(-EPERM, protmem_set_attr(p->gmem, 0, p->size, 0, PRESERVE,
					   &err));
	EXPECT_EQ(PRIV_OFF, err);
	EXPECT_EQ(-EPERM, protmem_set_attr(p->gmem, PRIV_OFF + PAGE_SIZE,
					   8 * PAGE_SIZE, 0, ZERO, &err));
	EXPECT_EQ(PRIV_OFF + PAGE_SIZE, err);
	check_intact(p);
}

/* Zeroing what is private already destroys what the guest has there. */
TEST_F(latch, zero_private_page)
{
	struct protmem_vm *p = &self->p;
	u64 err;

	do_latch(p);
	EXPECT_EQ(-EPERM, protmem_set_attr(p->gmem, PRIV_OFF, PRIV_SIZE,
					   PRIVATE, ZERO, &err));
	EXPECT_EQ(PRIV_OFF, err);
	EXPECT_EQ(-EPERM, protmem_set_attr(p->gmem, 0, p->size, PRIVATE, ZERO,
					   &err));
	EXPECT_EQ(PRIV_OFF, err);
	check_intact(p);
}

/* Mutant killed: no latch check in fallocate(PUNCH_HOLE). */
TEST_F(latch, punch_private_page)
{
	struct protmem_vm *p = &self->p;

	do_latch(p);
	EXPECT_EQ(-EPERM, protmem_punch(p->gmem, PRIV_OFF, PAGE_SIZE));
	EXPECT_EQ(-EPERM, protmem_punch(p->gmem, 0, p->size));
	check_intact(p);
	/* By another name. */
	EXPECT_EQ(-1, madvise(protmem_hva(p, PRIV_GPA), PAGE_SIZE, MADV_REMOVE));
	check_intact(p);
	EXPECT_EQ(-1, ftruncate(p->gmem, 0));
	check_intact(p);
}

/* Asking for memory may be answered either way, and changes nothing. */
TEST_F(latch, allocate_private_page)
{
	struct protmem_vm *p = &self->p;

	do_latch(p);
	fallocate(p->gmem, FALLOC_FL_KEEP_SIZE, 0, 8 * PAGE_SIZE);
	check_intact(p);
}

/* Mutant killed: no latch check in the deletion of a slot. */
TEST_F(latch, delete_slot)
{
	struct protmem_vm *p = &self->p;

	do_latch(p);
	EXPECT_EQ(-EPERM, protmem_delete_slot(p, PROTMEM_SLOT));
	check_intact(p);
	/* The older ioctl does the same. */
	EXPECT_EQ(-1, __vm_set_user_memory_region(p->vm, PROTMEM_SLOT, 0, 0, 0,
						  NULL));
	EXPECT_EQ(EPERM, errno);
	check_intact(p);
}

TEST_F(latch, move_or_change_slot)
{
	struct protmem_vm *p = &self->p;

	do_latch(p);
	EXPECT_EQ(-EINVAL, protmem_set_slot(p, PROTMEM_SLOT,
					    PROTMEM_GPA + SZ_1G, p->size, 0));
	EXPECT_EQ(-EINVAL, protmem_set_slot(p, PROTMEM_SLOT, PROTMEM_GPA,
					    p->size / 2, 0));
	EXPECT_EQ(-1, __vm_set_user_memory_region2(p->vm, PROTMEM_SLOT,
						   KVM_MEM_GUEST_MEMFD,
						   PROTMEM_GPA, p->size, p->hva,
						   p->gmem, 0));
	EXPECT_EQ(EINVAL, errno);
	check_intact(p);
}

TEST_F(latch, bind_at_another_gfn)
{
	struct protmem_vm *p = &self->p;
	int r;

	do_latch(p);

	/* While it is still bound. */
	r = protmem_set_slot(p, PROTMEM_SLOT + 1, PROTMEM_GPA + SZ_1G, p->size,
			     0);
	EXPECT_TRUE(r == -EPERM || r == -EINVAL || r == -EEXIST);
	check_intact(p);

	/* And after the guest gave everything back and the slot went away. */
	EXPECT_EQ(0, protmem_make_shared(p, PRIV_GPA, PRIV_SIZE));
	EXPECT_EQ(0, protmem_delete_slot(p, PROTMEM_SLOT));
	EXPECT_EQ(-EPERM, protmem_set_slot(p, PROTMEM_SLOT, PROTMEM_GPA + SZ_1G,
					   p->size, 0));
	EXPECT_EQ(-EPERM, protmem_set_slot(p, PROTMEM_SLOT,
					   PROTMEM_GPA + PAGE_SIZE, PAGE_SIZE,
					   0));
	EXPECT_EQ(0, protmem_set_slot(p, PROTMEM_SLOT, PROTMEM_GPA, p->size, 0));
	EXPECT_EQ(0, protmem_call(p, 0, guest_check, PRIV_GPA, PRIV_SIZE, SEED));
}

/* What has to stay possible, or a running machine could not go on. */
TEST_F(latch, shared_pages_stay_free)
{
	struct protmem_vm *p = &self->p;
	u64 err;

	protmem_fill(p, PROTMEM_GPA, PAGE_SIZE, 7);
	do_latch(p);

	/* Sharing what is shared is nothing. */
	EXPECT_EQ(0, protmem_set_attr(p->gmem, 0, PRIV_OFF, 0, PRESERVE, &err));
	EXPECT_EQ(PAGE_SIZE, protmem_mismatch(p->mem, PROTMEM_GPA, PAGE_SIZE, 7));
	/* Punching shared pages frees them. */
	EXPECT_EQ(0, protmem_punch(p->gmem, 0, PRIV_OFF));
	EXPECT_EQ(PAGE_SIZE, protmem_first_nonzero(p->mem, PAGE_SIZE));
	/* More pages may become private, keeping what they have ... */
	protmem_fill(p, PROTMEM_GPA, PAGE_SIZE, 8);
	EXPECT_EQ(0, protmem_set_attr(p->gmem, 0, PAGE_SIZE, PRIVATE, PRESERVE,
				      &err));
	EXPECT_EQ(0, protmem_call(p, 0, guest_check, PROTMEM_GPA, PAGE_SIZE, 8));
	/* ... or not, ... */
	protmem_fill(p, PROTMEM_GPA + PAGE_SIZE, PAGE_SIZE, 9);
	EXPECT_EQ(0, protmem_set_attr(p->gmem, PAGE_SIZE, PAGE_SIZE, PRIVATE,
				      ZERO, &err));
	EXPECT_EQ(0, protmem_call(p, 0, guest_check_zero,
				  PROTMEM_GPA + PAGE_SIZE, PAGE_SIZE));
	/* ... together with those that are. */
	EXPECT_EQ(0, protmem_set_attr(p->gmem, 0, 8 * PAGE_SIZE, PRIVATE,
				      PRESERVE, &err));
	EXPECT_EQ(0, protmem_call(p, 0, guest_check, PROTMEM_GPA, PAGE_SIZE, 8));
	check_intact(p);
}

TEST_F(latch, ordinary_slots_stay_free)
{
	const u64 size = 16 * PAGE_SIZE, gpa = PROTMEM_GPA + SZ_1G;
	struct protmem_vm *p = &self->p;
	struct kvm_vm *vm = p->vm;
	void *mem = kvm_mmap(size, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS, -1);
	u64 bitmap;

	do_latch(p);
	vm_set_user_memory_region2(vm, 20, 0, gpa, size, mem, -1, 0);
	virt_map(vm, gpa, gpa, 1);
	EXPECT_EQ(0, protmem_call(p, 0, guest_fill, gpa, PAGE_SIZE, 3));
	EXPECT_EQ(PAGE_SIZE, protmem_mismatch(mem, gpa, PAGE_SIZE, 3));

	vm_set_user_memory_region2(vm, 20, KVM_MEM_LOG_DIRTY_PAGES, gpa, size,
				   mem, -1, 0);
	protmem_call(p, 0, guest_fill, gpa, PAGE_SIZE, 4);
	kvm_vm_get_dirty_log(vm, 20, &bitmap);
	EXPECT_EQ(1, bitmap);
	vm_set_user_memory_region2(vm, 20, 0, gpa, size, mem, -1, 0);
	vm_set_user_memory_region2(vm, 20, 0, gpa + SZ_1M, size, mem, -1, 0);
	vm_set_user_memory_region2(vm, 20, 0, 0, 0, NULL, -1, 0);
	check_intact(p);
	kvm_munmap(mem, size);
}

TEST_F(latch, slot_without_private_pages_stays_free)
{
	struct protmem_vm *p = &self->p;
	int fd = vm_create_guest_memfd(p->vm, SZ_1M, PROTMEM_GMEM_FLAGS);
	u64 gpa = PROTMEM_GPA + SZ_1G;
	int i;

	do_latch(p);
	for (i = 0; i < 3; i++) {
		EXPECT_EQ(0, __vm_set_user_memory_region2(p->vm, 21,
							  PROTMEM_FLAGS, gpa,
							  SZ_1M, p->mem, fd, 0));
		EXPECT_EQ(0, __vm_set_user_memory_region2(p->vm, 21, 0, 0, 0,
							  NULL, 0, 0));
	}
	/* Even one that had some. */
	EXPECT_EQ(0, __vm_set_user_memory_region2(p->vm, 21, PROTMEM_FLAGS, gpa,
						  SZ_1M, p->mem, fd, 0));
	EXPECT_EQ(0, protmem_make_private(p, gpa, SZ_1M));
	EXPECT_EQ(-EPERM, protmem_delete_slot(p, 21));
	EXPECT_EQ(0, protmem_make_shared(p, gpa, SZ_1M));
	EXPECT_EQ(0, protmem_delete_slot(p, 21));
	check_intact(p);
	/* Its memory is the VM's all the same: the last close is the end. */
	close(fd);
}

static bool vm_is_dead(struct kvm_vm *vm)
{
	return ioctl(vm->fd, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY) < 0 &&
	       errno == EIO;
}

/* Mutant killed: no kvm_vm_dead() at the last close. */
TEST_F(latch, last_close_kills_the_vm)
{
	struct protmem_vm *p = &self->p;
	int dup_fd;

	do_latch(p);
	dup_fd = dup(p->gmem);
	close(p->gmem);
	p->gmem = -1;
	EXPECT_FALSE(vm_is_dead(p->vm));
	close(dup_fd);
	/* The mapping still holds it. */
	EXPECT_FALSE(vm_is_dead(p->vm));
	EXPECT_EQ(0, protmem_call(p, 0, guest_check, PRIV_GPA, PRIV_SIZE, SEED));

	munmap(p->mem, p->size);
	EXPECT_TRUE(vm_is_dead(p->vm));
	EXPECT_EQ(-1, __vcpu_run(p->vcpu[0]));
	EXPECT_EQ(EIO, errno);
	EXPECT_EQ(-EIO, protmem_reset(p));

	/* For the teardown. */
	p->mem = mmap(NULL, p->size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	_exit(_metadata->exit_code);
}

static u64 guest_spin(u64 flag, u64 b, u64 c, u64 d)
{
	struct protmem_cmd *cmd = (void *)flag;

	while (!READ_ONCE(cmd->stop)) {
		WRITE_ONCE(cmd->count, cmd->count + 1);
		/* Reaches the host, without leaving the kernel. */
		kvm_hypercall(KVM_HC_VAPIC_POLL_IRQ, 0, 0, 0, 0);
	}
	return 0;
}

static void *spin_thread(void *arg)
{
	struct protmem_vm *p = arg;
	int r;

	do {
		r = __vcpu_run(p->vcpu[0]);
	} while (r && errno == EINTR);
	return (void *)(long)(r ? -errno : 0);
}

TEST_F(latch, last_close_with_running_vcpu)
{
	struct protmem_vm *p = &self->p;
	pthread_t thread;
	void *res;

	do_latch(p);
	p->cmd[0]->stop = 0;
	p->cmd[0]->count = 0;
	protmem_prepare(p, 0, guest_spin, p->cmd_gva[0], 0, 0, 0);
	pthread_create(&thread, NULL, spin_thread, p);
	while (!READ_ONCE(p->cmd[0]->count))
		usleep(1000);

	munmap(p->mem, p->size);
	close(p->gmem);
	pthread_join(thread, &res);
	EXPECT_EQ(-EIO, (long)res);
	EXPECT_TRUE(vm_is_dead(p->vm));
	_exit(_metadata->exit_code);
}

TEST_F(latch, last_close_of_an_open_latch)
{
	struct protmem_vm *p = &self->p;

	EXPECT_EQ(0, protmem_set_attr(p->gmem, PRIV_OFF, PRIV_SIZE, PRIVATE,
				      ZERO, NULL));
	munmap(p->mem, p->size);
	close(p->gmem);
	EXPECT_FALSE(vm_is_dead(p->vm));
	EXPECT_EQ(0, protmem_call(p, 0, guest_nop));
	_exit(_metadata->exit_code);
}

/* Closing the memory of a slot that the guest never used is no attack. */
TEST_F(latch, last_close_of_unbound_memory)
{
	struct protmem_vm *p = &self->p;
	int fd = vm_create_guest_memfd(p->vm, SZ_1M, PROTMEM_GMEM_FLAGS);

	do_latch(p);
	close(fd);
	EXPECT_FALSE(vm_is_dead(p->vm));
	check_intact(p);
}

/*
 * A slot deletion against the conversion that latches.  One of them comes
 * first: either the slot goes and the guest is told that there is nothing to
 * make private, or the deletion is refused and the guest never notices.  That
 * includes pages which the VMM has made private before.
 *
 * Mutants killed: no recheck after the slot is invalid; an access that meets
 * the invalid slot exits as MMIO instead of being retried.
 */
#define RACE_TOUCHES	64

static u64 guest_race(u64 cmd_gva, u64 delay, u64 c, u64 d)
{
	struct protmem_cmd *cmd = (void *)cmd_gva;
	u64 r, i;

	WRITE_ONCE(cmd->count, 1);
	while (!READ_ONCE(cmd->go))
		asm volatile("pause");
	for (i = 0; i < delay; i++)
		asm volatile("pause");

	r = __kvm_hypercall_map_gpa_range(PRIV_GPA, PRIV_SIZE,
					  KVM_MAP_GPA_RANGE_ENCRYPTED);
	if (r)
		return r;

	/* Ours for good now: private and shared pages of the slot. */
	for (i = 0; i < RACE_TOUCHES; i++) {
		WRITE_ONCE(*(u64 *)PRIV_GPA, i);
		if (READ_ONCE(*(u64 *)PRIV_GPA) != i)
			return 1;
		READ_ONCE(*(u64 *)PROTMEM_GPA);
	}
	return 0;
}

struct race {
	struct protmem_vm *p;
	u64 ret;
	bool mmio;
};

static void *race_thread(void *arg)
{
	struct race *race = arg;
	struct kvm_vcpu *vcpu = race->p->vcpu[0];

	race->mmio = false;
	for (;;) {
		vcpu_run(vcpu);
		if (protmem_done(race->p, 0))
			break;
		if (vcpu->run->exit_reason == KVM_EXIT_MMIO) {
			race->mmio = true;
			continue;
		}
		TEST_FAIL("Unexpected exit %s",
			  exit_reason_str(vcpu->run->exit_reason));
	}
	race->ret = race->p->cmd[0]->ret;
	return NULL;
}

TEST_F(latch, delete_races_with_latch)
{
	u64 iterations = protmem_test_iterations(400), i;
	u64 deleted = 0, refused = 0, j, host_delay = 0, guest_delay = 0;
	struct protmem_vm *p = &self->p;
	struct race race = { .p = p };
	u32 rnd = 12345;
	pthread_t thread;
	int r;

	if (protmem_nr_cpus() < 2)
		SKIP(return, "needs 2 CPUs to race");

	for (i = 0; i < iterations; i++) {
		ASSERT_EQ(0, protmem_reset(p));
		/* The latch is all that is left to do for the guest then. */
		if (i & 1)
			ASSERT_EQ(0, protmem_set_attr(p->gmem, PRIV_OFF,
						      PRIV_SIZE, PRIVATE, ZERO,
						      NULL));
		p->cmd[0]->go = 0;
		p->cmd[0]->count = 0;
		protmem_prepare(p, 0, guest_race, p->cmd_gva[0], guest_delay, 0,
				0);
		pthread_create(&thread, NULL, race_thread, &race);
		while (!READ_ONCE(p->cmd[0]->count))
			sched_yield();

		WRITE_ONCE(p->cmd[0]->go, 1);
		for (j = 0; j < host_delay; j++)
			asm volatile("pause");
		r = protmem_delete_slot(p, PROTMEM_SLOT);
		pthread_join(thread, NULL);

		if (!r) {
			ASSERT_EQ(-KVM_EINVAL, (s64)race.ret) {
				TH_LOG("deleted, and the guest was told %ld",
				       (s64)race.ret);
			}
			deleted++;
			ASSERT_EQ(0, protmem_set_slot(p, PROTMEM_SLOT,
						      PROTMEM_GPA, p->size, 0));
			/* The guest won too early or too late: meet it. */
			host_delay += 1 + rnd % 64;
			guest_delay -= min(guest_delay, (u64)rnd % 64);
		} else {
			ASSERT_EQ(-EPERM, r);
			ASSERT_EQ(0, race.ret) {
				TH_LOG("refused, and the guest was told %ld",
				       (s64)race.ret);
			}
			ASSERT_FALSE(race.mmio) {
				TH_LOG("the guest's access became MMIO");
			}
			refused++;
			guest_delay += 1 + rnd % 64;
			host_delay -= min(host_delay, (u64)rnd % 64);
			ASSERT_TRUE(protmem_is_private(p, PRIV_GPA));
		}
		rnd = rnd * 1103515245 + 12345;

		/* The VM is alive either way. */
		ASSERT_EQ(i, protmem_call(p, 0, guest_nop, i));
	}
	TH_LOG("%lu iterations: %lu deleted, %lu refused", i, deleted, refused);
}

/* With the latch shut, deletions that fail are never seen by the guest. */
static u64 guest_hammer(u64 cmd_gva, u64 b, u64 c, u64 d)
{
	struct protmem_cmd *cmd = (void *)cmd_gva;

	while (!READ_ONCE(cmd->stop)) {
		if (READ_ONCE(*(u64 *)PRIV_GPA) != protmem_word(SEED, PRIV_GPA))
			return 1;
		READ_ONCE(*(u64 *)PROTMEM_GPA);
		WRITE_ONCE(cmd->count, cmd->count + 1);
	}
	return 0;
}

TEST_F(latch, refused_deletions_are_invisible)
{
	u64 iterations = protmem_test_iterations(400), i;
	struct protmem_vm *p = &self->p;
	struct race race = { .p = p };
	pthread_t thread;

	if (protmem_nr_cpus() < 2)
		SKIP(return, "needs 2 CPUs to run the guest meanwhile");

	do_latch(p);
	p->cmd[0]->stop = 0;
	p->cmd[0]->count = 0;
	protmem_prepare(p, 0, guest_hammer, p->cmd_gva[0], 0, 0, 0);
	pthread_create(&thread, NULL, race_thread, &race);
	while (!READ_ONCE(p->cmd[0]->count))
		sched_yield();
	for (i = 0; i < iterations; i++)
		EXPECT_EQ(-EPERM, protmem_delete_slot(p, PROTMEM_SLOT));
	WRITE_ONCE(p->cmd[0]->stop, 1);
	pthread_join(thread, NULL);
	EXPECT_FALSE(race.mmio);
	EXPECT_EQ(0, race.ret);
	check_intact(p);
}

int main(int argc, char **argv)
{
	protmem_require();
	return test_harness_run(argc, argv);
}
