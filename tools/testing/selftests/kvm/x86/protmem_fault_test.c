// SPDX-License-Identifier: GPL-2.0-only
/*
 * Protected memory when the kernel has no memory: every allocation that one of
 * its operations makes fails once, by fault injection.
 *
 * For each operation there are sweeps.  In each the first, second, ...
 * allocation fails, alone or with all that come after it, until the operation
 * comes to its end without a failure.  One sweep takes all allocations of the
 * system call, the others those below a function of the kernel that allocates,
 * which proves that this is reached.  After each failure the memory of guest and
 * VMM is looked at, the operation is tried again and has to succeed or the VM
 * dies, and when it is gone nothing may be left.
 *
 * This is best run with KASAN, and with a look at the log afterwards.  The first
 * test must be the first user of protected memory since boot: the windows are
 * allocated once, and what has been allocated is kept.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <linux/falloc.h>

#include "kselftest_harness.h"
#include "kvm_syscalls.h"
#include "protmem.h"

#define GPA		PROTMEM_GPA
#define SIZE		SZ_2M
/* More than one batch of a conversion, see PROTMEM_BATCH. */
#define NR		20
#define RANGE		(NR * PAGE_SIZE)
/* Where an index of pages needs several nodes. */
#define FAR		(GPA + 300 * PAGE_SIZE)
#define SEED		51
#define DEBUGFS		"/sys/kernel/debug/"
#define MAX_NTH		400

static const char *const attrs[] = { "failslab", "fail_page_alloc" };

static void set_attr(const char *name, const char *val)
{
	char path[128];
	int i, r;

	for (i = 0; i < ARRAY_SIZE(attrs); i++) {
		snprintf(path, sizeof(path), DEBUGFS "%s/%s", attrs[i], name);
		r = protmem_write_file(path, val);
		TEST_ASSERT(!r, "%s: %d", path, r);
	}
}

/* The addresses of a function; false if the kernel has none of that name. */
static bool find_function(const char *name, u64 *start, u64 *end)
{
	static u64 last_start, last_end;
	static const char *last;
	u64 addr, found = 0, next = 0;
	char sym[256], type;
	size_t len = strlen(name);
	FILE *f;

	if (name == last) {
		*start = last_start;
		*end = last_end;
		return true;
	}
	f = fopen("/proc/kallsyms", "r");
	TEST_ASSERT(f, "/proc/kallsyms");
	/* It is not sorted, and the compiler may have made a clone of it. */
	while (fscanf(f, "%lx %c %255s%*[^\n]", &addr, &type, sym) == 3) {
		if (!strncmp(sym, name, len) && !strstr(sym, ".cold") &&
		    (!sym[len] || sym[len] == '.'))
			found = addr;
	}
	rewind(f);
	while (found && fscanf(f, "%lx %c %255s%*[^\n]", &addr, &type, sym) == 3) {
		if (addr > found && (!next || addr < next))
			next = addr;
	}
	fclose(f);
	if (!found)
		return false;
	last = name;
	*start = last_start = found;
	*end = last_end = next;
	return true;
}

/* Only what is allocated below @function fails, or anything if it is NULL. */
static void fail_below(const char *function)
{
	u64 start = 0, end = -1ull;
	char buf[32];

	if (function)
		TEST_ASSERT(find_function(function, &start, &end),
			    "The kernel has no function %s (inlined? then name its caller)",
			    function);
	snprintf(buf, sizeof(buf), "%#lx", start);
	set_attr("require-start", buf);
	snprintf(buf, sizeof(buf), "%#lx", end);
	set_attr("require-end", buf);
}

static int open_self(const char *name)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/thread-self/%s", name);
	fd = open(path, O_RDWR);
	TEST_ASSERT(fd >= 0, "%s: %d", path, errno);
	return fd;
}

static int nth_fd = -1, make_it_fd = -1;

static void pwrite_all(int fd, const char *what)
{
	TEST_ASSERT(pwrite(fd, what, strlen(what), 0) == strlen(what),
		    "fault injection can't be set to %s: %d", what, errno);
}

static void fail_nth(unsigned int nth)
{
	char buf[16];

	snprintf(buf, sizeof(buf), "%u", nth);
	pwrite_all(nth_fd, buf);
}

/* Has the allocation failed?  None will from now on. */
static bool fail_end(void)
{
	char buf[16] = {};

	TEST_ASSERT(pread(nth_fd, buf, sizeof(buf) - 1, 0) > 0, "fail-nth: %d", errno);
	pwrite_all(nth_fd, "0");
	return buf[0] == '0';
}

/*
 * Not only one; with fail_nth() from that one on.  Not for ever, as a page fault
 * of the test's own would be tried again for as long.
 */
static void fail_always(bool on)
{
	/* Nothing can be opened while it is on. */
	if (!on)
		pwrite_all(make_it_fd, "0");
	set_attr("times", on ? "1000" : "-1");
	set_attr("probability", on ? "100" : "0");
	if (on)
		pwrite_all(make_it_fd, "1");
}

struct ctx {
	struct protmem_vm p;
	struct kvm_vm *bare;
	int fd, vm_fd;
};

/* 0 or -errno */
typedef int (*op_fn)(struct ctx *c);

struct op {
	void (*setup)(struct ctx *c);
	op_fn run;
	/* @r is what run() has returned, after a failure or at the end. */
	void (*check)(struct ctx *c, int r);
	void (*teardown)(struct ctx *c);
	/* There is no error to be seen: it has to do without the memory. */
	bool infallible;
	/* What failed can't be tried again. */
	bool final;
	/* Once since boot, so that one sweep is all. */
	bool once;
	/* It need not allocate anything. */
	bool frugal;
};

static int run_vcpu(struct ctx *c)
{
	return _vcpu_run(c->p.vcpu[0]) ? -errno : 0;
}

static void must_be(bool ok, const char *what)
{
	TEST_ASSERT(ok, "%s", what);
}

/* What the VMM must not see, it doesn't. */
static void check_private(struct ctx *c, u64 gpa, u64 size)
{
	u64 a, val;

	for (a = gpa; a < gpa + size; a += PAGE_SIZE) {
		if (protmem_is_private(&c->p, a))
			TEST_ASSERT_EQ(protmem_try_read(protmem_hva(&c->p, a), &val),
				       BUS_ADRERR);
	}
}

/* VMs without vCPUs */

static void setup_bare(struct ctx *c)
{
	c->bare = vm_create_barebones();
	c->fd = -1;
}

static void setup_bare_cap(struct ctx *c)
{
	setup_bare(c);
	TEST_ASSERT_EQ(protmem_enable_cap(c->bare, PROTMEM_CAPS, 0), 0);
}

static void teardown_bare(struct ctx *c)
{
	if (c->fd >= 0)
		close(c->fd);
	kvm_vm_free(c->bare);
}

static int run_cap(struct ctx *c)
{
	return protmem_enable_cap(c->bare, PROTMEM_CAPS, 0);
}

static int run_create(struct ctx *c)
{
	c->fd = __vm_create_guest_memfd(c->bare, SIZE, PROTMEM_GMEM_FLAGS);
	return c->fd < 0 ? -errno : 0;
}

static int run_create_hidden(struct ctx *c)
{
	c->fd = __vm_create_guest_memfd(c->bare, SIZE, PROTMEM_GMEM_FLAGS |
					GUEST_MEMFD_FLAG_NO_DIRECT_MAP);
	return c->fd < 0 ? -errno : 0;
}

static const struct op op_cap = { setup_bare, run_cap, NULL, teardown_bare, .frugal = true };
static const struct op op_windows = { setup_bare_cap, run_create, NULL, teardown_bare, .final = true, .once = true };
static const struct op op_create = { setup_bare_cap, run_create, NULL, teardown_bare };
static const struct op op_create_hidden = { setup_bare, run_create_hidden, NULL, teardown_bare };

/* VMs with a vCPU */

static void setup_vm(struct ctx *c)
{
	struct protmem_opts opts = { .caps = PROTMEM_CAPS, .size = SIZE };

	protmem_vm_create(&c->p, &opts);
	/* KVM's caches for the second stage are full then. */
	protmem_call(&c->p, 0, guest_nop);
}

static void teardown_vm(struct ctx *c)
{
	protmem_vm_free(&c->p);
}

static void setup_no_slot(struct ctx *c)
{
	struct protmem_opts opts = { .caps = PROTMEM_CAPS, .size = SIZE, .no_slot = true };

	protmem_vm_create(&c->p, &opts);
}

/* The ioctl alone: the helpers open /dev/kvm, which takes memory as well. */
static int set_slot(struct ctx *c, u64 size)
{
	struct kvm_userspace_memory_region2 region = {
		.slot = PROTMEM_SLOT,
		.flags = size ? PROTMEM_FLAGS : 0,
		.guest_phys_addr = GPA,
		.memory_size = size,
		.userspace_addr = (u64)c->p.hva,
		.guest_memfd = c->p.gmem,
	};

	return ioctl(c->p.vm->fd, KVM_SET_USER_MEMORY_REGION2, &region) ? -errno : 0;
}

static int run_set_slot(struct ctx *c)
{
	return set_slot(c, SIZE);
}

/* With the slot all else works, without it no page can have a state. */
static void check_slot(struct ctx *c, int r)
{
	u64 attributes, run;

	if (r) {
		TEST_ASSERT_EQ(protmem_get_attr(c->p.gmem, 0, SIZE, &attributes, &run),
			       -EINVAL);
		return;
	}
	TEST_ASSERT_EQ(protmem_make_private(&c->p, GPA, SIZE), 0);
	protmem_call(&c->p, 0, guest_fill, GPA, PAGE_SIZE, SEED);
	check_private(c, GPA, PAGE_SIZE);
}

static const struct op op_set_slot = { setup_no_slot, run_set_slot, check_slot, teardown_vm };

/*
 * Contents: a page of zeroes is shared in another way, so every third page is one, and
 * batches have both.
 */
static bool is_cleared(u64 gpa)
{
	return gpa / PAGE_SIZE % 3 == 2;
}

static u64 guest_fill_range(u64 gpa, u64 size, u64 seed, u64 unused)
{
	u64 a;

	for (a = gpa; a < gpa + size; a += PAGE_SIZE) {
		if (is_cleared(a))
			WRITE_ONCE(*(u64 *)a, 0);
		else
			guest_fill(a, PAGE_SIZE, seed, 0);
	}
	return 0;
}

static u64 guest_check_range(u64 gpa, u64 size, u64 seed, u64 unused)
{
	u64 a, r;

	for (a = gpa; a < gpa + size; a += PAGE_SIZE) {
		r = is_cleared(a) ? guest_check_zero(a, PAGE_SIZE, 0, 0) :
				    guest_check(a, PAGE_SIZE, seed, 0);
		if (r)
			return r;
	}
	return 0;
}

/* Private and filled, but not by the guest, so that the latch is open. */
static void setup_filled(struct ctx *c)
{
	setup_vm(c);
	TEST_ASSERT_EQ(protmem_set_attr(c->p.gmem, 0, SIZE, KVM_MEMORY_ATTRIBUTE_PRIVATE,
					KVM_SET_MEMORY_ATTRIBUTES2_ZERO, NULL), 0);
	protmem_call(&c->p, 0, guest_fill_range, GPA, RANGE, SEED);
}

static int run_delete_slot(struct ctx *c)
{
	return set_slot(c, 0);
}

static void check_deleted(struct ctx *c, int r)
{
	if (r) {
		/* It stays, with all that can be done in it. */
		TEST_ASSERT_EQ(protmem_call(&c->p, 0, guest_check_range, GPA, RANGE, SEED), 0);
		check_private(c, GPA, RANGE);
		return;
	}
	TEST_ASSERT_EQ(protmem_set_slot(&c->p, PROTMEM_SLOT, GPA, SIZE, 0), 0);
	TEST_ASSERT_EQ(protmem_call(&c->p, 0, guest_check_range, GPA, RANGE, SEED), 0);
}

static const struct op op_delete_slot = { setup_filled, run_delete_slot, check_deleted, teardown_vm, .frugal = true };

static int set_attributes(struct ctx *c, u64 attributes, u64 flags)
{
	u64 done;
	int r;

	r = protmem_set_attr(c->p.gmem, 0, RANGE, attributes, flags, &done);
	if (r) {
		/* A prefix of whole pages, and not one more. */
		u64 a;

		for (a = 0; a < RANGE; a += PAGE_SIZE)
			TEST_ASSERT_EQ(protmem_is_private(&c->p, GPA + a),
				       (a < done) == !!attributes);
	}
	return r;
}

static void setup_shared(struct ctx *c)
{
	u64 a;

	setup_vm(c);
	for (a = GPA; a < GPA + RANGE; a += PAGE_SIZE) {
		if (is_cleared(a))
			WRITE_ONCE(*(u64 *)protmem_hva(&c->p, a), 0);
		else
			protmem_fill(&c->p, a, PAGE_SIZE, SEED);
	}
}

static int run_attr_private(struct ctx *c)
{
	return set_attributes(c, KVM_MEMORY_ATTRIBUTE_PRIVATE,
			      KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE);
}

static int run_attr_shared(struct ctx *c)
{
	return set_attributes(c, 0, KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE);
}

static int run_attr_private_zero(struct ctx *c)
{
	return set_attributes(c, KVM_MEMORY_ATTRIBUTE_PRIVATE,
			      KVM_SET_MEMORY_ATTRIBUTES2_ZERO);
}

static int run_attr_shared_zero(struct ctx *c)
{
	return set_attributes(c, 0, KVM_SET_MEMORY_ATTRIBUTES2_ZERO);
}

/* The contents are what they were, wherever they are by now. */
static void check_kept(struct ctx *c, int r)
{
	u64 a;

	check_private(c, GPA, RANGE);
	for (a = GPA; a < GPA + RANGE; a += PAGE_SIZE) {
		void *mem = protmem_hva(&c->p, a);

		if (!protmem_is_private(&c->p, a))
			TEST_ASSERT_EQ(is_cleared(a) ? protmem_first_nonzero(mem, PAGE_SIZE) :
				       protmem_mismatch(mem, a, PAGE_SIZE, SEED), PAGE_SIZE);
	}
	/* Not while a vCPU is in the middle of its own conversion. */
	if (!r)
		TEST_ASSERT_EQ(protmem_call(&c->p, 0, guest_check_range, GPA, RANGE, SEED), 0);
}

static void check_zero(struct ctx *c, int r)
{
	check_private(c, GPA, RANGE);
	if (!r)
		TEST_ASSERT_EQ(protmem_call(&c->p, 0, guest_check_zero, GPA, RANGE), 0);
}

static const struct op op_attr_private = { setup_shared, run_attr_private, check_kept, teardown_vm };
static const struct op op_attr_shared = { setup_filled, run_attr_shared, check_kept, teardown_vm };
static const struct op op_attr_private_zero = { setup_shared, run_attr_private_zero, check_zero, teardown_vm };
static const struct op op_attr_shared_zero = { setup_filled, run_attr_shared_zero, check_zero, teardown_vm, .frugal = true };

/* The guest's hypercall; its vCPU runs on where it has been stopped. */

static void setup_to_private(struct ctx *c)
{
	setup_shared(c);
	protmem_prepare(&c->p, 0, guest_convert, GPA, RANGE,
			KVM_MAP_GPA_RANGE_ENCRYPTED, 0);
}

static void setup_to_shared(struct ctx *c)
{
	setup_vm(c);
	TEST_ASSERT_EQ(protmem_make_private(&c->p, GPA, SIZE), 0);
	protmem_call(&c->p, 0, guest_fill_range, GPA, RANGE, SEED);
	protmem_prepare(&c->p, 0, guest_convert, GPA, RANGE,
			KVM_MAP_GPA_RANGE_DECRYPTED, 0);
}

static void check_hypercall(struct ctx *c, int r)
{
	if (!r) {
		must_be(protmem_done(&c->p, 0), "the guest's function has come to its end");
		TEST_ASSERT_EQ(c->p.cmd[0]->ret, 0);
	}
	check_kept(c, r);
}

static const struct op op_hc_private = { setup_to_private, run_vcpu, check_hypercall, teardown_vm };
static const struct op op_hc_shared = { setup_to_shared, run_vcpu, check_hypercall, teardown_vm };

/* Faults of the guest */

static void setup_fault(struct ctx *c)
{
	setup_vm(c);
	TEST_ASSERT_EQ(protmem_make_private(&c->p, GPA, SIZE), 0);
	protmem_prepare(&c->p, 0, guest_fill, FAR, PAGE_SIZE, SEED, 0);
}

static void check_filled(struct ctx *c, int r)
{
	check_private(c, FAR, PAGE_SIZE);
	if (!r) {
		must_be(protmem_done(&c->p, 0), "the guest's function has come to its end");
		TEST_ASSERT_EQ(protmem_call(&c->p, 0, guest_check, FAR, PAGE_SIZE, SEED), 0);
		TEST_ASSERT_EQ(protmem_call(&c->p, 0, guest_check_zero, FAR - RANGE, RANGE), 0);
		TEST_ASSERT_EQ(protmem_call(&c->p, 0, guest_check_zero, FAR + PAGE_SIZE,
					    RANGE), 0);
	}
}

static const struct op op_fault = { setup_fault, run_vcpu, check_filled, teardown_vm };

static void setup_fault_shared(struct ctx *c)
{
	setup_vm(c);
	protmem_prepare(&c->p, 0, guest_fill, FAR, PAGE_SIZE, SEED, 0);
}

static const struct op op_fault_shared = { setup_fault_shared, run_vcpu, check_filled, teardown_vm };

/* A limit that large blocks exceed, so that small ones are cut out of the direct map. */
static void setup_fault_small(struct ctx *c)
{
	/*
	 * It is charged to the creator, wherever that is later.  What the last
	 * VM had may still be given back, so this needs a cgroup of its own.
	 */
	protmem_cgroup_create();
	protmem_cgroup_enter();
	setup_fault(c);
	protmem_cgroup_leave();
	protmem_cgroup_limit(protmem_cgroup_charged() + SZ_1M + SZ_64K);
}

static void teardown_small(struct ctx *c)
{
	protmem_cgroup_limit(-1);
	protmem_vm_free(&c->p);
}

static void check_filled_small(struct ctx *c, int r)
{
	if (r) {
		check_private(c, FAR, PAGE_SIZE);
	} else {
		TEST_ASSERT(protmem_off_direct_map() && protmem_off_direct_map() < SZ_2M,
			    "the block has %lx bytes, %lx are charged",
			    protmem_off_direct_map(), protmem_cgroup_charged());
		protmem_cgroup_limit(-1);
		check_filled(c, 0);
	}
}

static const struct op op_fault_small = { setup_fault_small, run_vcpu, check_filled_small, teardown_small };

/* The VMM's own */

static int run_allocate(struct ctx *c)
{
	return fallocate(c->p.gmem, FALLOC_FL_KEEP_SIZE, 0, RANGE) ? -errno : 0;
}

static void setup_private_empty(struct ctx *c)
{
	setup_vm(c);
	TEST_ASSERT_EQ(protmem_set_attr(c->p.gmem, 0, SIZE, KVM_MEMORY_ATTRIBUTE_PRIVATE,
					KVM_SET_MEMORY_ATTRIBUTES2_ZERO, NULL), 0);
}

static int run_punch(struct ctx *c)
{
	return protmem_punch(c->p.gmem, 0, RANGE);
}

static const struct op op_allocate_private = { setup_private_empty, run_allocate, check_zero, teardown_vm };
static const struct op op_allocate_shared = { setup_vm, run_allocate, check_zero, teardown_vm };
static const struct op op_punch_private = { setup_filled, run_punch, check_zero, teardown_vm, .frugal = true };
static const struct op op_punch_shared = { setup_shared, run_punch, check_zero, teardown_vm, .frugal = true };

static int run_reset(struct ctx *c)
{
	return protmem_reset(&c->p);
}

static void check_reset(struct ctx *c, int r)
{
	check_private(c, GPA, RANGE);
	if (!r) {
		TEST_ASSERT_EQ(protmem_first_nonzero(c->p.mem, RANGE), RANGE);
		TEST_ASSERT_EQ(protmem_make_private(&c->p, GPA, RANGE), 0);
		TEST_ASSERT_EQ(protmem_call(&c->p, 0, guest_check_zero, GPA, RANGE), 0);
	}
}

static void setup_half(struct ctx *c)
{
	setup_vm(c);
	TEST_ASSERT_EQ(protmem_make_private(&c->p, GPA, SIZE), 0);
	protmem_call(&c->p, 0, guest_fill, GPA, RANGE, SEED);
	TEST_ASSERT_EQ(protmem_make_shared(&c->p, GPA, RANGE / 2), 0);
}

static const struct op op_reset = { setup_half, run_reset, check_reset, teardown_vm, .frugal = true };

/* The fault is tried again until there is memory. */
static int run_touch(struct ctx *c)
{
	return protmem_try_write(c->p.mem, 77) ? -EFAULT : 0;
}

static void check_touched(struct ctx *c, int r)
{
	TEST_ASSERT_EQ(r, 0);
	TEST_ASSERT_EQ(protmem_call(&c->p, 0, guest_read64, GPA), 77);
}

static void setup_hidden(struct ctx *c)
{
	struct protmem_opts opts = { .caps = PROTMEM_CAPS_HIDE, .size = SIZE };

	protmem_vm_create(&c->p, &opts);
	/* KVM's caches for the second stage are full then. */
	protmem_call(&c->p, 0, guest_nop);
}

static const struct op op_touch = { setup_vm, run_touch, check_touched, teardown_vm, .infallible = true };
static const struct op op_touch_hidden = { setup_hidden, run_touch, check_touched, teardown_vm, .infallible = true };

static void setup_fault_hidden(struct ctx *c)
{
	setup_hidden(c);
	protmem_prepare(&c->p, 0, guest_fill, GPA, PAGE_SIZE, SEED, 0);
}

static void check_filled_hidden(struct ctx *c, int r)
{
	if (!r) {
		must_be(protmem_done(&c->p, 0), "the guest's function has come to its end");
		TEST_ASSERT_EQ(protmem_mismatch(c->p.mem, GPA, PAGE_SIZE, SEED), PAGE_SIZE);
	}
}

static const struct op op_fault_hidden = { setup_fault_hidden, run_vcpu, check_filled_hidden, teardown_vm };

/* KVM writes for the guest, to a page that isn't there yet. */
static void setup_emulated(struct ctx *c)
{
	struct kvm_run *run;

	setup_vm(c);
	run = c->p.vcpu[0]->run;
	TEST_ASSERT_EQ(protmem_make_private(&c->p, GPA, SIZE), 0);
	protmem_prepare(&c->p, 0, guest_ins, GPA, 64, 0, 0);
	vcpu_run(c->p.vcpu[0]);
	TEST_ASSERT_KVM_EXIT_REASON(c->p.vcpu[0], KVM_EXIT_IO);
	memset((u8 *)run + run->io.data_offset, 0x5a, run->io.size * run->io.count);
}

/* No memory is an emulation failure, as for any other memory that isn't there. */
static int run_emulated(struct ctx *c)
{
	struct kvm_run *run = c->p.vcpu[0]->run;
	int r = run_vcpu(c);

	if (r)
		return r;
	return run->exit_reason == KVM_EXIT_INTERNAL_ERROR &&
	       run->internal.suberror == KVM_INTERNAL_ERROR_EMULATION ? -ENOMEM : 0;
}

static void check_emulated(struct ctx *c, int r)
{
	struct kvm_run *run = c->p.vcpu[0]->run;

	check_private(c, GPA, PAGE_SIZE);
	if (r)
		return;
	while (!protmem_done(&c->p, 0)) {
		TEST_ASSERT_KVM_EXIT_REASON(c->p.vcpu[0], KVM_EXIT_IO);
		memset((u8 *)run + run->io.data_offset, 0x5a,
		       run->io.size * run->io.count);
		vcpu_run(c->p.vcpu[0]);
	}
	TEST_ASSERT_EQ(protmem_call(&c->p, 0, guest_read64, GPA + 56),
		       0x5a5a5a5a5a5a5a5aull);
}

static const struct op op_emulated = { setup_emulated, run_emulated, check_emulated, teardown_vm, .final = true };

/* The end of a VM can't fail.  All but the last references have gone before. */
static void keep_files(struct ctx *c)
{
	c->fd = dup(c->p.gmem);
	c->vm_fd = dup(c->p.vm->fd);
	TEST_ASSERT(c->fd >= 0 && c->vm_fd >= 0, "dup");
	protmem_vm_free(&c->p);
}

static int run_death(struct ctx *c)
{
	return close(c->fd) || close(c->vm_fd) ? -errno : 0;
}

static void setup_death(struct ctx *c)
{
	setup_half(c);
	keep_files(c);
}

static const struct op op_death = { setup_death, run_death, NULL, NULL, .infallible = true, .frugal = true };

static void setup_small_death(struct ctx *c)
{
	setup_fault_small(c);
	protmem_run(&c->p, 0);
	protmem_cgroup_limit(-1);
	keep_files(c);
}

static const struct op op_small_death = { setup_small_death, run_death, NULL, NULL, .infallible = true, .frugal = true };

FIXTURE(fault) {
	struct ctx c;
};

/* An operation, and the functions below which it allocates. */
FIXTURE_VARIANT(fault) {
	const struct op *op;
	const char *below[8];
};

#define VARIANT(name, ...)			\
FIXTURE_VARIANT_ADD(fault, name) {		\
	.op = &op_##name,			\
	.below = { __VA_ARGS__ },		\
}

/* This one first, see above. */
VARIANT(windows, "unmapped_window_init");
/* And then this: what it splits of the direct map stays so. */
VARIANT(fault_small, "set_direct_map_valid_noflush", "unmapped_alloc_order",
	"unmapped_pool_alloc");
VARIANT(create, "unmapped_pool_create", "kvm_protmem_create");
VARIANT(create_hidden, "unmapped_pool_create", "kvm_protmem_create");
VARIANT(cap);
VARIANT(set_slot, "kvm_protmem_bind");
VARIANT(delete_slot);
VARIANT(fault, "unmapped_alloc_order", "kvm_protmem_pool_page", "kvm_protmem_get_pfn");
VARIANT(fault_shared, "kvm_protmem_shared_folio");
VARIANT(fault_hidden, "kvm_protmem_pool_page");
VARIANT(attr_private, "kvm_protmem_store_state", "protmem_make_private", "unmapped_pool_alloc");
VARIANT(attr_shared, "protmem_make_shared");
VARIANT(attr_private_zero, "kvm_protmem_store_state");
VARIANT(attr_shared_zero);
VARIANT(hc_private, "kvm_protmem_convert_range", "protmem_make_private");
VARIANT(hc_shared, "kvm_protmem_convert_range", "protmem_make_shared");
VARIANT(allocate_private, "kvm_protmem_allocate");
VARIANT(allocate_shared, "kvm_protmem_allocate", "kvm_protmem_shared_folio");
VARIANT(punch_private);
VARIANT(punch_shared);
VARIANT(reset);
VARIANT(touch, "kvm_protmem_fault_user_mapping");
VARIANT(touch_hidden, "kvm_protmem_fault_user_mapping");
VARIANT(emulated, "protmem_access");
VARIANT(death);
VARIANT(small_death);

static void quiet(void)
{
	fail_below(NULL);
	set_attr("probability", "0");
	set_attr("times", "-1");
	set_attr("task-filter", "Y");
	set_attr("verbose", "0");
	set_attr("ignore-gfp-wait", "N");
	protmem_write_file(DEBUGFS "fail_page_alloc/ignore-gfp-highmem", "N");
	protmem_write_file(DEBUGFS "fail_page_alloc/min-order", "0");
}

FIXTURE_SETUP(fault)
{
	quiet();
	nth_fd = open_self("fail-nth");
	make_it_fd = open_self("make-it-fail");
	protmem_cgroup_create();
	ASSERT_EQ(0, protmem_wait_off_direct_map(0));
}

FIXTURE_TEARDOWN(fault)
{
	quiet();
	close(nth_fd);
	close(make_it_fd);
	protmem_cgroup_leave();
	protmem_cgroup_destroy();
}

static void end_vm(struct ctx *c, const struct op *op)
{
	if (op->teardown)
		op->teardown(c);
	TEST_ASSERT_EQ(protmem_wait_off_direct_map(0), 0);
	TEST_ASSERT_EQ(protmem_read_sysfs("quarantined_bytes"), 0);
}

/*
 * One run of @op, of which the allocation @nth below @below fails, and if
 * @and_rest all that come after it, too.
 *
 * Return: whether there has been such an allocation; *@r is how @op has ended.
 */
static bool run_with_failure(struct ctx *c, const struct op *op, const char *below,
			     int nth, bool and_rest, int *r)
{
	bool failed;

	memset(c, 0, sizeof(*c));
	op->setup(c);

	fail_below(below);
	if (and_rest)
		fail_always(true);
	fail_nth(nth);
	*r = op->run(c);
	failed = fail_end();
	if (and_rest)
		fail_always(false);
	fail_below(NULL);

	TEST_ASSERT(!*r || failed, "errno %d without a failure", -*r);
	TEST_ASSERT(!*r || !op->infallible, "errno %d, and it may not fail", -*r);
	TEST_ASSERT(!*r || *r == -ENOMEM, "errno %d", -*r);
	if (op->check)
		op->check(c, *r);
	return failed;
}

/* How many allocations have failed, and in *@seen how many errors that made. */
static int sweep(struct ctx *c, const struct op *op, const char *below, int *seen)
{
	int nth, r;

	*seen = 0;
	for (nth = 1; ; nth++) {
		TEST_ASSERT(nth < MAX_NTH, "no end of allocations");

		/* This one only, and then it is tried again. */
		if (!run_with_failure(c, op, below, nth, false, &r))
			break;
		*seen += !!r;
		if (r && !op->final) {
			r = op->run(c);
			TEST_ASSERT(!r, "tried again, errno %d", -r);
			if (op->check)
				op->check(c, 0);
		}
		end_vm(c, op);

		/* There is no more memory, and the VM dies of it. */
		if (op->infallible || op->once)
			continue;
		run_with_failure(c, op, below, nth, true, &r);
		*seen += !!r;
		end_vm(c, op);
	}
	end_vm(c, op);
	return nth - 1;
}

TEST_F(fault, each_allocation)
{
	const struct op *op = variant->op;
	int i, nr, seen;

	for (i = 0; i < ARRAY_SIZE(variant->below) && variant->below[i]; i++) {
		nr = sweep(&self->c, op, variant->below[i], &seen);
		TH_LOG("below %s(): %d allocations have failed, %d errors",
		       variant->below[i], nr, seen);
		EXPECT_LT(0, nr);
		/* Or the error is lost.  But another block may need no split. */
		if (!op->infallible &&
		    strcmp(variant->below[i], "set_direct_map_valid_noflush"))
			EXPECT_LT(0, seen);
	}
	/* After those below a function, as this one splits the direct map. */
	if (!op->once) {
		nr = sweep(&self->c, op, NULL, &seen);
		TH_LOG("%d allocations have failed, %d errors", nr, seen);
		if (!op->frugal)
			EXPECT_LT(0, nr);
	}
}

int main(int argc, char **argv)
{
	protmem_require();
	__TEST_REQUIRE(!access("/proc/self/fail-nth", W_OK) &&
		       !access(DEBUGFS "failslab/require-start", W_OK) &&
		       !access(DEBUGFS "fail_page_alloc/require-start", W_OK),
		       "no fault injection: it needs root, debugfs, CONFIG_FAILSLAB, CONFIG_FAIL_PAGE_ALLOC and CONFIG_FAULT_INJECTION_STACKTRACE_FILTER");
	protmem_cgroup_require("protmem_fault_test");
	return test_harness_run(argc, argv);
}
