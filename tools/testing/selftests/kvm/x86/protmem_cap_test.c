// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM_CAP_PROTECTED_MEMORY: what can be asked for, and every wrong way to ask.
 */
#include <fcntl.h>
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
	struct kvm_vcpu_events before, events, after;
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
	EXPECT_EQ(EINVAL, errno);

	/* Refused as a whole. */
	vcpu_events_get(vcpu, &before);
	events = before;
	events.flags = KVM_VCPUEVENT_VALID_SMM;
	events.smi.smm = 1;
	events.nmi.masked = 1;
	events.interrupt.injected = 1;
	events.interrupt.nr = 33;
	EXPECT_EQ(-1, __vcpu_ioctl(vcpu, KVM_SET_VCPU_EVENTS, &events));
	EXPECT_EQ(EINVAL, errno);
	vcpu_events_get(vcpu, &after);
	EXPECT_EQ(0, memcmp(&before, &after, sizeof(before)));

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
		EXPECT_EQ(EINVAL, errno);
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
		EXPECT_EQ(EINVAL, errno);
	}

	kvm_vm_free(plain);
	kvm_vm_free(vm);
}

/*
 * What such a VM can't have: the table of KVM_CAP_PROTECTED_MEMORY in api.rst,
 * row by row.  Not here, as it takes more than an ioctl: long-term pins
 * (protmem_refused_test); KVM_TRANSLATE, PDPTRs, the paravirtual areas and the
 * instruction bytes of emulation failures (protmem_emul_test); hypercalls that
 * are not patched and #UD in the guest (below).  And not anywhere: ENCLS, and
 * what KVM says to KVM_SEV_INIT and KVM_CAP_VM_{COPY,MOVE}_ENC_CONTEXT_FROM, as
 * hosts without SGX and SEV refuse these to every VM.
 */
#define VICTIM_SLOT	20
#define NEW_SLOT	21
#define VICTIM_GPA	(2 * PROTMEM_GPA)
#define NEW_GPA		(3 * PROTMEM_GPA)
#define VICTIM_SIZE	(64 * PAGE_SIZE)

/* Besides 0, positive results and -errno. */
#define LIKE_PLAIN	(-4096)

struct refusing_vm {
	struct protmem_vm p;
	int fd;			/* for slots; none on the ordinary VM */
	u32 slot_flags;
	u8 *mem;
};

struct refusal {
	const char *name;
	enum { ON_VM, ON_VCPU } on;
	unsigned long ioctl;
	const void *arg;
	/* Instead of the ioctl. */
	int (*try)(struct refusing_vm *v);
	int user, hide;		/* with KVM_PROTMEM_USER, _HIDE_ONLY alone */
	const char *same;	/* why an ordinary VM gets the same as the first */
	int needs;		/* capability without which there is nothing */
};

static u8 refusal_page[PAGE_SIZE] __aligned(PAGE_SIZE);
static u8 refusal_nested[SZ_16K] __aligned(8);

static int set_slot(struct refusing_vm *v, u32 slot, u32 flags, u64 gpa,
		    u64 size, u64 offset)
{
	return __vm_set_user_memory_region2(v->p.vm, slot, flags, gpa, size,
					    v->mem + offset, v->fd, offset) ?
	       -errno : 0;
}

static int try_log_slot(struct refusing_vm *v)
{
	return set_slot(v, NEW_SLOT, v->slot_flags | KVM_MEM_LOG_DIRTY_PAGES,
			NEW_GPA, VICTIM_SIZE, VICTIM_SIZE);
}

/* In the ordinary VM of the slot that has just been made. */
static int try_get_log(struct refusing_vm *v)
{
	struct kvm_dirty_log log = {
		.slot = v->slot_flags ? VICTIM_SLOT : NEW_SLOT,
		.dirty_bitmap = refusal_page,
	};

	return __vm_ioctl(v->p.vm, KVM_GET_DIRTY_LOG, &log) ? -errno : 0;
}

static int try_clear_log(struct refusing_vm *v)
{
	struct kvm_clear_dirty_log log = {
		.slot = v->slot_flags ? VICTIM_SLOT : NEW_SLOT,
		.num_pages = VICTIM_SIZE / PAGE_SIZE,
		.dirty_bitmap = refusal_page,
	};

	return __vm_ioctl(v->p.vm, KVM_CLEAR_DIRTY_LOG, &log) ? -errno : 0;
}

static int try_readonly_slot(struct refusing_vm *v)
{
	return set_slot(v, NEW_SLOT + 1, v->slot_flags | KVM_MEM_READONLY,
			NEW_GPA + SZ_1G, VICTIM_SIZE, VICTIM_SIZE);
}

static int try_change_slot(struct refusing_vm *v)
{
	return set_slot(v, VICTIM_SLOT, v->slot_flags ? KVM_MEM_GUEST_MEMFD :
			KVM_MEM_LOG_DIRTY_PAGES, VICTIM_GPA, VICTIM_SIZE, 0);
}

static int try_move_slot(struct refusing_vm *v)
{
	return set_slot(v, VICTIM_SLOT, v->slot_flags, VICTIM_GPA + SZ_1G,
			VICTIM_SIZE, 0);
}

static int try_resize_slot(struct refusing_vm *v)
{
	return set_slot(v, VICTIM_SLOT, v->slot_flags, VICTIM_GPA,
			VICTIM_SIZE / 2, 0);
}

/* The ioctl that can't carry a guest_memfd. */
static int try_change_slot1(struct refusing_vm *v)
{
	return __vm_set_user_memory_region(v->p.vm, VICTIM_SLOT, 0,
					   v->slot_flags ? VICTIM_GPA :
					   VICTIM_GPA + SZ_1G, VICTIM_SIZE,
					   v->mem) ? -errno : 0;
}

static int try_smm_slot(struct refusing_vm *v)
{
	return __vm_set_user_memory_region2(v->p.vm, 1 << 16 | NEW_SLOT, 0,
					    NEW_GPA, PAGE_SIZE, refusal_page,
					    -1, 0) ? -errno : 0;
}

static int try_smm_slot1(struct refusing_vm *v)
{
	return __vm_set_user_memory_region(v->p.vm, 1 << 16 | (NEW_SLOT + 1), 0,
					   NEW_GPA + SZ_1G, PAGE_SIZE,
					   refusal_page) ? -errno : 0;
}

/* VMX, SVM and SGX. */
static void set_nested_bits(struct kvm_cpuid2 *cpuid)
{
	int i;

	for (i = 0; i < cpuid->nent; i++) {
		struct kvm_cpuid_entry2 *e = &cpuid->entries[i];

		if (e->function == 0x1)
			e->ecx |= BIT(5);
		else if (e->function == 0x80000001)
			e->ecx |= BIT(2);
		else if (e->function == 0x7 && !e->index)
			e->ebx |= BIT(2);
	}
}

/* How many are still there when userspace has set them. */
static int nr_nested_bits(struct kvm_vcpu *vcpu)
{
	return !!(vcpu_get_cpuid_entry(vcpu, 0x1)->ecx & BIT(5)) +
	       !!(vcpu_get_cpuid_entry(vcpu, 0x80000001)->ecx & BIT(2)) +
	       !!(vcpu_get_cpuid_entry(vcpu, 0x7)->ebx & BIT(2));
}

static int try_cpuid2_nested(struct refusing_vm *v)
{
	struct kvm_vcpu *vcpu = v->p.vcpu[0];

	vcpu_get_cpuid(vcpu);
	set_nested_bits(vcpu->cpuid);
	return __vcpu_set_cpuid(vcpu) ? -errno : nr_nested_bits(vcpu);
}

static int try_cpuid_nested(struct refusing_vm *v)
{
	static const struct {
		struct kvm_cpuid head;
		struct kvm_cpuid_entry entries[3];
	} few = {
		.head.nent = 3,
		.entries = {
			{ .function = 0x1, .ecx = BIT(5) },
			{ .function = 0x7, .ebx = BIT(2) },
			{ .function = 0x80000001, .ecx = BIT(2) },
		},
	};
	struct kvm_vcpu *vcpu = v->p.vcpu[0];
	struct kvm_cpuid2 *all = allocate_kvm_cpuid2(vcpu->cpuid->nent);
	int r;

	vcpu_get_cpuid(vcpu);
	memcpy(all, vcpu->cpuid, kvm_cpuid2_size(vcpu->cpuid->nent));
	r = __vcpu_ioctl(vcpu, KVM_SET_CPUID, &few.head) ? -errno :
	    nr_nested_bits(vcpu);
	vcpu_init_cpuid(vcpu, all);
	free(all);
	return r;
}

static int try_cpuid_hyperv(struct refusing_vm *v)
{
	struct kvm_vcpu *vcpu = v->p.vcpu[0];
	struct kvm_cpuid_entry2 *e;
	int r;

	e = vcpu_get_cpuid_entry(vcpu, KVM_CPUID_FEATURES);
	e->eax = 0x31237648;	/* "Hv#1" */
	r = __vcpu_set_cpuid(vcpu) ? -errno : 0;
	e = vcpu_get_cpuid_entry(vcpu, KVM_CPUID_FEATURES);
	e->eax = 0;
	vcpu_set_cpuid(vcpu);
	return r;
}

#define CAP_ROW(what, with_hide)					\
	{ "KVM_CHECK_EXTENSION " #what, ON_VM, KVM_CHECK_EXTENSION,	\
	  (void *)(long)what, NULL, 0, with_hide, NULL, what }

#define ENABLE_ROW(what, with_hide)					\
	{ "KVM_ENABLE_CAP " #what, ON_VCPU, KVM_ENABLE_CAP,		\
	  &(const struct kvm_enable_cap) {				\
		.cap = what, .args = { (unsigned long)refusal_page } },	\
	  NULL, -EINVAL, with_hide, NULL, KVM_CAP_HYPERV }

#define ROW(request, fd, argument, with_user, with_hide)		\
	{ #request, fd, request, argument, NULL, with_user, with_hide }

#define TRY_ROW(what, how, with_user, with_hide, ...)			\
	{ .name = what, .try = how, .user = with_user,			\
	  .hide = with_hide, __VA_ARGS__ }

static const struct refusal refusals[] = {
	TRY_ROW("a slot with dirty logging", try_log_slot, -EINVAL, -EINVAL),
	TRY_ROW("KVM_GET_DIRTY_LOG", try_get_log, -ENOENT, -ENOENT),
	TRY_ROW("KVM_CLEAR_DIRTY_LOG", try_clear_log, -ENOENT, -ENOENT),
	TRY_ROW("a read-only slot", try_readonly_slot, -EINVAL, -EINVAL),
	TRY_ROW("changing a slot", try_change_slot, -EINVAL, -EINVAL),
	TRY_ROW("moving a slot", try_move_slot, -EINVAL, -EINVAL),
	TRY_ROW("resizing a slot", try_resize_slot, -EINVAL, -EINVAL,
		.same = "no slot can be resized"),
	TRY_ROW("KVM_SET_USER_MEMORY_REGION of a slot", try_change_slot1,
		-EINVAL, -EINVAL),
	TRY_ROW("a slot in address space 1", try_smm_slot, -EINVAL, -EINVAL,
		.needs = KVM_CAP_X86_SMM),
	TRY_ROW("KVM_SET_USER_MEMORY_REGION in address space 1", try_smm_slot1,
		-EINVAL, -EINVAL, .needs = KVM_CAP_X86_SMM),
	{ "KVM_SET_MEMORY_ATTRIBUTES", ON_VM, KVM_SET_MEMORY_ATTRIBUTES,
	  &(const struct kvm_memory_attributes) {
		.address = PROTMEM_GPA, .size = PAGE_SIZE,
		.attributes = KVM_MEMORY_ATTRIBUTE_PRIVATE },
	  NULL, -EINVAL, -EINVAL, "it is for other types of VMs",
	  KVM_CAP_MEMORY_ATTRIBUTES },

	CAP_ROW(KVM_CAP_X86_SMM, 0),
	ROW(KVM_SMI, ON_VCPU, NULL, -EINVAL, -EINVAL),
	{ "KVM_SET_VCPU_EVENTS smi.pending", ON_VCPU, KVM_SET_VCPU_EVENTS,
	  &(const struct kvm_vcpu_events) {
		.flags = KVM_VCPUEVENT_VALID_SMM, .smi.pending = 1 },
	  NULL, -EINVAL, -EINVAL, NULL, KVM_CAP_X86_SMM },
	{ "KVM_SET_VCPU_EVENTS smi.smm", ON_VCPU, KVM_SET_VCPU_EVENTS,
	  &(const struct kvm_vcpu_events) {
		.flags = KVM_VCPUEVENT_VALID_SMM, .smi.smm = 1 },
	  NULL, -EINVAL, -EINVAL, NULL, KVM_CAP_X86_SMM },
	{ "KVM_SET_VCPU_EVENTS without SMM", ON_VCPU, KVM_SET_VCPU_EVENTS,
	  &(const struct kvm_vcpu_events) { .flags = KVM_VCPUEVENT_VALID_SMM },
	  NULL, 0, 0, "it is allowed" },

	CAP_ROW(KVM_CAP_NESTED_STATE, 0),
	{ "KVM_GET_NESTED_STATE", ON_VCPU, KVM_GET_NESTED_STATE,
	  refusal_nested, NULL, -EINVAL, -EINVAL, NULL, KVM_CAP_NESTED_STATE },
	/* What the row above has got from the ordinary VM. */
	{ "KVM_SET_NESTED_STATE", ON_VCPU, KVM_SET_NESTED_STATE,
	  refusal_nested, NULL, -EINVAL, -EINVAL, NULL, KVM_CAP_NESTED_STATE },
	TRY_ROW("KVM_SET_CPUID with VMX, SVM and SGX", try_cpuid_nested, 0, 0),
	TRY_ROW("KVM_SET_CPUID2 with VMX, SVM and SGX", try_cpuid2_nested, 0, 0),

	CAP_ROW(KVM_CAP_VAPIC, LIKE_PLAIN),
	ROW(KVM_SET_VAPIC_ADDR, ON_VCPU,
	    (&(const struct kvm_vapic_addr) { PROTMEM_GPA }), -EINVAL,
	    LIKE_PLAIN),
	{ "KVM_SET_VAPIC_ADDR 0", ON_VCPU, KVM_SET_VAPIC_ADDR,
	  &(const struct kvm_vapic_addr) { 0 }, NULL, 0, 0, "it is allowed" },

	CAP_ROW(KVM_CAP_XEN_HVM, 0),
	ROW(KVM_XEN_HVM_CONFIG, ON_VM,
	    (&(const struct kvm_xen_hvm_config) {
		.flags = KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL,
		.msr = 0x40000000 }), -EINVAL, -EINVAL),
	ROW(KVM_XEN_HVM_SET_ATTR, ON_VM,
	    (&(const struct kvm_xen_hvm_attr) {
		.type = KVM_XEN_ATTR_TYPE_SHARED_INFO_HVA,
		.u.shared_info.hva = (unsigned long)refusal_page }),
	    -EINVAL, -EINVAL),
	ROW(KVM_XEN_HVM_GET_ATTR, ON_VM,
	    (&(struct kvm_xen_hvm_attr) {
		.type = KVM_XEN_ATTR_TYPE_LONG_MODE }), -EINVAL, -EINVAL),
	ROW(KVM_XEN_VCPU_SET_ATTR, ON_VCPU,
	    (&(const struct kvm_xen_vcpu_attr) {
		.type = KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR,
		.u.vector = 0x20 }), -EINVAL, -EINVAL),
	ROW(KVM_XEN_VCPU_GET_ATTR, ON_VCPU,
	    (&(struct kvm_xen_vcpu_attr) {
		.type = KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR }),
	    -EINVAL, -EINVAL),
	ROW(KVM_XEN_HVM_EVTCHN_SEND, ON_VM,
	    (&(const struct kvm_irq_routing_xen_evtchn) {
		.port = 1,
		.priority = KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL }),
	    -EINVAL, -EINVAL),

	CAP_ROW(KVM_CAP_HYPERV, LIKE_PLAIN),
	CAP_ROW(KVM_CAP_HYPERV_VAPIC, LIKE_PLAIN),
	CAP_ROW(KVM_CAP_HYPERV_SPIN, LIKE_PLAIN),
	CAP_ROW(KVM_CAP_HYPERV_TIME, LIKE_PLAIN),
	CAP_ROW(KVM_CAP_HYPERV_SYNIC, LIKE_PLAIN),
	CAP_ROW(KVM_CAP_HYPERV_SYNIC2, LIKE_PLAIN),
	CAP_ROW(KVM_CAP_HYPERV_VP_INDEX, LIKE_PLAIN),
	CAP_ROW(KVM_CAP_HYPERV_EVENTFD, LIKE_PLAIN),
	CAP_ROW(KVM_CAP_HYPERV_TLBFLUSH, LIKE_PLAIN),
	CAP_ROW(KVM_CAP_HYPERV_SEND_IPI, LIKE_PLAIN),
	CAP_ROW(KVM_CAP_HYPERV_CPUID, LIKE_PLAIN),
	CAP_ROW(KVM_CAP_HYPERV_ENFORCE_CPUID, LIKE_PLAIN),
	/* For nested guests. */
	CAP_ROW(KVM_CAP_HYPERV_ENLIGHTENED_VMCS, 0),
	CAP_ROW(KVM_CAP_HYPERV_DIRECT_TLBFLUSH, 0),
	TRY_ROW("KVM_SET_CPUID2 with Hyper-V's signature", try_cpuid_hyperv,
		-EINVAL, LIKE_PLAIN, .needs = KVM_CAP_HYPERV),
	/* The others are not enabled this way in any VM. */
	ENABLE_ROW(KVM_CAP_HYPERV_ENFORCE_CPUID, LIKE_PLAIN),
	{ "KVM_ENABLE_CAP KVM_CAP_HYPERV_SYNIC2", ON_VCPU, KVM_ENABLE_CAP,
	  &(const struct kvm_enable_cap) { .cap = KVM_CAP_HYPERV_SYNIC2 },
	  NULL, -EINVAL, LIKE_PLAIN, NULL, KVM_CAP_HYPERV },
	ENABLE_ROW(KVM_CAP_HYPERV_SYNIC, LIKE_PLAIN),
	ENABLE_ROW(KVM_CAP_HYPERV_ENLIGHTENED_VMCS, -EINVAL),
	ENABLE_ROW(KVM_CAP_HYPERV_DIRECT_TLBFLUSH, -EINVAL),
	ROW(KVM_HYPERV_EVENTFD, ON_VM,
	    (&(const struct kvm_hyperv_eventfd) {
		.conn_id = 5, .flags = KVM_HYPERV_EVENTFD_DEASSIGN }),
	    -EINVAL, LIKE_PLAIN),

	/* NULL asks whether there is SEV. */
	ROW(KVM_MEMORY_ENCRYPT_OP, ON_VM, NULL, -EINVAL, -EINVAL),
	ROW(KVM_MEMORY_ENCRYPT_REG_REGION, ON_VM,
	    (&(const struct kvm_enc_region) { .size = PAGE_SIZE }),
	    -EINVAL, -EINVAL),
	ROW(KVM_MEMORY_ENCRYPT_UNREG_REGION, ON_VM,
	    (&(const struct kvm_enc_region) { .size = PAGE_SIZE }),
	    -EINVAL, -EINVAL),
};

static void refusing_vm_create(struct refusing_vm *v, u64 caps)
{
	struct protmem_opts opts = { .caps = caps };

	memset(v, 0, sizeof(*v));
	protmem_vm_create(&v->p, &opts);
	if (caps & KVM_PROTMEM_USER)
		v->slot_flags = PROTMEM_FLAGS;
	else if (caps & KVM_PROTMEM_HIDE_ONLY)
		v->slot_flags = KVM_MEM_GUEST_MEMFD | KVM_MEM_UNMAP_DIRECT;

	v->fd = -1;
	if (caps)
		v->fd = vm_create_guest_memfd(v->p.vm, 2 * VICTIM_SIZE,
					      PROTMEM_GMEM_FLAGS);
	v->mem = kvm_mmap(2 * VICTIM_SIZE, PROT_READ | PROT_WRITE,
			  caps ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS,
			  v->fd);
	TEST_ASSERT(!set_slot(v, VICTIM_SLOT, v->slot_flags, VICTIM_GPA,
			      VICTIM_SIZE, 0), "Creating the slot failed: %d",
		    errno);
}

static void refusing_vm_free(struct refusing_vm *v)
{
	kvm_munmap(v->mem, 2 * VICTIM_SIZE);
	if (v->fd >= 0)
		close(v->fd);
	protmem_vm_free(&v->p);
}

static int try_refusal(struct refusing_vm *v, const struct refusal *t)
{
	int fd = t->on == ON_VM ? v->p.vm->fd : v->p.vcpu[0]->fd, r;

	if (t->try)
		return t->try(v);
	r = ioctl(fd, t->ioctl, t->arg);
	return r < 0 ? -errno : r;
}

TEST(api_table)
{
	struct kvm_nested_state *nested = (void *)refusal_nested;
	struct refusing_vm plain, user, hide;
	int i, r;

	nested->size = sizeof(refusal_nested);
	refusing_vm_create(&plain, PROTMEM_CAPS_ORDINARY);
	refusing_vm_create(&user, PROTMEM_CAPS);
	refusing_vm_create(&hide, PROTMEM_CAPS_HIDE);

	for (i = 0; i < ARRAY_SIZE(refusals); i++) {
		const struct refusal *t = &refusals[i];

		if (t->needs && !kvm_check_cap(t->needs)) {
			TH_LOG("%s: nothing to refuse on this host", t->name);
			continue;
		}
		r = try_refusal(&plain, t);
		if (t->same) {
			EXPECT_EQ(t->user, r) {
				TH_LOG("%s, ordinary VM: %s?", t->name, t->same);
			}
		} else {
			EXPECT_NE(t->user, r) {
				TH_LOG("%s, ordinary VM", t->name);
			}
		}
		EXPECT_EQ(t->user, try_refusal(&user, t)) {
			TH_LOG("%s, KVM_PROTMEM_USER", t->name);
		}
		EXPECT_EQ(t->hide == LIKE_PLAIN ? r : t->hide,
			  try_refusal(&hide, t)) {
			TH_LOG("%s, KVM_PROTMEM_HIDE_ONLY", t->name);
		}
	}

	refusing_vm_free(&hide);
	refusing_vm_free(&user);
	refusing_vm_free(&plain);
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
	struct protmem_vm p;

	protmem_vm_create(&p, &opts);
	set_nested_bits(p.vcpu[0]->cpuid);
	__vcpu_set_cpuid(p.vcpu[0]);
	EXPECT_EQ(0, protmem_call(&p, 0, guest_cpuid_nested));
	protmem_vm_free(&p);
}

/*
 * Switches nested virtualization on and uses it.  Returns both vectors; the
 * operand is nothing that VMXON would take.
 */
static u64 guest_use_nested(u64 operand, u64 b, u64 c, u64 d)
{
	u64 on;

	if (host_cpu_is_amd_compatible) {
		on = wrmsr_safe(MSR_EFER, rdmsr(MSR_EFER) | EFER_SVME);
		return on << 8 | kvm_asm_safe("stgi");
	}
	on = kvm_asm_safe("mov %[cr4], %%cr4", [cr4] "r"(get_cr4() | X86_CR4_VMXE));
	return on << 8 | kvm_asm_safe("vmxon %[op]", [op] "m"(*(u64 *)operand));
}

/* The instruction of the other vendor, for a hypercall that does nothing. */
static u64 guest_wrong_hypercall(u64 a, u64 b, u64 c, u64 d)
{
	if (host_cpu_is_amd_compatible)
		return kvm_asm_safe("vmcall", "a"(KVM_HC_VAPIC_POLL_IRQ));
	return kvm_asm_safe("vmmcall", "a"(KVM_HC_VAPIC_POLL_IRQ));
}

/*
 * What is cleared in CPUID raises #UD, and so does the wrong hypercall
 * instruction where KVM must not write to the guest's code.
 */
TEST(invalid_opcodes)
{
	const struct { u64 caps; bool nested, patched; } vms[] = {
		{ PROTMEM_CAPS_ORDINARY, true, true },
		{ PROTMEM_CAPS, false, false },
		{ PROTMEM_CAPS_HIDE, false, true },
	};
	bool can_nest = kvm_check_cap(KVM_CAP_NESTED_STATE);
	u64 r;
	int i;

	for (i = 0; i < ARRAY_SIZE(vms); i++) {
		struct protmem_opts opts = { .caps = vms[i].caps };
		struct protmem_vm p;

		protmem_vm_create(&p, &opts);
		set_nested_bits(p.vcpu[0]->cpuid);
		vcpu_set_cpuid(p.vcpu[0]);

		EXPECT_EQ(vms[i].patched ? 0 : UD_VECTOR,
			  protmem_call(&p, 0, guest_wrong_hypercall)) {
			TH_LOG("hypercall, caps %#lx", vms[i].caps);
		}

		r = protmem_call(&p, 0, guest_use_nested, PROTMEM_GPA);
		if (!vms[i].nested) {
			EXPECT_EQ(GP_VECTOR << 8 | UD_VECTOR, r) {
				TH_LOG("nested, caps %#lx", vms[i].caps);
			}
		} else if (can_nest) {
			EXPECT_EQ(0, r >> 8);
			EXPECT_NE(UD_VECTOR, r & 0xff);
		}
		protmem_vm_free(&p);
	}
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

/*
 * Where KVM makes shadow page tables, or has no TDP MMU, there is no protected
 * memory, and the log says why.  main() runs this there, and nothing else.
 */
TEST(no_two_dimensional_paging)
{
	static const char why[] = "no protected memory: two-dimensional paging with the TDP MMU is off";
	struct kvm_vm *vm = vm_create_barebones();
	int fd = vm_create_guest_memfd(vm, PAGE_SIZE, PROTMEM_GMEM_FLAGS);
	void *mem = kvm_mmap(PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
	int log, said = 0;
	char line[1024];
	ssize_t n;

	EXPECT_EQ(0, kvm_check_cap(KVM_CAP_PROTECTED_MEMORY));
	EXPECT_EQ(0, vm_check_cap(vm, KVM_CAP_PROTECTED_MEMORY));
	EXPECT_EQ(0, kvm_check_cap(KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES));
	EXPECT_EQ(0, vm_check_cap(vm, KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES));
	EXPECT_EQ(-EINVAL, protmem_enable_cap(vm, PROTMEM_CAPS, 0));
	EXPECT_EQ(-EINVAL, protmem_enable_cap(vm, PROTMEM_CAPS_HIDE, 0));
	EXPECT_EQ(-1, __vm_set_user_memory_region2(vm, 1, PROTMEM_FLAGS,
						   PROTMEM_GPA, PAGE_SIZE, mem,
						   fd, 0));
	EXPECT_EQ(EINVAL, errno);

	log = open("/dev/kmsg", O_RDONLY | O_NONBLOCK);
	ASSERT_LE(0, log);
	/* EPIPE: records were lost, others follow. */
	while ((n = read(log, line, sizeof(line) - 1)) > 0 || errno == EPIPE) {
		if (n <= 0)
			continue;
		line[n] = 0;
		said += !!strstr(line, why);
	}
	EXPECT_EQ(1, said);

	close(log);
	kvm_munmap(mem, PAGE_SIZE);
	close(fd);
	kvm_vm_free(vm);
}

int main(int argc, char **argv)
{
	bool tdp = protmem_tdp_is_on();
	char *args[] = { argv[0], tdp ? "-T" : "-t", "no_two_dimensional_paging",
			 NULL };

	/* No skip, whatever KVM says: it is the parameters that tell. */
	if (tdp)
		protmem_require();
	if (argc > 1)
		return test_harness_run(argc, argv);
	return test_harness_run(3, args);
}
