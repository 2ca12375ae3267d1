// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM_CAP_PROTECTED_MEMORY: what can be asked for, and every wrong way to ask.
 */
#include <string.h>

#include "kselftest_harness.h"
#include "kvm_syscalls.h"
#include "protmem.h"

#define KNOWN_CAPS	(PROTMEM_CAPS | KVM_PROTMEM_HOST_KERNEL | \
			 KVM_PROTMEM_HIDE_ONLY)

static int enable(struct kvm_vm *vm, struct kvm_enable_cap *cap)
{
	return __vm_ioctl(vm, KVM_ENABLE_CAP, cap) ? -errno : 0;
}

static struct kvm_vm *create_with_cap(void)
{
	struct kvm_vm *vm = vm_create_barebones();
	int r = protmem_enable_cap(vm, PROTMEM_CAPS, 0);

	TEST_ASSERT(!r, "Enabling failed: %d", r);
	return vm;
}

TEST(check_extension)
{
	unsigned int mask = kvm_check_cap(KVM_CAP_PROTECTED_MEMORY);
	struct kvm_vm *vm = vm_create_barebones();

	EXPECT_EQ(PROTMEM_CAPS, mask & PROTMEM_CAPS);
	EXPECT_EQ(0, mask & ~KNOWN_CAPS);
	EXPECT_EQ(mask, vm_check_cap(vm, KVM_CAP_PROTECTED_MEMORY));

	kvm_vm_free(vm);
}

TEST(check_attributes_extension)
{
	struct kvm_vm *vm = vm_create_barebones();

	EXPECT_EQ(KVM_MEMORY_ATTRIBUTE_PRIVATE,
		  kvm_check_cap(KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES));
	EXPECT_EQ(0, vm_check_cap(vm, KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES));
	ASSERT_EQ(0, protmem_enable_cap(vm, PROTMEM_CAPS, 0));
	EXPECT_EQ(KVM_MEMORY_ATTRIBUTE_PRIVATE,
		  vm_check_cap(vm, KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES));
	/* The two-backing model stays out of it. */
	EXPECT_EQ(0, vm_check_cap(vm, KVM_CAP_MEMORY_ATTRIBUTES));

	kvm_vm_free(vm);
}

TEST(other_vm_types)
{
	unsigned int types = kvm_check_cap(KVM_CAP_VM_TYPES);
	struct kvm_enable_cap cap = {
		.cap = KVM_CAP_PROTECTED_MEMORY,
		.args = { PROTMEM_CAPS },
	};
	int kvm_fd, fd, type, tried = 0;

	kvm_fd = open_kvm_dev_path_or_exit();
	for (type = 1; type < 32; type++) {
		if (!(types & BIT(type)))
			continue;
		fd = ioctl(kvm_fd, KVM_CREATE_VM, (unsigned long)type);
		if (fd < 0)
			continue;
		tried++;
		EXPECT_EQ(0, ioctl(fd, KVM_CHECK_EXTENSION,
				   KVM_CAP_PROTECTED_MEMORY)) {
			TH_LOG("VM type %d", type);
		}
		EXPECT_EQ(-1, ioctl(fd, KVM_ENABLE_CAP, &cap));
		EXPECT_EQ(EINVAL, errno);
		close(fd);
	}
	close(kvm_fd);
	if (!tried)
		SKIP(return, "this host has no other VM type");
}

TEST(enable_valid)
{
	static const u64 valid[][2] = {
		{ PROTMEM_CAPS, 0 },
		{ PROTMEM_CAPS_NO_CONVERT, 0 },
		{ PROTMEM_CAPS, KVM_PROTMEM_EXIT_CONVERT },
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(valid); i++) {
		struct kvm_vm *vm = vm_create_barebones();

		EXPECT_EQ(0, protmem_enable_cap(vm, valid[i][0], valid[i][1])) {
			TH_LOG("args %#lx %#lx", valid[i][0], valid[i][1]);
		}
		kvm_vm_free(vm);
	}
}

TEST(enable_bad_bits)
{
	static const u64 bad[] = {
		0,
		KVM_PROTMEM_DIRECT_MAP,
		KVM_PROTMEM_USER,
		KVM_PROTMEM_GUEST_CONVERT,
		KVM_PROTMEM_DIRECT_MAP | KVM_PROTMEM_GUEST_CONVERT,
		KVM_PROTMEM_USER | KVM_PROTMEM_GUEST_CONVERT,
		PROTMEM_CAPS | BIT_ULL(3),
		PROTMEM_CAPS | KVM_PROTMEM_HOST_KERNEL,
		PROTMEM_CAPS | BIT_ULL(6),
		PROTMEM_CAPS | BIT_ULL(32),
		PROTMEM_CAPS | BIT_ULL(63),
		-1ull,
	};
	struct kvm_vm *vm = vm_create_barebones();
	int i;

	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		EXPECT_EQ(-EINVAL, protmem_enable_cap(vm, bad[i], 0)) {
			TH_LOG("args[0] %#lx", bad[i]);
		}
	}

	/* None of them left anything behind. */
	EXPECT_EQ(0, protmem_enable_cap(vm, PROTMEM_CAPS, 0));
	kvm_vm_free(vm);
}

TEST(enable_bad_args)
{
	static const struct kvm_enable_cap bad[] = {
		{ .args = { PROTMEM_CAPS, BIT(1) } },
		{ .args = { PROTMEM_CAPS, BIT_ULL(63) } },
		{ .args = { PROTMEM_CAPS, -1ull } },
		{ .args = { PROTMEM_CAPS_NO_CONVERT, KVM_PROTMEM_EXIT_CONVERT } },
		{ .args = { PROTMEM_CAPS, 0, 1 } },
		{ .args = { PROTMEM_CAPS, 0, 0, 1 } },
		{ .args = { PROTMEM_CAPS }, .flags = 1 },
	};
	struct kvm_vm *vm = vm_create_barebones();
	int i;

	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		struct kvm_enable_cap cap = bad[i];

		cap.cap = KVM_CAP_PROTECTED_MEMORY;
		EXPECT_EQ(-EINVAL, enable(vm, &cap)) {
			TH_LOG("bad argument set %d", i);
		}
	}
	EXPECT_EQ(0, protmem_enable_cap(vm, PROTMEM_CAPS, 0));
	kvm_vm_free(vm);
}

TEST(enable_after_vcpu)
{
	struct kvm_vm *vm = vm_create_barebones();

	__vm_vcpu_add(vm, 0);
	EXPECT_EQ(-EBUSY, protmem_enable_cap(vm, PROTMEM_CAPS, 0));
	kvm_vm_free(vm);
}

TEST(enable_after_memslot)
{
	struct kvm_vm *vm = vm_create_barebones();
	void *mem = kvm_mmap(PAGE_SIZE, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS, -1);

	vm_set_user_memory_region(vm, 0, 0, 0, PAGE_SIZE, mem);
	EXPECT_EQ(-EBUSY, protmem_enable_cap(vm, PROTMEM_CAPS, 0));
	kvm_vm_free(vm);
	kvm_munmap(mem, PAGE_SIZE);
}

TEST(enable_on_vcpu_fd)
{
	struct kvm_enable_cap cap = {
		.cap = KVM_CAP_PROTECTED_MEMORY,
		.args = { PROTMEM_CAPS },
	};
	struct kvm_vm *vm = vm_create_barebones();
	struct kvm_vcpu *vcpu = __vm_vcpu_add(vm, 0);

	EXPECT_EQ(-1, __vcpu_ioctl(vcpu, KVM_ENABLE_CAP, &cap));
	EXPECT_EQ(EINVAL, errno);
	kvm_vm_free(vm);
}

TEST(enable_twice)
{
	struct kvm_vm *vm = create_with_cap();
	int r;

	EXPECT_EQ(-EBUSY, protmem_enable_cap(vm, PROTMEM_CAPS_NO_CONVERT, 0));
	EXPECT_EQ(-EBUSY, protmem_enable_cap(vm, PROTMEM_CAPS,
					     KVM_PROTMEM_EXIT_CONVERT));
	/* The same again may be told apart from a change, or not. */
	r = protmem_enable_cap(vm, PROTMEM_CAPS, 0);
	EXPECT_TRUE(!r || r == -EBUSY);
	kvm_vm_free(vm);
}

/* Slots that must be refused, each for one reason only. */
TEST(memslot_flags)
{
	const u64 size = 16 * PAGE_SIZE;
	struct kvm_vm *vm = create_with_cap();
	struct kvm_vm *plain = vm_create_barebones();
	int none = vm_create_guest_memfd(vm, size, 0);
	int mmap_only = vm_create_guest_memfd(vm, size, GUEST_MEMFD_FLAG_MMAP);
	int good = vm_create_guest_memfd(vm, size, PROTMEM_GMEM_FLAGS);
	int plain_fd = vm_create_guest_memfd(plain, size, PROTMEM_GMEM_FLAGS);
	void *mem = kvm_mmap(size, PROT_READ | PROT_WRITE, MAP_SHARED, good);
	const struct {
		const char *why;
		struct kvm_vm *vm;
		u32 flags;
		int fd;
	} bad[] = {
		{ "USER alone", vm,
		  KVM_MEM_GUEST_MEMFD | KVM_MEM_UNMAP_USER, good },
		{ "DIRECT alone", vm,
		  KVM_MEM_GUEST_MEMFD | KVM_MEM_UNMAP_DIRECT, good },
		{ "no guest_memfd", vm,
		  KVM_MEM_UNMAP_DIRECT | KVM_MEM_UNMAP_USER, good },
		{ "USER alone, no guest_memfd", vm, KVM_MEM_UNMAP_USER, -1 },
		{ "DIRECT alone, no guest_memfd", vm, KVM_MEM_UNMAP_DIRECT, -1 },
		{ "guest_memfd without flags", vm, PROTMEM_FLAGS, none },
		{ "guest_memfd not INIT_SHARED", vm, PROTMEM_FLAGS, mmap_only },
		{ "dirty logging", vm,
		  PROTMEM_FLAGS | KVM_MEM_LOG_DIRTY_PAGES, good },
		{ "read-only", vm, PROTMEM_FLAGS | KVM_MEM_READONLY, good },
		{ "unknown flag", vm, PROTMEM_FLAGS | BIT(5), good },
		{ "unknown flag 31", vm, PROTMEM_FLAGS | BIT(31), good },
		{ "no capability", plain, PROTMEM_FLAGS, plain_fd },
		{ "another VM's guest_memfd", vm, PROTMEM_FLAGS, plain_fd },
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		EXPECT_EQ(-1, __vm_set_user_memory_region2(bad[i].vm, 1,
							   bad[i].flags,
							   PROTMEM_GPA, size,
							   mem, bad[i].fd, 0)) {
			TH_LOG("%s", bad[i].why);
		}
		EXPECT_EQ(EINVAL, errno) {
			TH_LOG("%s", bad[i].why);
		}
	}

	/* The ioctl that cannot carry a guest_memfd. */
	EXPECT_EQ(-1, __vm_set_user_memory_region(vm, 1, KVM_MEM_UNMAP_DIRECT |
						  KVM_MEM_UNMAP_USER,
						  PROTMEM_GPA, size, mem));
	EXPECT_EQ(EINVAL, errno);
	EXPECT_EQ(-1, __vm_set_user_memory_region(vm, 1, PROTMEM_FLAGS,
						  PROTMEM_GPA, size, mem));
	EXPECT_EQ(EINVAL, errno);

	/* And the same without anything wrong. */
	EXPECT_EQ(0, __vm_set_user_memory_region2(vm, 1, PROTMEM_FLAGS,
						  PROTMEM_GPA, size, mem, good,
						  0));

	kvm_munmap(mem, size);
	close(plain_fd);
	close(good);
	close(mmap_only);
	close(none);
	kvm_vm_free(plain);
	kvm_vm_free(vm);
}

TEST(memslot_change_flags)
{
	const u64 size = 16 * PAGE_SIZE;
	static const u32 change[] = {
		KVM_MEM_GUEST_MEMFD,
		KVM_MEM_GUEST_MEMFD | KVM_MEM_UNMAP_DIRECT,
		PROTMEM_FLAGS | KVM_MEM_LOG_DIRTY_PAGES,
		PROTMEM_FLAGS | KVM_MEM_READONLY,
		0,
	};
	struct kvm_vm *vm = create_with_cap();
	int fd = vm_create_guest_memfd(vm, size, PROTMEM_GMEM_FLAGS);
	void *mem = kvm_mmap(size, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
	int i;

	vm_set_user_memory_region2(vm, 1, PROTMEM_FLAGS, PROTMEM_GPA, size, mem,
				   fd, 0);
	for (i = 0; i < ARRAY_SIZE(change); i++) {
		EXPECT_EQ(-1, __vm_set_user_memory_region2(vm, 1, change[i],
							   PROTMEM_GPA, size,
							   mem, fd, 0)) {
			TH_LOG("flags %#x", change[i]);
		}
		EXPECT_EQ(EINVAL, errno);
	}
	/* Nor can it be moved. */
	EXPECT_EQ(-1, __vm_set_user_memory_region2(vm, 1, PROTMEM_FLAGS,
						   PROTMEM_GPA + SZ_2M, size,
						   mem, fd, 0));
	EXPECT_EQ(EINVAL, errno);

	kvm_munmap(mem, size);
	close(fd);
	kvm_vm_free(vm);
}

/* The properties are the memory's, fixed by the first bind. */
TEST(memslot_bind_agrees)
{
	const u64 half = 16 * PAGE_SIZE;
	struct kvm_vm *vm = create_with_cap();
	int fd = vm_create_guest_memfd(vm, 2 * half, PROTMEM_GMEM_FLAGS);
	u8 *mem = kvm_mmap(2 * half, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
	int fd2;

	vm_set_user_memory_region2(vm, 1, PROTMEM_FLAGS, PROTMEM_GPA, half, mem,
				   fd, 0);
	EXPECT_EQ(-1, __vm_set_user_memory_region2(vm, 2, KVM_MEM_GUEST_MEMFD,
						   PROTMEM_GPA + half, half,
						   mem + half, fd, half));
	EXPECT_EQ(EINVAL, errno);
	EXPECT_EQ(0, __vm_set_user_memory_region2(vm, 2, PROTMEM_FLAGS,
						  PROTMEM_GPA + half, half,
						  mem + half, fd, half));

	/* Also when the slot that fixed them is gone. */
	vm_set_user_memory_region2(vm, 2, 0, 0, 0, NULL, 0, 0);
	vm_set_user_memory_region2(vm, 1, 0, 0, 0, NULL, 0, 0);
	EXPECT_EQ(-1, __vm_set_user_memory_region2(vm, 1, KVM_MEM_GUEST_MEMFD,
						   PROTMEM_GPA, half, mem, fd,
						   0));
	EXPECT_EQ(EINVAL, errno);

	/* And the other way round. */
	fd2 = vm_create_guest_memfd(vm, 2 * half, PROTMEM_GMEM_FLAGS);
	vm_set_user_memory_region2(vm, 3, KVM_MEM_GUEST_MEMFD, 2 * PROTMEM_GPA, half, mem,
				   fd2, 0);
	EXPECT_EQ(-1, __vm_set_user_memory_region2(vm, 4, PROTMEM_FLAGS,
						   2 * PROTMEM_GPA + half, half,
						   mem + half, fd2, half));
	EXPECT_EQ(EINVAL, errno);

	kvm_munmap(mem, 2 * half);
	close(fd2);
	close(fd);
	kvm_vm_free(vm);
}

/* An offset belongs to one gfn for good. */
TEST(memslot_other_gfn)
{
	const u64 half = 16 * PAGE_SIZE;
	struct kvm_vm *vm = create_with_cap();
	int fd = vm_create_guest_memfd(vm, 2 * half, PROTMEM_GMEM_FLAGS);
	u8 *mem = kvm_mmap(2 * half, PROT_READ | PROT_WRITE, MAP_SHARED, fd);

	vm_set_user_memory_region2(vm, 1, PROTMEM_FLAGS, PROTMEM_GPA, half, mem,
				   fd, 0);
	/* Another offset is free to go elsewhere. */
	EXPECT_EQ(0, __vm_set_user_memory_region2(vm, 2, PROTMEM_FLAGS,
						  PROTMEM_GPA + SZ_1G, half,
						  mem + half, fd, half));
	vm_set_user_memory_region2(vm, 1, 0, 0, 0, NULL, 0, 0);
	EXPECT_EQ(-1, __vm_set_user_memory_region2(vm, 1, PROTMEM_FLAGS,
						   PROTMEM_GPA + PAGE_SIZE,
						   half, mem, fd, 0));
	EXPECT_EQ(EINVAL, errno);
	EXPECT_EQ(-1, __vm_set_user_memory_region2(vm, 1, PROTMEM_FLAGS,
						   PROTMEM_GPA + SZ_2M,
						   PAGE_SIZE,
						   mem + half - PAGE_SIZE, fd,
						   half - PAGE_SIZE));
	EXPECT_EQ(EINVAL, errno);
	/* A part of it at its own gfn is as good as the whole. */
	EXPECT_EQ(0, __vm_set_user_memory_region2(vm, 1, PROTMEM_FLAGS,
						  PROTMEM_GPA + PAGE_SIZE,
						  PAGE_SIZE, mem + PAGE_SIZE,
						  fd, PAGE_SIZE));

	kvm_munmap(mem, 2 * half);
	close(fd);
	kvm_vm_free(vm);
}

TEST(second_vm)
{
	const u64 size = 16 * PAGE_SIZE;
	struct kvm_vm *vm = create_with_cap();
	struct kvm_vm *other = create_with_cap();
	struct kvm_vm *plain = vm_create_barebones();
	int fd = vm_create_guest_memfd(vm, size, PROTMEM_GMEM_FLAGS);
	void *mem = kvm_mmap(size, PROT_READ | PROT_WRITE, MAP_SHARED, fd);

	vm_set_user_memory_region2(vm, 1, PROTMEM_FLAGS, PROTMEM_GPA, size, mem,
				   fd, 0);
	EXPECT_EQ(-1, __vm_set_user_memory_region2(other, 1, PROTMEM_FLAGS,
						   PROTMEM_GPA, size, mem, fd,
						   0));
	EXPECT_EQ(EINVAL, errno);
	EXPECT_EQ(-1, __vm_set_user_memory_region2(plain, 1, KVM_MEM_GUEST_MEMFD,
						   PROTMEM_GPA, size, mem, fd,
						   0));
	EXPECT_EQ(EINVAL, errno);

	kvm_munmap(mem, size);
	close(fd);
	kvm_vm_free(plain);
	kvm_vm_free(other);
	kvm_vm_free(vm);
}

/* One address space: SMM would be a second view of the memory. */
TEST(no_smm)
{
	const u64 size = 16 * PAGE_SIZE;
	struct kvm_vm *vm = create_with_cap();
	int fd = vm_create_guest_memfd(vm, size, PROTMEM_GMEM_FLAGS);
	void *mem = kvm_mmap(size, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
	void *anon = kvm_mmap(size, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS, -1);
	struct kvm_vcpu *vcpu;

	EXPECT_EQ(0, vm_check_cap(vm, KVM_CAP_X86_SMM));
	EXPECT_LE(vm_check_cap(vm, KVM_CAP_MULTI_ADDRESS_SPACE), 1);

	EXPECT_EQ(-1, __vm_set_user_memory_region2(vm, 1 << 16 | 1, 0,
						   PROTMEM_GPA, size, anon, -1,
						   0));
	EXPECT_EQ(EINVAL, errno);
	EXPECT_EQ(-1, __vm_set_user_memory_region2(vm, 1 << 16 | 1,
						   PROTMEM_FLAGS, PROTMEM_GPA,
						   size, mem, fd, 0));
	EXPECT_EQ(EINVAL, errno);

	vcpu = __vm_vcpu_add(vm, 0);
	EXPECT_EQ(-1, __vcpu_ioctl(vcpu, KVM_SMI, NULL));

	kvm_munmap(anon, size);
	kvm_munmap(mem, size);
	close(fd);
	kvm_vm_free(vm);
}

/* Features that would need memory the host cannot see: refused or hidden. */
TEST(refused_features)
{
	struct kvm_xen_hvm_config xen = {
		.flags = KVM_XEN_HVM_CONFIG_HYPERCALL_MSR,
		.msr = 0x40000000,
	};
	struct kvm_vm *vm = create_with_cap();
	struct kvm_vm *plain = vm_create_barebones();

	if (vm_check_cap(plain, KVM_CAP_XEN_HVM)) {
		xen.flags = vm_check_cap(plain, KVM_CAP_XEN_HVM) &
			    KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL;
		xen.msr = 0x40000000;
		ASSERT_EQ(0, __vm_ioctl(plain, KVM_XEN_HVM_CONFIG, &xen));
		EXPECT_EQ(0, vm_check_cap(vm, KVM_CAP_XEN_HVM));
		EXPECT_EQ(-1, __vm_ioctl(vm, KVM_XEN_HVM_CONFIG, &xen));
	}

	if (vm_check_cap(plain, KVM_CAP_NESTED_STATE)) {
		static u8 buf[SZ_16K] __aligned(8);
		struct kvm_nested_state *state = (void *)buf;
		struct kvm_vcpu *vcpu = __vm_vcpu_add(plain, 0);

		state->size = sizeof(buf);
		vcpu_nested_state_get(vcpu, state);
		ASSERT_EQ(0, __vcpu_nested_state_set(vcpu, state));
		vcpu = __vm_vcpu_add(vm, 0);
		EXPECT_EQ(-1, __vcpu_nested_state_set(vcpu, state));
	}

	kvm_vm_free(plain);
	kvm_vm_free(vm);
}

/* The other way round: what is set up already rules the capability out. */
TEST(enable_after_refused_features)
{
	struct kvm_xen_hvm_config xen = { .msr = 0x40000000 };
	struct kvm_vm *vm = vm_create_barebones();
	int xen_flags = vm_check_cap(vm, KVM_CAP_XEN_HVM);

	if (!xen_flags)
		SKIP(return, "KVM has no Xen support");

	xen.flags = xen_flags & KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL;
	ASSERT_EQ(0, __vm_ioctl(vm, KVM_XEN_HVM_CONFIG, &xen));
	EXPECT_EQ(-EINVAL, protmem_enable_cap(vm, PROTMEM_CAPS, 0));

	/* And not for good. */
	memset(&xen, 0, sizeof(xen));
	ASSERT_EQ(0, __vm_ioctl(vm, KVM_XEN_HVM_CONFIG, &xen));
	EXPECT_EQ(0, protmem_enable_cap(vm, PROTMEM_CAPS, 0));
	kvm_vm_free(vm);
}

/* Ordinary slots of such a VM are ordinary, dirty logging included. */
TEST(ordinary_slots_stay_free)
{
	const u64 size = 16 * PAGE_SIZE;
	struct kvm_vm *vm = create_with_cap();
	void *mem = kvm_mmap(size, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS, -1);
	int gmem = vm_create_guest_memfd(vm, size, PROTMEM_GMEM_FLAGS);
	u64 bitmap = 0;

	vm_set_user_memory_region2(vm, 1, 0, 0, size, mem, -1, 0);
	vm_set_user_memory_region2(vm, 1, KVM_MEM_LOG_DIRTY_PAGES, 0, size, mem,
				   -1, 0);
	kvm_vm_get_dirty_log(vm, 1, &bitmap);
	vm_set_user_memory_region2(vm, 1, 0, 0, size, mem, -1, 0);
	vm_set_user_memory_region2(vm, 1, 0, SZ_1M, size, mem, -1, 0);
	vm_set_user_memory_region2(vm, 2, KVM_MEM_READONLY, 0, size, mem, -1, 0);
	/* A guest_memfd without the new flags as well. */
	vm_set_user_memory_region2(vm, 3, KVM_MEM_GUEST_MEMFD, SZ_2M, size, mem,
				   gmem, 0);
	vm_set_user_memory_region2(vm, 3, 0, 0, 0, NULL, 0, 0);
	vm_set_user_memory_region2(vm, 2, 0, 0, 0, NULL, 0, 0);
	vm_set_user_memory_region2(vm, 1, 0, 0, 0, NULL, 0, 0);

	close(gmem);
	kvm_munmap(mem, size);
	kvm_vm_free(vm);
}

static u64 guest_cpuid_features(u64 a, u64 b, u64 c, u64 d)
{
	u32 eax, ebx, ecx, edx;

	__cpuid(KVM_CPUID_FEATURES, 0, &eax, &ebx, &ecx, &edx);
	return eax;
}

static u64 guest_cpuid_nested(u64 a, u64 b, u64 c, u64 d)
{
	u32 eax, ebx, ecx, edx;
	u64 r;

	__cpuid(0x1, 0, &eax, &ebx, &ecx, &edx);
	r = ecx & BIT(5);
	__cpuid(0x80000001, 0, &eax, &ebx, &ecx, &edx);
	return r | (ecx & BIT(2));
}

/* No nested virtualization, whatever the VMM writes: refused or hidden. */
TEST(cpuid_nested)
{
	struct protmem_opts opts = { .caps = PROTMEM_CAPS };
	struct kvm_cpuid_entry2 *e;
	struct protmem_vm p;

	protmem_vm_create(&p, &opts);
	e = vcpu_get_cpuid_entry(p.vcpu[0], 0x1);
	e->ecx |= BIT(5);
	e = vcpu_get_cpuid_entry(p.vcpu[0], 0x80000001);
	e->ecx |= BIT(2);
	__vcpu_set_cpuid(p.vcpu[0]);
	EXPECT_EQ(0, protmem_call(&p, 0, guest_cpuid_nested));
	protmem_vm_free(&p);
}

/* Bit 18 says what the VM is, whatever the VMM writes. */
TEST(cpuid_feature_bit)
{
	struct protmem_opts opts = { .caps = PROTMEM_CAPS };
	struct protmem_vm p;
	u32 eax;

	protmem_vm_create(&p, &opts);
	eax = protmem_call(&p, 0, guest_cpuid_features);
	EXPECT_TRUE(eax & BIT(KVM_FEATURE_PROTECTED_MEMORY));
	EXPECT_TRUE(eax & BIT(KVM_FEATURE_HC_MAP_GPA_RANGE));
	vcpu_clear_cpuid_feature(p.vcpu[0], X86_FEATURE_KVM_PROTECTED_MEMORY);
	eax = protmem_call(&p, 0, guest_cpuid_features);
	EXPECT_TRUE(eax & BIT(KVM_FEATURE_PROTECTED_MEMORY));
	protmem_vm_free(&p);

	opts.caps = PROTMEM_CAPS_ORDINARY;
	protmem_vm_create(&p, &opts);
	eax = protmem_call(&p, 0, guest_cpuid_features);
	EXPECT_FALSE(eax & BIT(KVM_FEATURE_PROTECTED_MEMORY));
	protmem_vm_free(&p);
}

/* The ioctls of a VM without the capability. */
TEST(ordinary_vm)
{
	struct protmem_opts opts = { .caps = PROTMEM_CAPS_ORDINARY };
	struct protmem_vm p;
	int r;

	protmem_vm_create(&p, &opts);

	r = protmem_reset(&p);
	EXPECT_TRUE(r == -EINVAL || r == -ENOTTY);
	r = protmem_set_attr(p.gmem, 0, PAGE_SIZE, KVM_MEMORY_ATTRIBUTE_PRIVATE,
			     KVM_SET_MEMORY_ATTRIBUTES2_ZERO, NULL);
	EXPECT_TRUE(r == -EINVAL || r == -ENOTTY);
	r = protmem_get_attr(p.gmem, 0, PAGE_SIZE, NULL, NULL);
	EXPECT_TRUE(r == -EINVAL || r == -ENOTTY);

	EXPECT_EQ(-KVM_ENOSYS, (s64)protmem_make_private(&p, PROTMEM_GPA,
							 PAGE_SIZE));
	/* The VMM sees what the guest writes, and the other way round. */
	protmem_call(&p, 0, guest_fill, PROTMEM_GPA, PAGE_SIZE, 5);
	EXPECT_EQ(PAGE_SIZE, protmem_mismatch(p.mem, PROTMEM_GPA, PAGE_SIZE, 5));
	protmem_vm_free(&p);
}

int main(int argc, char **argv)
{
	protmem_require();
	return test_harness_run(argc, argv);
}
