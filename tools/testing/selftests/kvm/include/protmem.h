/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Helpers for the tests of KVM_CAP_PROTECTED_MEMORY.
 *
 * A test VM has the usual memslot 0 for code, page tables and stacks, which
 * stays ordinary memory, and one protected slot that is mapped at the same
 * virtual and physical address in the guest.  The guest runs a loop that calls
 * whatever function the test names, so that tests read as straight lines of
 * host code; the test binary is loaded at the same addresses in the guest.
 */
#ifndef SELFTEST_KVM_PROTMEM_H
#define SELFTEST_KVM_PROTMEM_H

#include <linux/stddef.h>
#include <linux/io_uring.h>
#include <linux/sizes.h>

#include "kvm_util.h"
#include "processor.h"
#include "protmem_arch.h"
#include "test_util.h"
#include "ucall_common.h"

/*
 * The harness gives a test 30 seconds, which is little for an emulated CPU that
 * emulates virtualization, with a kernel that looks for its own mistakes.  The
 * limit that matters is that of the one who runs the whole program.
 */
#ifdef TEST_TIMEOUT_DEFAULT
#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT	2400
#endif

#define PROTMEM_SLOT		10
#define PROTMEM_GPA		BIT_ULL(32)
#define PROTMEM_SIZE		(1024ULL * PAGE_SIZE)
#define PROTMEM_MAX_VCPUS	8
#define PROTMEM_FLAGS		(KVM_MEM_GUEST_MEMFD | KVM_MEM_UNMAP_DIRECT | \
				 KVM_MEM_UNMAP_USER)
#define PROTMEM_GMEM_FLAGS	(GUEST_MEMFD_FLAG_MMAP | \
				 GUEST_MEMFD_FLAG_INIT_SHARED)

/* Private and convertible: what a protected guest gets. */
#define PROTMEM_CAPS		(KVM_PROTMEM_DIRECT_MAP | KVM_PROTMEM_USER | \
				 KVM_PROTMEM_GUEST_CONVERT)
/* The same where a hypervisor keeps the host's kernel out (arm64 with pKVM). */
#define PROTMEM_CAPS_IN_PLACE	(PROTMEM_CAPS | KVM_PROTMEM_HOST_KERNEL)
/* Private, but the guest's hypercall is not handled. */
#define PROTMEM_CAPS_NO_CONVERT	(KVM_PROTMEM_DIRECT_MAP | KVM_PROTMEM_USER)
/* Hidden from the kernel alone. */
#define PROTMEM_CAPS_HIDE	(KVM_PROTMEM_DIRECT_MAP | KVM_PROTMEM_HIDE_ONLY)
/* An ordinary VM with the same layout, as a control. */
#define PROTMEM_CAPS_ORDINARY	0

/* A gpa without a memslot, mapped at the same virtual address. */
#define PROTMEM_MMIO_GPA	0xd0000000ULL

typedef u64 (*protmem_fn_t)(u64 a, u64 b, u64 c, u64 d);

/* In memslot 0, i.e. in memory that host and guest always share. */
struct protmem_cmd {
	protmem_fn_t fn;
	u64 arg[4];
	u64 ret;
	/* What the guest has to share first to be given anything; 0 is nothing. */
	u64 share_gpa;
	/* For a conversation while the guest runs. */
	u64 go;
	u64 stop;
	u64 count;
	u64 data[256];
};

struct protmem_opts {
	u64 caps;
	unsigned long type;	/* of a VM with private memory of another kind */
	u64 gmem_flags;		/* besides PROTMEM_GMEM_FLAGS */
	u64 exit_flags;
	u64 size;
	int nr_vcpus;
	bool no_slot;
	/*
	 * The guest may have an ordinary slot where userspace's mapping only
	 * gives SIGBUS.  With its interrupts on, KVM would halt it for an
	 * asynchronous page fault again and again instead of an error.
	 */
	bool no_interrupts;
	/* Back the slot's userspace_addr with memory of its own. */
	bool decoy;
};

struct protmem_vm {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu[PROTMEM_MAX_VCPUS];
	struct protmem_cmd *cmd[PROTMEM_MAX_VCPUS];
	gva_t cmd_gva[PROTMEM_MAX_VCPUS];
	struct protmem_vcpu_state boot[PROTMEM_MAX_VCPUS];
	u64 caps;
	u64 size;
	int nr_vcpus;
	int gmem;
	u8 *mem;		/* the VMM's mapping of the guest_memfd */
	u8 *hva;		/* userspace_addr of the slot */
	bool decoy;
	/* The last KVM_EXIT_PROTECTED_MEMORY, and how many there were. */
	int nr_convert_exits;
	u64 convert_gpa, convert_size, convert_attributes, convert_flags;
};

/* A test suite of which each test has one VM with private memory. */
#define PROTMEM_FIXTURE(name)						\
FIXTURE(name) {								\
	struct protmem_vm p;						\
};									\
									\
FIXTURE_SETUP(name)							\
{									\
	struct protmem_opts opts = { .caps = PROTMEM_CAPS };		\
									\
	protmem_vm_create(&self->p, &opts);				\
}									\
									\
FIXTURE_TEARDOWN(name)							\
{									\
	protmem_vm_free(&self->p);					\
}									\
struct __protmem_fixture_##name	/* takes the semicolon */

/* Skip the whole program if the host doesn't have the capability. */
void protmem_require(void);
bool protmem_tdp_is_on(void);
int protmem_nr_cpus(void);
u64 protmem_test_iterations(u64 dfl);

int protmem_enable_cap(struct kvm_vm *vm, u64 caps, u64 exit_flags);
void protmem_vm_create(struct protmem_vm *p, const struct protmem_opts *opts);
void protmem_vm_free(struct protmem_vm *p);
/* Put a vCPU back to where it started, as a VMM's reset does. */
void protmem_vcpu_reset(struct protmem_vm *p, int cpu);

/*
 * The architecture's part, in lib/.../protmem_arch.c: the type of a VM with @caps,
 * what is to be done before the first vCPU, when one has been set up, how the guest says that the function it was
 * given has returned, and how the host sees that.
 */
unsigned long protmem_arch_vm_type(u64 caps);
void protmem_arch_vm_prepare(struct protmem_vm *p);
/* The protected slot, at the same virtual address; few page tables if it is big. */
void protmem_arch_map(struct kvm_vm *vm, u64 gpa, u64 size);
void protmem_arch_vcpu_init(struct protmem_vm *p, int cpu,
			    const struct protmem_opts *opts);
/* How many 2 MiB entries the second stage of @vm has. */
u64 protmem_arch_nr_large(struct kvm_vm *vm);
void protmem_arch_guest_done(void);
bool protmem_arch_is_done(struct kvm_vcpu *vcpu);

int protmem_set_slot(struct protmem_vm *p, u32 slot, u64 gpa, u64 size,
		     u64 offset);
int protmem_delete_slot(struct protmem_vm *p, u32 slot);

/*
 * Run @fn in the guest.  protmem_call() expects it to return without any exit
 * that needs an answer; protmem_prepare(), _vcpu_run() and protmem_done() are
 * for those that have some.
 */
void protmem_prepare(struct protmem_vm *p, int cpu, protmem_fn_t fn,
		     u64 a, u64 b, u64 c, u64 d);
bool protmem_done(struct protmem_vm *p, int cpu);
u64 protmem_run(struct protmem_vm *p, int cpu);
u64 __protmem_call(struct protmem_vm *p, int cpu, protmem_fn_t fn,
		   u64 a, u64 b, u64 c, u64 d);
#define PROTMEM_CALL5(p, cpu, fn, a, b, c, d, ...)	\
	__protmem_call(p, cpu, fn, a, b, c, d)
#define protmem_call(p, cpu, fn, args...)		\
	PROTMEM_CALL5(p, cpu, fn, ##args, 0, 0, 0, 0)

/* Functions for the guest, and host functions that have the guest run them. */
u64 guest_fill(u64 gpa, u64 size, u64 seed, u64 unused);
u64 guest_check(u64 gpa, u64 size, u64 seed, u64 unused);
u64 guest_check_zero(u64 gpa, u64 size, u64 b, u64 c);
/* The architecture's; @to is PROTMEM_TO_PRIVATE or PROTMEM_TO_SHARED. */
u64 guest_convert(u64 gpa, u64 size, u64 to, u64 unused);
u64 guest_read64(u64 gva, u64 b, u64 c, u64 d);
u64 guest_write64(u64 gva, u64 val, u64 c, u64 d);
u64 guest_nop(u64 a, u64 b, u64 c, u64 d);

static inline u64 protmem_make_private(struct protmem_vm *p, u64 gpa, u64 size)
{
	return protmem_call(p, 0, guest_convert, gpa, size, PROTMEM_TO_PRIVATE);
}

static inline u64 protmem_make_shared(struct protmem_vm *p, u64 gpa, u64 size)
{
	return protmem_call(p, 0, guest_convert, gpa, size, PROTMEM_TO_SHARED);
}

/*
 * The contents that guest and host agree on: every 64-bit word differs with
 * its address and with the seed, so a page that is stale, misplaced or shifted
 * shows.
 */
static inline u64 protmem_word(u64 seed, u64 gpa)
{
	u64 x = seed ^ (gpa * 0x9e3779b97f4a7c15ull);

	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
	return (x ^ (x >> 31)) | 1;
}

void protmem_fill(struct protmem_vm *p, u64 gpa, u64 size, u64 seed);
/* Where @mem stops looking like the contents of @gpa; @size if it doesn't. */
u64 protmem_mismatch(const void *mem, u64 gpa, u64 size, u64 seed);
u64 protmem_first_nonzero(const void *mem, u64 size);

static inline void *protmem_hva(struct protmem_vm *p, u64 gpa)
{
	return p->mem + (gpa - PROTMEM_GPA);
}

/* The page state ioctls: 0 or -errno. */
int protmem_set_attr(int fd, u64 offset, u64 size, u64 attributes, u64 flags,
		     u64 *error_offset);
int protmem_get_attr(int fd, u64 offset, u64 size, u64 *attributes, u64 *run);
bool protmem_is_private(struct protmem_vm *p, u64 gpa);
int protmem_punch(int fd, u64 offset, u64 size);
int protmem_reset(struct protmem_vm *p);

/* Touch memory of the VMM: 0 if it can be, or the si_code of the SIGBUS. */
int protmem_try_read(const void *mem, u64 *val);
int protmem_try_write(void *mem, u64 val);

/* What is off the direct map in the whole system; -1 if the file is missing. */
s64 protmem_off_direct_map(void);
s64 protmem_wait_off_direct_map(s64 wanted);
s64 protmem_read_sysfs(const char *name);

/* Into a file of debugfs or the like: 0 or -errno. */
int protmem_write_file(const char *path, const char *what);

/* Record @event, as in "kvm/kvm_protmem_refused", in an empty trace; 0 or -errno. */
#define PROTMEM_TRACE		"/sys/kernel/tracing/trace"
int protmem_trace_start(const char *event);
void protmem_trace_stop(const char *event);

/*
 * One memory cgroup for the test, below the root.  A limit is in bytes, -1 is none.
 */
void protmem_cgroup_require(const char *name);
void protmem_cgroup_create(void);
void protmem_cgroup_destroy(void);
void protmem_cgroup_enter(void);
void protmem_cgroup_leave(void);
void protmem_cgroup_limit(s64 bytes);
s64 protmem_cgroup_charged(void);
/* The count of memory.events, by its name. */
s64 protmem_cgroup_events(const char *name);

/* As much of io_uring as it takes to have one request in flight. */
struct protmem_ring {
	int fd;
	struct io_uring_params params;
	u8 *sq, *cq;
	struct io_uring_sqe *sqes;
};

int protmem_ring_open(struct protmem_ring *ring);
void protmem_ring_close(struct protmem_ring *ring);
/* @buf_index: of the fixed buffer, for IORING_OP_*_FIXED, else -1. */
int protmem_ring_submit(struct protmem_ring *ring, int op, int fd, void *addr,
			u32 len, int buf_index);
int protmem_ring_wait(struct protmem_ring *ring);

#endif /* SELFTEST_KVM_PROTMEM_H */
