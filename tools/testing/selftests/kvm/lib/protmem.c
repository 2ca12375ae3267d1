// SPDX-License-Identifier: GPL-2.0-only
/*
 * Helpers for the tests of KVM_CAP_PROTECTED_MEMORY.
 */
#include <fcntl.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <linux/falloc.h>

#include "cgroup_util.h"
#include "kvm_syscalls.h"
#include "protmem.h"

#define SYSFS_POOL	"/sys/kernel/mm/unmapped_pool/"

void protmem_require(void)
{
	unsigned int mask = kvm_check_cap(KVM_CAP_PROTECTED_MEMORY);

	__TEST_REQUIRE(getpagesize() == PAGE_SIZE,
		       "these tests need pages of %u bytes", (unsigned int)PAGE_SIZE);
	__TEST_REQUIRE(mask,
		       "KVM_CAP_PROTECTED_MEMORY is not supported by this host (the kernel log says why if it knows the capability)");
	__TEST_REQUIRE((mask & PROTMEM_CAPS) == PROTMEM_CAPS,
		       "KVM_CAP_PROTECTED_MEMORY has only %#x of %#llx", mask,
		       PROTMEM_CAPS);
}

int protmem_nr_cpus(void)
{
	cpu_set_t set;

	if (sched_getaffinity(0, sizeof(set), &set))
		return 1;
	return CPU_COUNT(&set);
}

/* Stress tests take their length from the environment, the harness owns argv. */
u64 protmem_test_iterations(u64 dfl)
{
	const char *s = getenv("PROTMEM_ITERATIONS");
	u64 n = s ? strtoull(s, NULL, 0) : 0;

	return n ?: dfl;
}

int protmem_enable_cap(struct kvm_vm *vm, u64 caps, u64 exit_flags)
{
	struct kvm_enable_cap cap = {
		.cap = KVM_CAP_PROTECTED_MEMORY,
		.args = { caps, exit_flags },
	};

	return __vm_ioctl(vm, KVM_ENABLE_CAP, &cap) ? -errno : 0;
}

static void guest_main(struct protmem_cmd *cmd)
{
	if (cmd->share_gpa)
		GUEST_ASSERT(!guest_convert(cmd->share_gpa, PAGE_SIZE, PROTMEM_TO_SHARED, 0));

	for (;;) {
		cmd->ret = cmd->fn(cmd->arg[0], cmd->arg[1], cmd->arg[2],
				   cmd->arg[3]);
		protmem_arch_guest_done();
	}
}

int protmem_set_slot(struct protmem_vm *p, u32 slot, u64 gpa, u64 size,
		     u64 offset)
{
	u32 flags = KVM_MEM_GUEST_MEMFD;

	if (p->caps & KVM_PROTMEM_USER)
		flags = PROTMEM_FLAGS;
	else if (p->caps & KVM_PROTMEM_HIDE_ONLY)
		flags |= KVM_MEM_UNMAP_DIRECT;

	return __vm_set_user_memory_region2(p->vm, slot, flags, gpa, size,
					    p->hva + offset, p->gmem,
					    offset) ? -errno : 0;
}

int protmem_delete_slot(struct protmem_vm *p, u32 slot)
{
	return __vm_set_user_memory_region2(p->vm, slot, 0, 0, 0, NULL, 0,
					    0) ? -errno : 0;
}

void protmem_vm_create(struct protmem_vm *p, const struct protmem_opts *opts)
{
	struct kvm_vm *vm;
	int i, r;

	memset(p, 0, sizeof(*p));
	p->caps = opts->caps;
	p->size = opts->size ?: PROTMEM_SIZE;
	p->nr_vcpus = opts->nr_vcpus ?: 1;
	p->decoy = opts->decoy;
	TEST_ASSERT(p->nr_vcpus <= PROTMEM_MAX_VCPUS, "Too many vCPUs");

	kvm_set_files_rlimit(p->nr_vcpus);

	vm = vm_create_barebones_type(opts->type ?: protmem_arch_vm_type(p->caps));
	p->vm = vm;
	/* The guest has no memory then but what is its own. */
	if (p->caps & KVM_PROTMEM_HOST_KERNEL)
		vm->slot0_flags = PROTMEM_FLAGS;
	if (p->caps) {
		r = protmem_enable_cap(vm, p->caps, opts->exit_flags);
		TEST_ASSERT(!r, "Enabling KVM_CAP_PROTECTED_MEMORY %#lx failed: %d",
			    p->caps, r);
	}

	/* Page tables for the slot, too. */
	vm_init_defaults(vm, p->nr_vcpus, SZ_16M / PAGE_SIZE);
	protmem_arch_vm_prepare(p);

	if (opts->type) {
		/* What is shared is the VMM's own memory. */
		p->gmem = vm_create_guest_memfd(vm, p->size, 0);
		p->mem = kvm_mmap(p->size, PROT_READ | PROT_WRITE,
				  MAP_PRIVATE | MAP_ANONYMOUS, -1);
	} else {
		p->gmem = vm_create_guest_memfd(vm, p->size,
						PROTMEM_GMEM_FLAGS | opts->gmem_flags);
		p->mem = kvm_mmap(p->size, PROT_READ | PROT_WRITE, MAP_SHARED, p->gmem);
	}
	p->hva = p->mem;
	if (p->decoy)
		p->hva = kvm_mmap(p->size, PROT_READ | PROT_WRITE,
				  MAP_PRIVATE | MAP_ANONYMOUS, -1);

	if (!opts->no_slot) {
		r = protmem_set_slot(p, PROTMEM_SLOT, PROTMEM_GPA, p->size, 0);
		TEST_ASSERT(!r, "Creating the slot failed: %d", r);
	}

	protmem_arch_map(vm, PROTMEM_GPA, p->size);
	virt_map(vm, PROTMEM_MMIO_GPA, PROTMEM_MMIO_GPA, 1);

	for (i = 0; i < p->nr_vcpus; i++) {
		p->vcpu[i] = vm_vcpu_add(vm, i, guest_main);
		p->cmd_gva[i] = vm_alloc_page(vm);
		p->cmd[i] = addr_gva2hva(vm, p->cmd_gva[i]);
		if (p->caps & KVM_PROTMEM_HOST_KERNEL)
			p->cmd[i]->share_gpa = addr_gva2gpa(vm, p->cmd_gva[i]);
		vcpu_args_set(p->vcpu[i], 1, p->cmd_gva[i]);
		protmem_arch_vcpu_init(p, i, opts);
	}
	kvm_arch_vm_finalize_vcpus(vm);
}

void protmem_vm_free(struct protmem_vm *p)
{
	kvm_munmap(p->mem, p->size);
	if (p->decoy)
		kvm_munmap(p->hva, p->size);
	if (p->gmem >= 0)
		close(p->gmem);
	kvm_vm_free(p->vm);
	memset(p, 0, sizeof(*p));
}

void protmem_prepare(struct protmem_vm *p, int cpu, protmem_fn_t fn,
		     u64 a, u64 b, u64 c, u64 d)
{
	struct protmem_cmd *cmd = p->cmd[cpu];

	cmd->fn = fn;
	cmd->arg[0] = a;
	cmd->arg[1] = b;
	cmd->arg[2] = c;
	cmd->arg[3] = d;
	cmd->ret = -1ull;
}

/* Is this exit the end of the function?  Fail if the guest did. */
bool protmem_done(struct protmem_vm *p, int cpu)
{
	struct kvm_vcpu *vcpu = p->vcpu[cpu];
	struct kvm_run *run = vcpu->run;
	struct ucall uc;

	if (protmem_arch_is_done(vcpu)) {
		/* Or a reset would make the guest say so once more. */
		vcpu_run_complete_io(vcpu);
		return true;
	}

	if (run->exit_reason == UCALL_EXIT_REASON &&
	    get_ucall(vcpu, &uc) == UCALL_ABORT)
		REPORT_GUEST_ASSERT(uc);

	return false;
}

u64 protmem_run(struct protmem_vm *p, int cpu)
{
	struct kvm_vcpu *vcpu = p->vcpu[cpu];
	struct kvm_run *run = vcpu->run;

	for (;;) {
		vcpu_run(vcpu);

		if (run->exit_reason == KVM_EXIT_PROTECTED_MEMORY) {
			p->nr_convert_exits++;
			p->convert_gpa = run->protected_memory.gpa;
			p->convert_size = run->protected_memory.size;
			p->convert_attributes = run->protected_memory.attributes;
			p->convert_flags = run->protected_memory.flags;
			continue;
		}

		if (protmem_done(p, cpu))
			return p->cmd[cpu]->ret;

		TEST_FAIL("Unexpected exit %u (%s), mmio gpa 0x%llx len %u write %u, suberror %u",
			  run->exit_reason, exit_reason_str(run->exit_reason),
			  run->mmio.phys_addr, run->mmio.len, run->mmio.is_write,
			  run->internal.suberror);
	}
}

u64 __protmem_call(struct protmem_vm *p, int cpu, protmem_fn_t fn,
		   u64 a, u64 b, u64 c, u64 d)
{
	protmem_prepare(p, cpu, fn, a, b, c, d);
	return protmem_run(p, cpu);
}

/* Run by the guest. */

u64 guest_fill(u64 gpa, u64 size, u64 seed, u64 unused)
{
	u64 a;

	for (a = gpa; a < gpa + size; a += sizeof(u64))
		WRITE_ONCE(*(u64 *)a, protmem_word(seed, a));
	return 0;
}

/* Returns the address of the first wrong word, 0 if there is none. */
u64 guest_check(u64 gpa, u64 size, u64 seed, u64 unused)
{
	u64 a;

	for (a = gpa; a < gpa + size; a += sizeof(u64)) {
		if (READ_ONCE(*(u64 *)a) != protmem_word(seed, a))
			return a;
	}
	return 0;
}

u64 guest_check_zero(u64 gpa, u64 size, u64 b, u64 c)
{
	u64 a;

	for (a = gpa; a < gpa + size; a += sizeof(u64)) {
		if (READ_ONCE(*(u64 *)a))
			return a;
	}
	return 0;
}

u64 guest_read64(u64 gva, u64 b, u64 c, u64 d)
{
	return READ_ONCE(*(u64 *)gva);
}

u64 guest_write64(u64 gva, u64 val, u64 c, u64 d)
{
	WRITE_ONCE(*(u64 *)gva, val);
	return 0;
}

u64 guest_nop(u64 a, u64 b, u64 c, u64 d)
{
	return a;
}

/* Run by the host. */

void protmem_fill(struct protmem_vm *p, u64 gpa, u64 size, u64 seed)
{
	u64 *w = protmem_hva(p, gpa);
	u64 i;

	for (i = 0; i < size / sizeof(u64); i++)
		WRITE_ONCE(w[i], protmem_word(seed, gpa + i * sizeof(u64)));
}

u64 protmem_mismatch(const void *mem, u64 gpa, u64 size, u64 seed)
{
	const u64 *w = mem;
	u64 i;

	for (i = 0; i < size / sizeof(u64); i++) {
		if (READ_ONCE(w[i]) != protmem_word(seed, gpa + i * sizeof(u64)))
			return i * sizeof(u64);
	}
	return size;
}

u64 protmem_first_nonzero(const void *mem, u64 size)
{
	const u64 *w = mem;
	u64 i;

	for (i = 0; i < size / sizeof(u64); i++) {
		if (READ_ONCE(w[i]))
			return i * sizeof(u64);
	}
	return size;
}

int protmem_set_attr(int fd, u64 offset, u64 size, u64 attributes, u64 flags,
		     u64 *error_offset)
{
	struct kvm_memory_attributes2 attrs = {
		.offset = offset,
		.size = size,
		.attributes = attributes,
		.flags = flags,
		.error_offset = -1ull,
	};
	int r = ioctl(fd, KVM_SET_MEMORY_ATTRIBUTES2, &attrs) ? -errno : 0;

	if (error_offset)
		*error_offset = attrs.error_offset;
	return r;
}

int protmem_get_attr(int fd, u64 offset, u64 size, u64 *attributes, u64 *run)
{
	struct kvm_memory_attributes2 attrs = {
		.offset = offset,
		.size = size,
	};
	int r = ioctl(fd, KVM_GET_MEMORY_ATTRIBUTES2, &attrs) ? -errno : 0;

	if (attributes)
		*attributes = attrs.attributes;
	if (run)
		*run = attrs.size;
	return r;
}

bool protmem_is_private(struct protmem_vm *p, u64 gpa)
{
	u64 attributes, run;
	int r = protmem_get_attr(p->gmem, gpa - PROTMEM_GPA, PAGE_SIZE,
				 &attributes, &run);

	TEST_ASSERT(!r, "KVM_GET_MEMORY_ATTRIBUTES2 failed: %d", r);
	TEST_ASSERT_EQ(run, (u64)PAGE_SIZE);
	return attributes & KVM_MEMORY_ATTRIBUTE_PRIVATE;
}

int protmem_punch(int fd, u64 offset, u64 size)
{
	return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			 offset, size) ? -errno : 0;
}

int protmem_reset(struct protmem_vm *p)
{
	return __vm_ioctl(p->vm, KVM_RESET_PROTECTED_MEMORY, NULL) ? -errno : 0;
}

static __thread sigjmp_buf touch_jmpbuf;
static __thread int touch_code;
static __thread bool touching;

static void touch_sigbus(int sig, siginfo_t *info, void *ctx)
{
	if (!READ_ONCE(touching)) {
		signal(SIGBUS, SIG_DFL);
		return;
	}
	WRITE_ONCE(touch_code, info->si_code);
	siglongjmp(touch_jmpbuf, 1);
}

static void touch_init(void)
{
	struct sigaction sa = {
		.sa_sigaction = touch_sigbus,
		.sa_flags = SA_SIGINFO | SA_NODEFER,
	};

	/*
	 * For good, and for all threads.  SA_NODEFER and no saving of the mask
	 * keep the stress tests' many faults cheap.
	 */
	sigaction(SIGBUS, &sa, NULL);
}

int protmem_try_read(const void *mem, u64 *val)
{
	touch_init();
	WRITE_ONCE(touching, true);
	if (sigsetjmp(touch_jmpbuf, 0)) {
		WRITE_ONCE(touching, false);
		return READ_ONCE(touch_code);
	}
	*val = READ_ONCE(*(const u64 *)mem);
	WRITE_ONCE(touching, false);
	return 0;
}

int protmem_try_write(void *mem, u64 val)
{
	touch_init();
	WRITE_ONCE(touching, true);
	if (sigsetjmp(touch_jmpbuf, 0)) {
		WRITE_ONCE(touching, false);
		return READ_ONCE(touch_code);
	}
	WRITE_ONCE(*(u64 *)mem, val);
	WRITE_ONCE(touching, false);
	return 0;
}

s64 protmem_read_sysfs(const char *name)
{
	char path[128], buf[32] = {};
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), SYSFS_POOL "%s", name);
	fd = open(path, O_RDONLY);
	if (fd < 0)
		return -1;
	n = read(fd, buf, sizeof(buf) - 1);
	close(fd);
	return n > 0 ? strtoll(buf, NULL, 0) : -1;
}

s64 protmem_off_direct_map(void)
{
	return protmem_read_sysfs("off_direct_map_bytes");
}

/* The last references of a VM can be dropped a little after it is closed. */
s64 protmem_wait_off_direct_map(s64 wanted)
{
	s64 now;
	int i;

	for (i = 0; i < 500; i++) {
		now = protmem_off_direct_map();
		if (now < 0 || now == wanted)
			break;
		usleep(20000);
	}
	return now;
}

int protmem_write_file(const char *path, const char *what)
{
	int fd = open(path, O_WRONLY | O_TRUNC), r;

	if (fd < 0)
		return -errno;
	r = write(fd, what, strlen(what)) < 0 ? -errno : 0;
	close(fd);
	return r;
}

static int trace_event(const char *event, const char *on)
{
	char path[128];

	snprintf(path, sizeof(path), "/sys/kernel/tracing/events/%s/enable", event);
	return protmem_write_file(path, on);
}

int protmem_trace_start(const char *event)
{
	return trace_event(event, "1") ?:
	       protmem_write_file("/sys/kernel/tracing/tracing_on", "1") ?:
	       protmem_write_file(PROTMEM_TRACE, "\n");
}

void protmem_trace_stop(const char *event)
{
	trace_event(event, "0");
}

static char cgroup_root[PATH_MAX];
static char *cgroup;

/* Skip the whole program if there can be no such cgroup. */
void protmem_cgroup_require(const char *name)
{
	long val;

	__TEST_REQUIRE(!cg_find_controller_root(cgroup_root, sizeof(cgroup_root), "memory"),
		       "no memory cgroups: it needs cgroup2 and CONFIG_MEMCG");
	cg_write(cgroup_root, "cgroup.subtree_control", "+memory");
	cgroup = cg_name(cgroup_root, name);
	protmem_cgroup_destroy();
	__TEST_REQUIRE(!cg_create(cgroup), "%s can't be made: it needs root", cgroup);
	val = cg_read_long(cgroup, "memory.current");
	protmem_cgroup_destroy();
	__TEST_REQUIRE(val >= 0, "%s has no memory controller", cgroup);
}

void protmem_cgroup_create(void)
{
	/* A test that died has left its own. */
	protmem_cgroup_destroy();
	TEST_ASSERT(!cg_create(cgroup), "%s: errno %d", cgroup, errno);
}

/* Whoever is in there is killed; who has just died may need a moment to leave. */
void protmem_cgroup_destroy(void)
{
	TEST_ASSERT(!cg_destroy(cgroup), "%s: errno %d", cgroup, errno);
}

void protmem_cgroup_enter(void)
{
	TEST_ASSERT(!cg_enter_current(cgroup), "%s", cgroup);
}

void protmem_cgroup_leave(void)
{
	TEST_ASSERT(!cg_enter_current(cgroup_root), "%s", cgroup_root);
}

void protmem_cgroup_limit(s64 bytes)
{
	int r = bytes < 0 ? cg_write(cgroup, "memory.max", "max") :
			    cg_write_numeric(cgroup, "memory.max", bytes);

	TEST_ASSERT(!r, "%s/memory.max: %d", cgroup, r);
}

s64 protmem_cgroup_charged(void)
{
	long val = cg_read_long(cgroup, "memory.current");

	TEST_ASSERT(val >= 0, "%s/memory.current", cgroup);
	return val;
}

s64 protmem_cgroup_events(const char *name)
{
	char key[32];
	long val;

	snprintf(key, sizeof(key), "%s ", name);
	val = cg_read_key_long(cgroup, "memory.events", key);
	TEST_ASSERT(val >= 0, "%s/memory.events: %s", cgroup, name);
	return val;
}

int protmem_ring_open(struct protmem_ring *ring)
{
	struct io_uring_params *q = &ring->params;

	memset(ring, 0, sizeof(*ring));
	ring->fd = syscall(__NR_io_uring_setup, 8, q);
	if (ring->fd < 0)
		return -errno;
	ring->sq = kvm_mmap(q->sq_off.array + q->sq_entries * sizeof(u32),
			    PROT_READ | PROT_WRITE, MAP_SHARED, ring->fd);
	ring->cq = __kvm_mmap(q->cq_off.cqes +
			      q->cq_entries * sizeof(struct io_uring_cqe),
			      PROT_READ | PROT_WRITE, MAP_SHARED, ring->fd,
			      IORING_OFF_CQ_RING);
	ring->sqes = __kvm_mmap(q->sq_entries * sizeof(struct io_uring_sqe),
				PROT_READ | PROT_WRITE, MAP_SHARED, ring->fd,
				IORING_OFF_SQES);
	return 0;
}

void protmem_ring_close(struct protmem_ring *ring)
{
	struct io_uring_params *q = &ring->params;

	munmap(ring->sqes, q->sq_entries * sizeof(struct io_uring_sqe));
	munmap(ring->cq, q->cq_off.cqes +
	       q->cq_entries * sizeof(struct io_uring_cqe));
	munmap(ring->sq, q->sq_off.array + q->sq_entries * sizeof(u32));
	close(ring->fd);
}

int protmem_ring_submit(struct protmem_ring *ring, int op, int fd, void *addr,
			u32 len, int buf_index)
{
	u32 *tail = (u32 *)(ring->sq + ring->params.sq_off.tail);
	u32 mask = *(u32 *)(ring->sq + ring->params.sq_off.ring_mask);
	u32 *array = (u32 *)(ring->sq + ring->params.sq_off.array);
	u32 i = *tail & mask;
	struct io_uring_sqe *sqe = &ring->sqes[i];

	memset(sqe, 0, sizeof(*sqe));
	sqe->opcode = op;
	sqe->fd = fd;
	sqe->addr = (unsigned long)addr;
	sqe->len = len;
	sqe->off = -1ull;
	if (buf_index >= 0)
		sqe->buf_index = buf_index;
	array[i] = i;
	__atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
	return syscall(__NR_io_uring_enter, ring->fd, 1, 0, 0, NULL, 0);
}

int protmem_ring_wait(struct protmem_ring *ring)
{
	u32 *head = (u32 *)(ring->cq + ring->params.cq_off.head);
	u32 *tail = (u32 *)(ring->cq + ring->params.cq_off.tail);
	u32 mask = *(u32 *)(ring->cq + ring->params.cq_off.ring_mask);
	struct io_uring_cqe *cqes;
	int res;

	cqes = (void *)(ring->cq + ring->params.cq_off.cqes);
	while (*head == __atomic_load_n(tail, __ATOMIC_ACQUIRE)) {
		if (syscall(__NR_io_uring_enter, ring->fd, 0, 1,
			    IORING_ENTER_GETEVENTS, NULL, 0) < 0 &&
		    errno != EINTR)
			return -errno;
	}
	res = cqes[*head & mask].res;
	__atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
	return res;
}
