// SPDX-License-Identifier: GPL-2.0-only
/*
 * Guest memory that is hidden from the kernel alone: KVM_PROTMEM_HIDE_ONLY and
 * GUEST_MEMFD_FLAG_NO_DIRECT_MAP.  The guest knows nothing of it, and all that
 * KVM does for ordinary guests works.  What system calls may do to such memory
 * is in protmem_refused_test.
 */
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kselftest_harness.h"
#include "kvm_syscalls.h"
#include "protmem.h"

#define GPA		PROTMEM_GPA
#define SEED		0x41de

#define HIDE_FLAGS	(KVM_MEM_GUEST_MEMFD | KVM_MEM_UNMAP_DIRECT)
#define HIDE_GMEM_FLAGS	(PROTMEM_GMEM_FLAGS | GUEST_MEMFD_FLAG_NO_DIRECT_MAP)

static int add_slot(struct kvm_vm *vm, u32 slot, u32 flags, u64 gpa, u64 size,
		    void *mem, int fd, u64 offset)
{
	return __vm_set_user_memory_region2(vm, slot, flags, gpa, size, mem, fd,
					    offset) ? -errno : 0;
}

/* Whoever asks for it in one way or the other gets the same. */
FIXTURE(hidden) {
	struct protmem_vm p;
	s64 before;
};

FIXTURE_VARIANT(hidden) {
	struct protmem_opts opts;
};

FIXTURE_VARIANT_ADD(hidden, slot) {
	.opts = { .caps = PROTMEM_CAPS_HIDE },
};

FIXTURE_VARIANT_ADD(hidden, flag) {
	.opts = { .gmem_flags = GUEST_MEMFD_FLAG_NO_DIRECT_MAP },
};

FIXTURE_VARIANT_ADD(hidden, both) {
	.opts = {
		.caps = PROTMEM_CAPS_HIDE,
		.gmem_flags = GUEST_MEMFD_FLAG_NO_DIRECT_MAP,
	},
};

FIXTURE_SETUP(hidden)
{
	self->before = protmem_off_direct_map();
	protmem_vm_create(&self->p, &variant->opts);
}

FIXTURE_TEARDOWN(hidden)
{
	protmem_vm_free(&self->p);
	EXPECT_EQ(self->before, protmem_wait_off_direct_map(self->before));
}

TEST_F(hidden, is_shared_with_the_vmm)
{
	struct protmem_vm *p = &self->p;

	protmem_call(p, 0, guest_fill, GPA, p->size / 2, SEED);
	protmem_fill(p, GPA + p->size / 2, p->size / 2, SEED + 1);
	EXPECT_EQ(p->size / 2, protmem_mismatch(p->mem, GPA, p->size / 2, SEED));
	EXPECT_EQ(0, protmem_call(p, 0, guest_check, GPA + p->size / 2,
				  p->size / 2, SEED + 1));
}

TEST_F(hidden, is_off_the_direct_map)
{
	struct protmem_vm *p = &self->p;

	/* Whoever touches it first. */
	protmem_call(p, 0, guest_fill, GPA, SZ_1M, SEED);
	EXPECT_LE(self->before + SZ_1M, protmem_off_direct_map());
	protmem_fill(p, GPA + SZ_1M, p->size - SZ_1M, SEED);
	EXPECT_LE(self->before + (s64)p->size, protmem_off_direct_map());
	EXPECT_EQ(p->size, vm_get_stat(p->vm, protmem_private_bytes));
	EXPECT_LE(p->size, vm_get_stat(p->vm, protmem_block_bytes));
	EXPECT_EQ(0, vm_get_stat(p->vm, protmem_shared_bytes));
}

TEST_F(hidden, populated_by_fallocate)
{
	struct protmem_vm *p = &self->p;

	ASSERT_EQ(0, fallocate(p->gmem, FALLOC_FL_KEEP_SIZE, 0, p->size));
	EXPECT_EQ(p->size, vm_get_stat(p->vm, protmem_private_bytes));
	EXPECT_EQ(p->size, protmem_first_nonzero(p->mem, p->size));
	EXPECT_EQ(0, protmem_call(p, 0, guest_check_zero, GPA, p->size));
}

TEST_F(hidden, populated_by_madvise)
{
	struct protmem_vm *p = &self->p;

	ASSERT_EQ(0, madvise(p->mem, p->size, 23 /* MADV_POPULATE_WRITE */));
	EXPECT_EQ(p->size, vm_get_stat(p->vm, protmem_private_bytes));
}

/* A hole is empty for everybody, and what it was is not mapped any more. */
TEST_F(hidden, punch_hole)
{
	struct protmem_vm *p = &self->p;

	protmem_call(p, 0, guest_fill, GPA, p->size, SEED);
	EXPECT_EQ(p->size, protmem_mismatch(p->mem, GPA, p->size, SEED));

	ASSERT_EQ(0, protmem_punch(p->gmem, SZ_1M, SZ_1M));
	EXPECT_EQ(p->size - SZ_1M, vm_get_stat(p->vm, protmem_private_bytes));
	EXPECT_EQ(SZ_1M, protmem_first_nonzero(p->mem + SZ_1M, SZ_1M));
	/* Pages that were given back are empty, too: these must be new ones. */
	EXPECT_EQ(p->size, vm_get_stat(p->vm, protmem_private_bytes));
	EXPECT_EQ(0, protmem_call(p, 0, guest_check_zero, GPA + SZ_1M, SZ_1M));
	/* And both see the same new page. */
	protmem_call(p, 0, guest_fill, GPA + SZ_1M, SZ_1M, SEED + 1);
	EXPECT_EQ(SZ_1M, protmem_mismatch(p->mem + SZ_1M, GPA + SZ_1M, SZ_1M,
					  SEED + 1));
	EXPECT_EQ(SZ_1M, protmem_mismatch(p->mem, GPA, SZ_1M, SEED));

	ASSERT_EQ(0, protmem_punch(p->gmem, 0, p->size));
	EXPECT_EQ(0, vm_get_stat(p->vm, protmem_private_bytes));
	EXPECT_EQ(0, protmem_call(p, 0, guest_check_zero, GPA, p->size));
}

/* There are no states, neither for the VMM nor for the guest. */
TEST_F(hidden, no_page_states)
{
	struct protmem_vm *p = &self->p;

	EXPECT_EQ(-EINVAL, protmem_set_attr(p->gmem, 0, PAGE_SIZE,
					    KVM_MEMORY_ATTRIBUTE_PRIVATE,
					    KVM_SET_MEMORY_ATTRIBUTES2_ZERO, NULL));
	EXPECT_EQ(-EINVAL, protmem_get_attr(p->gmem, 0, PAGE_SIZE, NULL, NULL));
	EXPECT_EQ(0, vm_check_cap(p->vm, KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES));
	EXPECT_EQ(-EINVAL, protmem_reset(p));
	EXPECT_EQ(-KVM_ENOSYS, (s64)protmem_make_private(p, GPA, PAGE_SIZE));
	EXPECT_EQ(-KVM_ENOSYS, (s64)protmem_make_shared(p, GPA, PAGE_SIZE));
	EXPECT_EQ(0, vm_get_stat(p->vm, protmem_latched));
}

static u64 guest_features(u64 a, u64 b, u64 c, u64 d)
{
	u32 eax, ebx, ecx, edx;

	__cpuid(KVM_CPUID_FEATURES, 0, &eax, &ebx, &ecx, &edx);
	return eax;
}

TEST_F(hidden, guest_is_not_told)
{
	u64 features = protmem_call(&self->p, 0, guest_features);

	EXPECT_FALSE(features & BIT(KVM_FEATURE_PROTECTED_MEMORY));
	EXPECT_TRUE(features & BIT(KVM_FEATURE_CLOCKSOURCE2));
}

/* The VMM may take it away, and bring it back with what is in it. */
TEST_F(hidden, delete_slot)
{
	struct protmem_vm *p = &self->p;

	protmem_call(p, 0, guest_fill, GPA, p->size, SEED);
	ASSERT_EQ(0, protmem_delete_slot(p, PROTMEM_SLOT));
	EXPECT_EQ(p->size, protmem_mismatch(p->mem, GPA, p->size, SEED));
	ASSERT_EQ(0, protmem_set_slot(p, PROTMEM_SLOT, GPA, p->size, 0));
	EXPECT_EQ(0, protmem_call(p, 0, guest_check, GPA, p->size, SEED));
}

static u64 guest_clock(u64 gpa, u64 c, u64 d, u64 e)
{
	u32 *version = (void *)gpa;
	u64 *system_time = (void *)(gpa + 16);
	u64 time;
	u32 v;
	int i;

	/* Bounded, as a test must not hang: an odd version never ends. */
	for (i = 0; i < 1000000; i++) {
		v = READ_ONCE(*version);
		time = READ_ONCE(*system_time);
		if (v && !(v & 1) && v == READ_ONCE(*version))
			return time;
	}
	return 0;
}

/* kvmclock is written by KVM, in KVM_RUN, and has no kernel mapping. */
TEST_F(hidden, kvmclock)
{
	struct protmem_vm *p = &self->p;
	u64 gpa = GPA + 3 * PAGE_SIZE, first, second;
	struct kvm_clock_data data = {};

	EXPECT_EQ(0, protmem_call(p, 0, guest_wrmsr, MSR_KVM_SYSTEM_TIME_NEW,
				  gpa | KVM_MSR_ENABLED));
	first = protmem_call(p, 0, guest_clock, gpa);
	EXPECT_NE(0, first);

	/* It is written again, with what else the guest has been told in it. */
	ASSERT_EQ(0, __vcpu_ioctl(p->vcpu[0], KVM_KVMCLOCK_CTRL, NULL));
	vm_ioctl(p->vm, KVM_GET_CLOCK, &data);
	data.clock += 1000000000000ull;
	data.flags = 0;
	vm_ioctl(p->vm, KVM_SET_CLOCK, &data);
	second = protmem_call(p, 0, guest_clock, gpa);
	EXPECT_LE(first + 1000000000000ull, second);
	/* flags, where the guest alone takes back what the host has set. */
	EXPECT_TRUE(*(u8 *)protmem_hva(p, gpa + 29) & 2 /* PVCLOCK_GUEST_STOPPED */);
	vm_ioctl(p->vm, KVM_SET_CLOCK, &data);
	EXPECT_NE(0, protmem_call(p, 0, guest_clock, gpa));
	EXPECT_TRUE(*(u8 *)protmem_hva(p, gpa + 29) & 2);
	EXPECT_EQ(PAGE_SIZE - 32, protmem_first_nonzero(protmem_hva(p, gpa + 32),
							PAGE_SIZE - 32));
}

TEST_F(hidden, wall_clock_and_steal_time)
{
	struct protmem_vm *p = &self->p;
	u64 wall = GPA + 4 * PAGE_SIZE, steal = GPA + 5 * PAGE_SIZE;
	int i;

	EXPECT_EQ(0, protmem_call(p, 0, guest_wrmsr, MSR_KVM_WALL_CLOCK_NEW, wall));
	/* version, seconds, nanoseconds */
	EXPECT_NE(0, protmem_call(p, 0, guest_read64, wall));

	if (!kvm_cpu_has(X86_FEATURE_KVM_STEAL_TIME))
		return;
	EXPECT_EQ(0, protmem_call(p, 0, guest_wrmsr, MSR_KVM_STEAL_TIME,
				  steal | KVM_MSR_ENABLED));
	for (i = 0; i < 3; i++)
		protmem_call(p, 0, guest_nop);
	/* version */
	EXPECT_NE(0, (u32)(protmem_call(p, 0, guest_read64, steal + 8)));
}

/* Also for those who have mapped it again, moved the mapping, or inherited it. */
TEST_F(hidden, punch_hole_with_other_mappings)
{
	struct protmem_vm *p = &self->p;
	u64 *again = kvm_mmap(p->size, PROT_READ | PROT_WRITE, MAP_SHARED, p->gmem);
	int fds[2][2], status;
	char c = 0;
	pid_t pid;

	protmem_call(p, 0, guest_fill, GPA, p->size, SEED);
	EXPECT_EQ(p->size, protmem_mismatch(again, GPA, p->size, SEED));
	again = mremap(again, p->size, p->size, MREMAP_MAYMOVE | MREMAP_FIXED,
		       kvm_mmap(p->size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1));
	ASSERT_NE(MAP_FAILED, again);
	ASSERT_EQ(0, pipe(fds[0]));
	ASSERT_EQ(0, pipe(fds[1]));
	pid = fork();
	if (!pid) {
		c = protmem_mismatch(again, GPA, p->size, SEED) == p->size;
		if (write(fds[0][1], &c, 1) != 1 || read(fds[1][0], &c, 1) != 1)
			_exit(1);
		/* Looks last, at pages that the guest has used since. */
		_exit(protmem_mismatch(again, GPA, p->size, SEED + 1) == p->size ? 0 : 2);
	}
	ASSERT_EQ(1, read(fds[0][0], &c, 1));
	EXPECT_EQ(1, c);

	ASSERT_EQ(0, protmem_punch(p->gmem, 0, p->size));
	EXPECT_EQ(0, vm_get_stat(p->vm, protmem_private_bytes));
	/*
	 * The pool has kept the block that became idle last.  From the beginning,
	 * so that it gets other pages than it had.
	 */
	EXPECT_EQ(PAGE_SIZE, protmem_first_nonzero(again, PAGE_SIZE));
	EXPECT_LE(PAGE_SIZE, vm_get_stat(p->vm, protmem_private_bytes));
	protmem_call(p, 0, guest_fill, GPA, p->size, SEED + 1);
	EXPECT_EQ(p->size, protmem_mismatch(again, GPA, p->size, SEED + 1));
	ASSERT_EQ(1, write(fds[1][1], &c, 1));
	waitpid(pid, &status, 0);
	EXPECT_EQ(0, status);
	kvm_munmap(again, p->size);
}

/* A mapping that may not be written to, and then may again. */
TEST_F(hidden, mprotect)
{
	struct protmem_vm *p = &self->p;
	u64 val;

	protmem_fill(p, GPA, PAGE_SIZE, SEED);
	ASSERT_EQ(0, mprotect(p->mem, PAGE_SIZE, PROT_READ));
	EXPECT_EQ(0, protmem_try_read(p->mem, &val));
	EXPECT_EQ(-1, pread(open("/dev/zero", O_RDONLY), p->mem, 8, 0));
	EXPECT_EQ(EFAULT, errno);
	ASSERT_EQ(0, mprotect(p->mem, PAGE_SIZE, PROT_READ | PROT_WRITE));
	protmem_fill(p, GPA, PAGE_SIZE, SEED + 1);
	EXPECT_EQ(0, protmem_call(p, 0, guest_check, GPA, PAGE_SIZE, SEED + 1));
}

/* What KVM does by userspace's mapping stays, what it would map does not. */
TEST(features)
{
	struct kvm_vm *vm = vm_create_barebones(), *plain = vm_create_barebones();

	ASSERT_EQ(0, protmem_enable_cap(vm, PROTMEM_CAPS_HIDE, 0));
	EXPECT_EQ(vm_check_cap(plain, KVM_CAP_HYPERV), vm_check_cap(vm, KVM_CAP_HYPERV));
	EXPECT_EQ(vm_check_cap(plain, KVM_CAP_HYPERV_SYNIC2),
		  vm_check_cap(vm, KVM_CAP_HYPERV_SYNIC2));
	EXPECT_EQ(vm_check_cap(plain, KVM_CAP_VAPIC), vm_check_cap(vm, KVM_CAP_VAPIC));
	EXPECT_EQ(0, vm_check_cap(vm, KVM_CAP_NESTED_STATE));
	EXPECT_EQ(0, vm_check_cap(vm, KVM_CAP_X86_SMM));
	EXPECT_EQ(0, vm_check_cap(vm, KVM_CAP_XEN_HVM));
	EXPECT_EQ(0, vm_check_cap(vm, KVM_CAP_HYPERV_ENLIGHTENED_VMCS));
	kvm_vm_free(plain);
	kvm_vm_free(vm);
}

/* From hidden memory to MMIO and back: KVM reads and writes the operands. */
static u64 guest_mmio(u64 gpa, u64 mmio, u64 c, u64 d)
{
	u64 si = gpa, di = mmio, n = 1;

	asm volatile("rep movsq" : "+S"(si), "+D"(di), "+c"(n) : : "memory");
	si = mmio;
	di = gpa + 8;
	n = 1;
	asm volatile("rep movsq" : "+S"(si), "+D"(di), "+c"(n) : : "memory");
	return READ_ONCE(*(u64 *)(gpa + 8));
}

TEST_F(hidden, emulation)
{
	struct protmem_vm *p = &self->p;
	struct kvm_run *run = p->vcpu[0]->run;
	u64 secret = 0x1122334455667788, answer = 0x99aabbccddeeff00, got;

	protmem_call(p, 0, guest_write64, GPA, secret);
	protmem_prepare(p, 0, guest_mmio, GPA, PROTMEM_MMIO_GPA, 0, 0);
	vcpu_run(p->vcpu[0]);
	ASSERT_EQ(KVM_EXIT_MMIO, run->exit_reason);
	ASSERT_TRUE(run->mmio.is_write);
	memcpy(&got, run->mmio.data, 8);
	EXPECT_EQ(secret, got);
	vcpu_run(p->vcpu[0]);
	ASSERT_EQ(KVM_EXIT_MMIO, run->exit_reason);
	ASSERT_FALSE(run->mmio.is_write);
	memcpy(run->mmio.data, &answer, 8);
	EXPECT_EQ(answer, protmem_run(p, 0));
}

/* Slots that must be refused, each for one reason. */
TEST(bad_slots)
{
	const u64 size = 16 * PAGE_SIZE;
	struct kvm_vm *vm = vm_create_barebones(), *prot = vm_create_barebones();
	struct kvm_vm *plain = vm_create_barebones();
	int fd, used, flagged, prot_fd, plain_fd, plain_flagged, no_mmap, no_shared;
	u8 *mem;

	ASSERT_EQ(0, protmem_enable_cap(vm, PROTMEM_CAPS | KVM_PROTMEM_HIDE_ONLY, 0));
	ASSERT_EQ(0, protmem_enable_cap(prot, PROTMEM_CAPS, 0));
	fd = vm_create_guest_memfd(vm, size, PROTMEM_GMEM_FLAGS);
	used = vm_create_guest_memfd(vm, size, PROTMEM_GMEM_FLAGS);
	flagged = vm_create_guest_memfd(vm, size, HIDE_GMEM_FLAGS);
	prot_fd = vm_create_guest_memfd(prot, size, PROTMEM_GMEM_FLAGS);
	plain_fd = vm_create_guest_memfd(plain, size, PROTMEM_GMEM_FLAGS);
	plain_flagged = vm_create_guest_memfd(plain, size, HIDE_GMEM_FLAGS);

	/* What was in the direct map must not be taken for hidden. */
	mem = kvm_mmap(size, PROT_READ | PROT_WRITE, MAP_SHARED, used);
	mem[5 * PAGE_SIZE] = 1;
	EXPECT_EQ(-EINVAL, add_slot(vm, 1, HIDE_FLAGS, GPA, size, mem, used, 0));
	EXPECT_EQ(1, mem[5 * PAGE_SIZE]);
	ASSERT_EQ(0, protmem_punch(used, 5 * PAGE_SIZE, PAGE_SIZE));
	EXPECT_EQ(0, add_slot(vm, 1, HIDE_FLAGS, GPA, size, mem, used, 0));
	/* This mapping is older than that. */
	mem[5 * PAGE_SIZE] = 2;
	EXPECT_EQ(PAGE_SIZE, vm_get_stat(vm, protmem_private_bytes));
	EXPECT_EQ(0, add_slot(vm, 1, 0, 0, 0, NULL, 0, 0));
	kvm_munmap(mem, size);

	/* All slots of the memory agree. */
	mem = kvm_mmap(size, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
	ASSERT_EQ(0, add_slot(vm, 1, HIDE_FLAGS, GPA, size / 2, mem, fd, 0));
	EXPECT_EQ(-EINVAL, add_slot(vm, 2, PROTMEM_FLAGS, GPA + size / 2, size / 2,
				    mem + size / 2, fd, size / 2));
	EXPECT_EQ(-EINVAL, add_slot(vm, 2, KVM_MEM_GUEST_MEMFD, GPA + size / 2,
				    size / 2, mem + size / 2, fd, size / 2));
	EXPECT_EQ(0, add_slot(vm, 1, 0, 0, 0, NULL, 0, 0));
	EXPECT_EQ(-EINVAL, add_slot(vm, 1, HIDE_FLAGS, GPA + SZ_1G, size / 2, mem,
				    fd, 0));
	EXPECT_EQ(-EINVAL, add_slot(vm, 1, HIDE_FLAGS | KVM_MEM_READONLY, GPA,
				    size / 2, mem, fd, 0));
	EXPECT_EQ(-EINVAL, add_slot(vm, 1, HIDE_FLAGS | KVM_MEM_LOG_DIRTY_PAGES,
				    GPA, size / 2, mem, fd, 0));
	EXPECT_EQ(-EINVAL, add_slot(vm, 1, KVM_MEM_UNMAP_DIRECT, GPA, size / 2,
				    mem, -1, 0));
	kvm_munmap(mem, size);

	/* Made to be seen by userspace. */
	mem = kvm_mmap(size, PROT_READ | PROT_WRITE, MAP_SHARED, flagged);
	EXPECT_EQ(-EINVAL, add_slot(vm, 3, PROTMEM_FLAGS, GPA, size, mem, flagged, 0));
	EXPECT_EQ(0, add_slot(vm, 3, HIDE_FLAGS, GPA, size, mem, flagged, 0));
	kvm_munmap(mem, size);

	/* What KVM would not take the guest's memory from. */
	no_mmap = vm_create_guest_memfd(vm, size, GUEST_MEMFD_FLAG_NO_DIRECT_MAP);
	no_shared = vm_create_guest_memfd(vm, size, GUEST_MEMFD_FLAG_NO_DIRECT_MAP |
					  GUEST_MEMFD_FLAG_MMAP);
	mem = kvm_mmap(size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	EXPECT_EQ(-EINVAL, add_slot(vm, 4, HIDE_FLAGS, 2 * GPA, size, mem, no_mmap, 0));
	EXPECT_EQ(-EINVAL, add_slot(vm, 4, KVM_MEM_GUEST_MEMFD, 2 * GPA, size, mem,
				    no_mmap, 0));
	EXPECT_EQ(-EINVAL, add_slot(vm, 4, HIDE_FLAGS, 2 * GPA, size, mem, no_shared, 0));
	kvm_munmap(mem, size);
	close(no_mmap);
	close(no_shared);

	/* No capability for it. */
	mem = kvm_mmap(size, PROT_READ | PROT_WRITE, MAP_SHARED, prot_fd);
	EXPECT_EQ(-EINVAL, add_slot(prot, 1, HIDE_FLAGS, GPA, size, mem, prot_fd, 0));
	kvm_munmap(mem, size);
	mem = kvm_mmap(size, PROT_READ | PROT_WRITE, MAP_SHARED, plain_fd);
	EXPECT_EQ(-EINVAL, add_slot(plain, 1, HIDE_FLAGS, GPA, size, mem, plain_fd, 0));
	EXPECT_EQ(-EINVAL, add_slot(plain, 1, HIDE_FLAGS, GPA, size, mem,
				    plain_flagged, 0));
	kvm_munmap(mem, size);

	close(plain_flagged);
	close(plain_fd);
	close(prot_fd);
	close(flagged);
	close(used);
	close(fd);
	kvm_vm_free(plain);
	kvm_vm_free(prot);
	kvm_vm_free(vm);
}

TEST(enable)
{
	static const struct { u64 caps, exits; int r; } tries[] = {
		{ PROTMEM_CAPS_HIDE, 0, 0 },
		{ PROTMEM_CAPS | KVM_PROTMEM_HIDE_ONLY, 0, 0 },
		{ PROTMEM_CAPS | KVM_PROTMEM_HIDE_ONLY, KVM_PROTMEM_EXIT_CONVERT, 0 },
		{ KVM_PROTMEM_HIDE_ONLY, 0, -EINVAL },
		{ PROTMEM_CAPS_HIDE | KVM_PROTMEM_GUEST_CONVERT, 0, -EINVAL },
		{ PROTMEM_CAPS_HIDE, KVM_PROTMEM_EXIT_CONVERT, -EINVAL },
	};
	struct kvm_vm *vm;
	int i;

	for (i = 0; i < ARRAY_SIZE(tries); i++) {
		vm = vm_create_barebones();
		EXPECT_EQ(tries[i].r, protmem_enable_cap(vm, tries[i].caps,
							 tries[i].exits)) {
			TH_LOG("caps %#lx exits %#lx", tries[i].caps, tries[i].exits);
		}
		kvm_vm_free(vm);
	}
}

/* The flag is for VMs whose pages nobody but KVM and userspace touches. */
TEST(flag_is_reported)
{
	struct kvm_vm *vm = vm_create_barebones();

	EXPECT_TRUE(kvm_check_cap(KVM_CAP_GUEST_MEMFD_FLAGS) &
		    GUEST_MEMFD_FLAG_NO_DIRECT_MAP);
	EXPECT_TRUE(vm_check_cap(vm, KVM_CAP_GUEST_MEMFD_FLAGS) &
		    GUEST_MEMFD_FLAG_NO_DIRECT_MAP);
	kvm_vm_free(vm);

	if (!(kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(KVM_X86_SW_PROTECTED_VM)))
		return;
	vm = vm_create_barebones_type(KVM_X86_SW_PROTECTED_VM);
	EXPECT_FALSE(vm_check_cap(vm, KVM_CAP_GUEST_MEMFD_FLAGS) &
		     GUEST_MEMFD_FLAG_NO_DIRECT_MAP);
	EXPECT_EQ(-1, __vm_create_guest_memfd(vm, PAGE_SIZE, HIDE_GMEM_FLAGS));
	EXPECT_EQ(EINVAL, errno);
	kvm_vm_free(vm);
}

int main(int argc, char **argv)
{
	static char *flag_only[] = { "protmem_hide_test", "-v", "flag", NULL };

	/* The flag needs no capability, and does with shadow page tables, too. */
	if (!protmem_tdp_is_on() && argc == 1)
		return test_harness_run(3, flag_only);

	protmem_require();
	__TEST_REQUIRE(kvm_check_cap(KVM_CAP_PROTECTED_MEMORY) & KVM_PROTMEM_HIDE_ONLY,
		       "no KVM_PROTMEM_HIDE_ONLY");
	return test_harness_run(argc, argv);
}
