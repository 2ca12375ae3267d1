// SPDX-License-Identifier: GPL-2.0-only
/*
 * Protected memory of a VM that pKVM protects: EL2 has the guest's pages, and
 * keeps the host's kernel out of them, too.  Needs kvm-arm.mode=protected.
 */
#include <pthread.h>
#include <sys/uio.h>

#include "kselftest_harness.h"
#include "protmem.h"

#define GPA		PROTMEM_GPA
#define SEED		0xe12
#define PRIVATE		KVM_MEMORY_ATTRIBUTE_PRIVATE
#define ZERO		KVM_SET_MEMORY_ATTRIBUTES2_ZERO
#define PRESERVE	KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE
#define INVALID		((u64)SMCCC_RET_INVALID_PARAMETER)

static u64 guest_hvc(u64 function, u64 a, u64 b, u64 c)
{
	struct arm_smccc_res res;

	smccc_hvc(function, a, b, c, 0, 0, 0, 0, &res);
	return res.a0;
}

static u64 guest_smc(u64 function, u64 a, u64 b, u64 c)
{
	struct arm_smccc_res res;

	smccc_smc(function, a, b, c, 0, 0, 0, 0, &res);
	return res.a0;
}

FIXTURE(pkvm) {
	struct protmem_vm p;
};

FIXTURE_SETUP(pkvm)
{
	struct protmem_opts opts = { .caps = PROTMEM_CAPS_IN_PLACE };

	protmem_vm_create(&self->p, &opts);
}

FIXTURE_TEARDOWN(pkvm)
{
	protmem_vm_free(&self->p);
}

TEST(capability)
{
	static const u64 parts[] = {
		PROTMEM_CAPS_NO_CONVERT, PROTMEM_CAPS_HIDE,
		PROTMEM_CAPS_NO_CONVERT | KVM_PROTMEM_HOST_KERNEL,
		PROTMEM_CAPS_IN_PLACE | KVM_PROTMEM_HIDE_ONLY,
	};
	struct kvm_vm *vm = vm_create_barebones();
	int i, fd;

	/* Others have nothing. */
	EXPECT_EQ(0, kvm_check_cap(KVM_CAP_PROTECTED_MEMORY));
	EXPECT_EQ(0, vm_check_cap(vm, KVM_CAP_PROTECTED_MEMORY));
	EXPECT_EQ(-EINVAL, protmem_enable_cap(vm, PROTMEM_CAPS_IN_PLACE, 0));
	kvm_vm_free(vm);

	vm = vm_create_barebones_type(KVM_VM_TYPE_ARM_PROTECTED);
	EXPECT_EQ(PROTMEM_CAPS_IN_PLACE, vm_check_cap(vm, KVM_CAP_PROTECTED_MEMORY));
	EXPECT_EQ(0, vm_check_cap(vm, KVM_CAP_GUEST_MEMFD_FLAGS) & GUEST_MEMFD_FLAG_NO_DIRECT_MAP);
	fd = __vm_create_guest_memfd(vm, PAGE_SIZE, PROTMEM_GMEM_FLAGS |
				     GUEST_MEMFD_FLAG_NO_DIRECT_MAP);
	EXPECT_EQ(-1, fd);
	EXPECT_EQ(EINVAL, errno);
	for (i = 0; i < ARRAY_SIZE(parts); i++)
		EXPECT_EQ(-EINVAL, protmem_enable_cap(vm, parts[i], 0)) TH_LOG("%#lx", parts[i]);
	EXPECT_EQ(0, protmem_enable_cap(vm, PROTMEM_CAPS_IN_PLACE, 0));
	EXPECT_EQ(-EBUSY, protmem_enable_cap(vm, PROTMEM_CAPS_IN_PLACE, 0));
	kvm_vm_free(vm);

	/* As a VMM that doesn't know of the bit asks for it. */
	vm = vm_create_barebones_type(KVM_VM_TYPE_ARM_PROTECTED);
	EXPECT_EQ(0, protmem_enable_cap(vm, PROTMEM_CAPS, 0));
	fd = vm_create_guest_memfd(vm, PAGE_SIZE, PROTMEM_GMEM_FLAGS);
	EXPECT_EQ(-1, __vm_set_user_memory_region2(vm, 1, 0, GPA, PAGE_SIZE, NULL, fd, 0));
	close(fd);
	kvm_vm_free(vm);
}

/* All of the guest's memory is protected: it would be private, and mapped. */
TEST(other_slots_are_refused)
{
	static const u32 flags[] = { 0, KVM_MEM_GUEST_MEMFD,
				     KVM_MEM_GUEST_MEMFD | KVM_MEM_UNMAP_DIRECT };
	struct kvm_vm *vm = vm_create_barebones_type(KVM_VM_TYPE_ARM_PROTECTED);
	void *mem;
	int i, fd;

	ASSERT_EQ(0, protmem_enable_cap(vm, PROTMEM_CAPS_IN_PLACE, 0));
	fd = vm_create_guest_memfd(vm, PAGE_SIZE, PROTMEM_GMEM_FLAGS);
	mem = kvm_mmap(PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
	for (i = 0; i < ARRAY_SIZE(flags); i++) {
		EXPECT_EQ(-1, __vm_set_user_memory_region2(vm, 1, flags[i], GPA, PAGE_SIZE,
							   mem, fd, 0));
		EXPECT_EQ(EINVAL, errno) TH_LOG("%#x", flags[i]);
	}
	EXPECT_EQ(0, __vm_set_user_memory_region2(vm, 1, PROTMEM_FLAGS, GPA, PAGE_SIZE,
						  mem, fd, 0));
	kvm_munmap(mem, PAGE_SIZE);
	close(fd);
	kvm_vm_free(vm);
}

/* As a VMM starts a guest: the image is shared, then private before the first run. */
TEST_F(pkvm, image_is_kept)
{
	struct protmem_vm *p = &self->p;
	u64 val;

	protmem_fill(p, GPA, 2 * PAGE_SIZE, SEED);
	ASSERT_EQ(0, protmem_set_attr(p->gmem, 0, p->size, PRIVATE, PRESERVE, NULL));
	EXPECT_EQ(BUS_ADRERR, protmem_try_read(protmem_hva(p, GPA), &val));
	EXPECT_EQ(0, protmem_call(p, 0, guest_check, GPA, 2 * PAGE_SIZE, SEED));
	EXPECT_EQ(0, protmem_call(p, 0, guest_check_zero, GPA + 2 * PAGE_SIZE, PAGE_SIZE));
	EXPECT_TRUE(protmem_is_private(p, GPA));
}

/* Until then the VMM may take it back, and drop it. */
TEST_F(pkvm, before_the_first_run)
{
	struct protmem_vm *p = &self->p;

	protmem_fill(p, GPA, 2 * PAGE_SIZE, SEED);
	ASSERT_EQ(0, protmem_set_attr(p->gmem, 0, p->size, PRIVATE, PRESERVE, NULL));
	ASSERT_EQ(0, protmem_set_attr(p->gmem, 0, PAGE_SIZE, 0, PRESERVE, NULL));
	EXPECT_EQ(PAGE_SIZE, protmem_mismatch(protmem_hva(p, GPA), GPA, PAGE_SIZE, SEED));
	ASSERT_EQ(0, protmem_set_attr(p->gmem, PAGE_SIZE, PAGE_SIZE, 0, ZERO, NULL));
	EXPECT_EQ(PAGE_SIZE, protmem_first_nonzero(protmem_hva(p, GPA + PAGE_SIZE), PAGE_SIZE));
	ASSERT_EQ(0, protmem_punch(p->gmem, 0, PAGE_SIZE));
	EXPECT_EQ(PAGE_SIZE, protmem_first_nonzero(protmem_hva(p, GPA), PAGE_SIZE));
}

/* What the guest touches is its own, whatever the VMM thinks. */
TEST_F(pkvm, touched_is_private)
{
	struct protmem_vm *p = &self->p;
	u64 val;

	protmem_fill(p, GPA, PAGE_SIZE, SEED);
	EXPECT_FALSE(protmem_is_private(p, GPA));
	EXPECT_EQ(0, protmem_call(p, 0, guest_check, GPA, PAGE_SIZE, SEED));
	EXPECT_TRUE(protmem_is_private(p, GPA));
	EXPECT_FALSE(protmem_is_private(p, GPA + PAGE_SIZE));
	EXPECT_EQ(BUS_ADRERR, protmem_try_read(protmem_hva(p, GPA), &val));
	EXPECT_EQ(BUS_ADRERR, protmem_try_write(protmem_hva(p, GPA), 1));
	EXPECT_EQ(0, protmem_call(p, 0, guest_check, GPA, PAGE_SIZE, SEED));
}

TEST_F(pkvm, share_and_unshare)
{
	struct protmem_vm *p = &self->p;
	u64 val;
	int i;

	protmem_call(p, 0, guest_fill, GPA, 2 * PAGE_SIZE, SEED);
	for (i = 0; i < 3; i++) {
		ASSERT_EQ(0, protmem_make_shared(p, GPA, PAGE_SIZE));
		EXPECT_FALSE(protmem_is_private(p, GPA));
		EXPECT_EQ(PAGE_SIZE, protmem_mismatch(p->mem, GPA, PAGE_SIZE, SEED + i));
		EXPECT_EQ(BUS_ADRERR, protmem_try_read(protmem_hva(p, GPA + PAGE_SIZE), &val));
		protmem_fill(p, GPA, PAGE_SIZE, SEED + i + 1);
		EXPECT_EQ(0, protmem_call(p, 0, guest_check, GPA, PAGE_SIZE, SEED + i + 1));

		ASSERT_EQ(0, protmem_make_private(p, GPA, PAGE_SIZE));
		EXPECT_TRUE(protmem_is_private(p, GPA));
		EXPECT_EQ(BUS_ADRERR, protmem_try_read(protmem_hva(p, GPA), &val));
		EXPECT_EQ(0, protmem_call(p, 0, guest_check, GPA, PAGE_SIZE, SEED + i + 1));
	}
	EXPECT_EQ(0, protmem_call(p, 0, guest_check, GPA + PAGE_SIZE, PAGE_SIZE, SEED));
}

/* Once more is as good, and a page that nobody has touched is one all the same. */
TEST_F(pkvm, calls_that_change_nothing)
{
	struct protmem_vm *p = &self->p;
	u64 val;

	ASSERT_EQ(0, protmem_make_shared(p, GPA, PAGE_SIZE));
	ASSERT_EQ(0, protmem_make_shared(p, GPA, PAGE_SIZE));
	EXPECT_EQ(0, protmem_try_write(protmem_hva(p, GPA), 0x1234));
	EXPECT_EQ(0x1234, protmem_call(p, 0, guest_read64, GPA));
	ASSERT_EQ(0, protmem_make_private(p, GPA, PAGE_SIZE));
	ASSERT_EQ(0, protmem_make_private(p, GPA, PAGE_SIZE));
	EXPECT_EQ(0x1234, protmem_call(p, 0, guest_read64, GPA));

	EXPECT_EQ(0, protmem_try_write(protmem_hva(p, GPA + PAGE_SIZE), 0x5678));
	ASSERT_EQ(0, protmem_make_private(p, GPA + PAGE_SIZE, PAGE_SIZE));
	EXPECT_EQ(BUS_ADRERR, protmem_try_read(protmem_hva(p, GPA + PAGE_SIZE), &val));
	EXPECT_EQ(0x5678, protmem_call(p, 0, guest_read64, GPA + PAGE_SIZE));
}

TEST_F(pkvm, bad_arguments)
{
	const u32 functions[] = { PROTMEM_TO_PRIVATE, PROTMEM_TO_SHARED };
	struct protmem_vm *p = &self->p;
	const u64 elsewhere[] = { PROTMEM_MMIO_GPA, GPA + p->size, -PAGE_SIZE };
	int i, j;

	EXPECT_EQ(PAGE_SIZE, protmem_call(p, 0, guest_hvc, PROTMEM_HYP_MEMINFO));
	for (i = 0; i < ARRAY_SIZE(functions); i++) {
		EXPECT_EQ(INVALID, protmem_call(p, 0, guest_hvc, functions[i], GPA + 1));
		EXPECT_EQ(INVALID, protmem_call(p, 0, guest_hvc, functions[i], GPA, 1));
		EXPECT_EQ(INVALID, protmem_call(p, 0, guest_hvc, functions[i], GPA, 0, 1));
		for (j = 0; j < ARRAY_SIZE(elsewhere); j++)
			EXPECT_EQ(INVALID, protmem_call(p, 0, guest_hvc, functions[i],
							elsewhere[j]));
		/* EL2 does not see the guest ask, and nothing changes. */
		EXPECT_EQ((u64)SMCCC_RET_NOT_SUPPORTED,
			  protmem_call(p, 0, guest_smc, functions[i], GPA));
		EXPECT_FALSE(protmem_is_private(p, GPA));
		EXPECT_EQ(0, protmem_try_write(protmem_hva(p, GPA), 1));
	}
	protmem_call(p, 0, guest_fill, GPA, PAGE_SIZE, SEED);
	EXPECT_EQ((u64)SMCCC_RET_NOT_SUPPORTED,
		  protmem_call(p, 0, guest_smc, PROTMEM_TO_SHARED, GPA));
	EXPECT_TRUE(protmem_is_private(p, GPA));
	EXPECT_EQ(0, protmem_call(p, 0, guest_check, GPA, PAGE_SIZE, SEED));
}

/* The guest runs: nothing of its memory comes back while it lives. */
TEST_F(pkvm, vmm_takes_nothing_back)
{
	struct protmem_vm *p = &self->p;

	protmem_call(p, 0, guest_fill, GPA, 2 * PAGE_SIZE, SEED);
	ASSERT_EQ(0, protmem_make_shared(p, GPA + PAGE_SIZE, PAGE_SIZE));

	EXPECT_EQ(-EPERM, protmem_set_attr(p->gmem, 0, PAGE_SIZE, 0, PRESERVE, NULL));
	EXPECT_EQ(-EPERM, protmem_set_attr(p->gmem, 0, PAGE_SIZE, 0, ZERO, NULL));
	EXPECT_EQ(-EPERM, protmem_set_attr(p->gmem, 0, PAGE_SIZE, PRIVATE, ZERO, NULL));
	EXPECT_EQ(-EPERM, protmem_punch(p->gmem, 0, PAGE_SIZE));
	/* Shared it is the guest's, too. */
	EXPECT_EQ(-EBUSY, protmem_punch(p->gmem, PAGE_SIZE, PAGE_SIZE));
	EXPECT_EQ(-EBUSY, protmem_set_attr(p->gmem, PAGE_SIZE, PAGE_SIZE, 0, ZERO, NULL));
	EXPECT_EQ(-EBUSY, protmem_set_attr(p->gmem, PAGE_SIZE, PAGE_SIZE, PRIVATE, ZERO, NULL));
	EXPECT_EQ(-EPERM, protmem_delete_slot(p, PROTMEM_SLOT));
	EXPECT_EQ(-EOPNOTSUPP, protmem_reset(p));

	EXPECT_EQ(0, protmem_call(p, 0, guest_check, GPA, 2 * PAGE_SIZE, SEED));
	EXPECT_EQ(PAGE_SIZE, protmem_mismatch(protmem_hva(p, GPA + PAGE_SIZE),
					      GPA + PAGE_SIZE, PAGE_SIZE, SEED));
}

/* Dropping what is not there is done up to where there is something. */
TEST_F(pkvm, busy_where_it_stopped)
{
	const u64 first = SZ_2M - PAGE_SIZE;
	struct protmem_vm *p = &self->p;
	u64 stopped = 0;

	/* Nothing of the 2 MiB before it is populated. */
	ASSERT_EQ(0, protmem_make_shared(p, GPA + SZ_2M, PAGE_SIZE));
	EXPECT_EQ(-EBUSY, protmem_set_attr(p->gmem, first, 2 * PAGE_SIZE, PRIVATE, ZERO,
					   &stopped));
	EXPECT_EQ(SZ_2M, stopped);
	EXPECT_TRUE(protmem_is_private(p, GPA + first));
	EXPECT_FALSE(protmem_is_private(p, GPA + SZ_2M));
}

/* The VMM may give up what is shared; the guest gets it back by unsharing. */
TEST_F(pkvm, vmm_lets_go)
{
	struct protmem_vm *p = &self->p;
	u64 val;

	protmem_call(p, 0, guest_fill, GPA, PAGE_SIZE, SEED);
	ASSERT_EQ(0, protmem_make_shared(p, GPA, PAGE_SIZE));
	ASSERT_EQ(0, protmem_set_attr(p->gmem, 0, PAGE_SIZE, PRIVATE, PRESERVE, NULL));
	EXPECT_EQ(BUS_ADRERR, protmem_try_read(protmem_hva(p, GPA), &val));
	ASSERT_EQ(0, protmem_make_private(p, GPA, PAGE_SIZE));
	EXPECT_EQ(0, protmem_call(p, 0, guest_check, GPA, PAGE_SIZE, SEED));
	ASSERT_EQ(0, protmem_make_shared(p, GPA, PAGE_SIZE));
	EXPECT_EQ(PAGE_SIZE, protmem_mismatch(p->mem, GPA, PAGE_SIZE, SEED));
}

/* No reference to a page can be had, so that it can be unshared at any time. */
TEST_F(pkvm, nothing_is_pinned)
{
	struct protmem_vm *p = &self->p;
	u64 buf[8];
	struct iovec local = { .iov_base = buf, .iov_len = sizeof(buf) };
	struct iovec remote = { .iov_base = p->mem, .iov_len = sizeof(buf) };
	int pipefd[2];

	protmem_call(p, 0, guest_fill, GPA, 2 * PAGE_SIZE, SEED);
	ASSERT_EQ(0, protmem_make_shared(p, GPA, PAGE_SIZE));

	EXPECT_EQ(-1, process_vm_readv(getpid(), &local, 1, &remote, 1, 0));
	EXPECT_EQ(EFAULT, errno);

	/* A system call that copies has what the VMM has. */
	ASSERT_EQ(0, pipe(pipefd));
	EXPECT_EQ(sizeof(buf), write(pipefd[1], p->mem, sizeof(buf)));
	EXPECT_EQ(-1, write(pipefd[1], p->mem + PAGE_SIZE, sizeof(buf)));
	EXPECT_EQ(EFAULT, errno);
	close(pipefd[0]);
	close(pipefd[1]);
}

static int lifecycle(struct __test_metadata *_metadata, bool close_first)
{
	struct protmem_opts opts = { .caps = PROTMEM_CAPS_IN_PLACE };
	struct protmem_vm p;
	int r = 0;
	s64 off;

	protmem_vm_create(&p, &opts);
	protmem_call(&p, 0, guest_fill, GPA, p.size, SEED);
	EXPECT_EQ(0, protmem_make_shared(&p, GPA, 4 * PAGE_SIZE));
	EXPECT_EQ(0, protmem_make_private(&p, GPA, 2 * PAGE_SIZE));
	if (close_first) {
		off = protmem_off_direct_map();
		/* The mapping and the slot's own reference are all that is left. */
		kvm_munmap(p.mem, p.size);
		close(p.gmem);
		p.gmem = -1;
		p.mem = kvm_mmap(p.size, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1);
		r = __vcpu_run(p.vcpu[0]) ? errno : 0;
		/* They must not be given back, and scrubbed, before EL2 has done so. */
		usleep(300000);
		EXPECT_EQ(off, protmem_off_direct_map());
		EXPECT_EQ(0, protmem_read_sysfs("quarantined_bytes"));
	}
	protmem_vm_free(&p);
	return r;
}

/* EL2 gives all pages back, and they come back to the direct map. */
TEST(memory_comes_back)
{
	u64 i, n = protmem_test_iterations(5);
	s64 before = protmem_off_direct_map();

	for (i = 0; i < n; i++)
		lifecycle(_metadata, false);
	EXPECT_EQ(before, protmem_wait_off_direct_map(before));
}

/* EL2 has the pages when userspace closes the file. */
TEST(file_is_closed_first)
{
	s64 before = protmem_off_direct_map();

	EXPECT_EQ(EIO, lifecycle(_metadata, true));
	EXPECT_EQ(before, protmem_wait_off_direct_map(before));
}

struct race {
	struct protmem_vm *p;
	int cpu;
	bool done;
	u64 failed;
};

/* Shares and unshares a page, and looks for what it has put there. */
static u64 guest_race(u64 gpa, u64 n, u64 seed, u64 unused)
{
	u64 i, a;

	for (i = 0; i < n; i++) {
		guest_fill(gpa, PAGE_SIZE, seed + i, 0);
		if (guest_convert(gpa, PAGE_SIZE, PROTMEM_TO_SHARED, 0))
			return 1;
		a = guest_check(gpa, PAGE_SIZE, seed + i, 0);
		if (a)
			return a;
		if (guest_convert(gpa, PAGE_SIZE, PROTMEM_TO_PRIVATE, 0))
			return 2;
		a = guest_check(gpa, PAGE_SIZE, seed + i, 0);
		if (a)
			return a;
	}
	return 0;
}

/* What it may do to a page that others share and unshare at the same time. */
static u64 guest_convert_race(u64 gpa, u64 n, u64 to, u64 unused)
{
	u64 i;

	for (i = 0; i < n; i++) {
		if (guest_convert(gpa, PAGE_SIZE, (i & 1) ? PROTMEM_TO_SHARED : to, 0))
			return 1;
		guest_read64(gpa, 0, 0, 0);
	}
	return 0;
}

static void *race_vcpu(void *arg)
{
	struct race *r = arg;

	r->failed = protmem_run(r->p, r->cpu);
	WRITE_ONCE(r->done, true);
	return NULL;
}

/*
 * Userspace touches the pages all the time.  If its mapping outlived the state, EL2 would
 * take the page from the guest, which would find it empty, or end.
 */
TEST(converted_under_accesses)
{
	u64 n = protmem_test_iterations(5) * 20, seen = 0, refused = 0, val;
	struct protmem_opts opts = { .caps = PROTMEM_CAPS_IN_PLACE, .nr_vcpus = 4 };
	struct protmem_vm p;
	struct race r[4];
	pthread_t t[4];
	bool done;
	int i;

	protmem_vm_create(&p, &opts);
	for (i = 0; i < 4; i++) {
		r[i] = (struct race){ .p = &p, .cpu = i };
		if (i < 2)
			protmem_prepare(&p, i, guest_race, GPA + i * PAGE_SIZE, n,
					SEED + i, 0);
		else
			protmem_prepare(&p, i, guest_convert_race, GPA + 2 * PAGE_SIZE, n,
					i == 2 ? PROTMEM_TO_PRIVATE : PROTMEM_TO_SHARED, 0);
		ASSERT_EQ(0, pthread_create(&t[i], NULL, race_vcpu, &r[i]));
	}
	do {
		done = true;
		for (i = 0; i < 4; i++) {
			if (protmem_try_read(protmem_hva(&p, GPA + min(i, 2) * PAGE_SIZE), &val))
				refused++;
			else
				seen++;
			done &= READ_ONCE(r[i].done);
		}
	} while (!done);
	for (i = 0; i < 4; i++) {
		pthread_join(t[i], NULL);
		EXPECT_EQ(0, r[i].failed) TH_LOG("vCPU %d", i);
	}
	TH_LOG("userspace got at a page %lu times, and did not %lu times", seen, refused);
	EXPECT_NE(0, seen);
	EXPECT_NE(0, refused);
	protmem_vm_free(&p);
}

int main(int argc, char **argv)
{
	struct kvm_vm *vm;
	s64 lost, now;
	int fd, r;

	fd = open_kvm_dev_path_or_exit();
	close(fd);
	fd = __kvm_ioctl(open("/dev/kvm", O_RDWR), KVM_CREATE_VM,
			 (void *)KVM_VM_TYPE_ARM_PROTECTED);
	__TEST_REQUIRE(fd >= 0, "no protected VMs: it needs kvm-arm.mode=protected");
	close(fd);
	vm = vm_create_barebones_type(KVM_VM_TYPE_ARM_PROTECTED);
	__TEST_REQUIRE(vm_check_cap(vm, KVM_CAP_PROTECTED_MEMORY),
		       "KVM_CAP_PROTECTED_MEMORY is not supported (the kernel log says why)");
	kvm_vm_free(vm);

	/* No page of all these guests may have been taken by force. */
	lost = protmem_read_sysfs("lost");
	__TEST_REQUIRE(lost >= 0, "no /sys/kernel/mm/unmapped_pool/lost");
	r = test_harness_run(argc, argv);
	now = protmem_read_sysfs("lost");
	if (now == lost)
		return r;
	ksft_print_msg("EL2 took %ld pages from guests, as the kernel accessed them\n",
		       now - lost);
	return KSFT_FAIL;
}
