// SPDX-License-Identifier: GPL-2.0-only
/*
 * What protected memory costs, and what others cost that do something like it, in
 * the same boot: ordinary memory of a VMM, guest_memfd as it is, and the
 * conversions of a VM of type KVM_X86_SW_PROTECTED_VM.
 *
 * Prints lines of MEASURE RIVAL VALUE UNIT, separated by tabs.  "cycles" are what
 * the TSC counts from the first to the last CPU, or nanoseconds on arm64: on an
 * emulated CPU that counts instructions, one a nanosecond, both are the instructions
 * of all CPUs together, and the time in which all of them wait for a timer.  Nothing
 * here passes or fails for being fast or slow.
 */
#include <fcntl.h>
#include <getopt.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/falloc.h>

#include "kvm_syscalls.h"
#include "protmem.h"

#define GPA		PROTMEM_GPA
#define BLOCK		SZ_2M
#define FAIL_PAGE	"/sys/kernel/debug/fail_page_alloc/"

enum backing {
	ANON_4K,		/* a VMM's own memory, no guest_memfd */
	ANON_2M,
	GMEM,			/* guest_memfd, shared, on the direct map */
	PRIVATE_2M,		/* private, whole blocks */
	PRIVATE_4K,		/* private but for a page of each block */
	PRIVATE_BY_PAGE,	/* private, and the blocks are of one page */
	HIDDEN_2M,
	NR_BACKINGS
};

static const char * const backing_names[NR_BACKINGS] = {
	[ANON_4K] = "anonymous memory, 4 KiB",
	[ANON_2M] = "anonymous memory, THP",
	[GMEM] = "guest_memfd",
	[PRIVATE_2M] = "private, 2 MiB",
	[PRIVATE_4K] = "private, 4 KiB of blocks",
	[PRIVATE_BY_PAGE] = "private, blocks of 4 KiB",
	[HIDDEN_2M] = "hidden, 2 MiB",
};

/* What is shared at once; by one call of the guest on x86. */
#define SHARE_SIZE	SZ_16M

static u64 opt_size = SZ_256M;
static int opt_vcpus = 4;

static void result(const char *measure, const char *rival, double value, const char *unit)
{
	printf("%s\t%s\t%.6g\t%s\n", measure, rival, value, unit);
	fflush(stdout);
}

#ifdef __aarch64__
static u64 now(void)
{
	u64 count, hz;

	asm volatile("isb\n\tmrs %0, cntvct_el0" : "=r"(count) : : "memory");
	asm volatile("mrs %0, cntfrq_el0" : "=r"(hz));
	return (__uint128_t)count * NSEC_PER_SEC / hz;
}

/* By the instruction that the kernel uses for it, and so below. */
static void clear_page(void *page)
{
	u64 dczid, size;
	void *p;

	asm volatile("mrs %0, dczid_el0" : "=r"(dczid));
	TEST_ASSERT(!(dczid & BIT(4)), "no DC ZVA");
	size = 4 << (dczid & 0xf);
	for (p = page; p < page + PAGE_SIZE; p += size)
		asm volatile("dc zva, %0" : : "r"(p) : "memory");
}
#else
static u64 now(void)
{
	return rdtsc();
}

static void clear_page(void *page)
{
	u64 count = PAGE_SIZE / 8;

	asm volatile("rep stosq" : "+c"(count), "+D"(page) : "a"(0) : "memory");
}
#endif

/* Allocations of more than a page fail for this thread, if it can be had. */
static int small_pages_only(bool on)
{
	static const char * const set[][2] = {
		{ "task-filter", "Y" }, { "min-order", "1" }, { "ignore-gfp-wait", "N" },
		{ "ignore-gfp-highmem", "N" }, { "verbose", "0" }, { "times", "-1" },
		{ "interval", "1" }, { "probability", "100" },
	};
	char path[128];
	int i;

	for (i = 0; on && i < ARRAY_SIZE(set); i++) {
		snprintf(path, sizeof(path), FAIL_PAGE "%s", set[i][0]);
		if (protmem_write_file(path, set[i][1]))
			return -1;
	}
	return protmem_write_file("/proc/thread-self/make-it-fail", on ? "1" : "0");
}

/* By which a CPU has others do something so far; to flush their TLBs above all. */
static u64 cross_calls(void)
{
	FILE *f = fopen("/proc/interrupts", "r");
	char line[1024], *s, *end;
	u64 sum = 0, n;

	TEST_ASSERT(f, "no /proc/interrupts");
	while (fgets(line, sizeof(line), f)) {
		/* "TLB" counts some of these once more. */
		s = strstr(line, "CAL:");
		for (s = s ? s + 4 : NULL; s; s = end) {
			n = strtoull(s, &end, 10);
			if (end == s)
				break;
			sum += n;
		}
	}
	fclose(f);
	return sum;
}

static u64 file_number(const char *path, const char *key)
{
	FILE *f = fopen(path, "r");
	char line[256];
	u64 n = 0;

	TEST_ASSERT(f, "no %s", path);
	while (fgets(line, sizeof(line), f)) {
		if (!strncmp(line, key, strlen(key)) &&
		    sscanf(line + strlen(key), " %lu", &n) == 1)
			break;
	}
	fclose(f);
	return n;
}

static u64 clear_page_cycles(void)
{
	static u8 page[PAGE_SIZE] __aligned(PAGE_SIZE);
	u64 start, n = 1000, i;

	for (start = 0, i = 0; i <= n; i++) {
		/* The first time it has to be faulted in. */
		if (i == 1)
			start = now();
		clear_page(page);
	}
	return (now() - start) / n;
}

static int set_private(struct protmem_vm *p, u64 offset, u64 size, bool private)
{
	return protmem_set_attr(p->gmem, offset, size,
				private ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0,
				KVM_SET_MEMORY_ATTRIBUTES2_ZERO, NULL);
}

/* A VM with memory of that kind, all of it empty. */
static void create(struct protmem_vm *p, enum backing backing, u64 size, int nr_vcpus)
{
	struct protmem_opts opts = {
		.caps = backing == HIDDEN_2M ? PROTMEM_CAPS_HIDE :
			backing >= PRIVATE_2M ? PROTMEM_CAPS : PROTMEM_CAPS_ORDINARY,
		.size = size,
		.nr_vcpus = nr_vcpus,
		.no_slot = backing <= ANON_2M,
	};
	u64 off;

	protmem_vm_create(p, &opts);
	if (backing <= ANON_2M) {
		kvm_munmap(p->mem, size);
		p->mem = kvm_mmap(size + BLOCK, PROT_READ | PROT_WRITE,
				  MAP_PRIVATE | MAP_ANONYMOUS, -1);
		off = -(u64)p->mem % BLOCK;
		kvm_munmap(p->mem + off + size, BLOCK - off);
		if (off)
			kvm_munmap(p->mem, off);
		p->mem += off;
		p->hva = p->mem;
		TEST_ASSERT_EQ(madvise(p->mem, size, backing == ANON_2M ?
				       MADV_HUGEPAGE : MADV_NOHUGEPAGE), 0);
		TEST_ASSERT_EQ(__vm_set_user_memory_region(p->vm, PROTMEM_SLOT, 0, GPA,
							   size, p->mem), 0);
	}
	if (backing >= PRIVATE_2M && backing != HIDDEN_2M)
		TEST_ASSERT_EQ(set_private(p, 0, size, true), 0);
	for (off = 0; backing == PRIVATE_4K && off < size; off += BLOCK)
		TEST_ASSERT_EQ(set_private(p, off, PAGE_SIZE, false), 0);
}

static u64 guest_touch(u64 gpa, u64 size, u64 c, u64 d)
{
	u64 a;

	for (a = gpa; a < gpa + size; a += PAGE_SIZE)
		WRITE_ONCE(*(u64 *)a, a);
	return 0;
}

static u64 guest_clear(u64 gpa, u64 size, u64 c, u64 d)
{
	u64 a;

	for (a = gpa; a < gpa + size; a += PAGE_SIZE)
		WRITE_ONCE(*(u64 *)a, 0);
	return 0;
}

struct runner {
	struct protmem_vm *p;
	int cpu;
	pthread_barrier_t *barrier;
	bool fail;
};

static void *run_vcpu(void *arg)
{
	struct runner *r = arg;

	if (r->fail)
		TEST_ASSERT_EQ(small_pages_only(true), 0);
	pthread_barrier_wait(r->barrier);
	protmem_run(r->p, r->cpu);
	if (r->fail)
		TEST_ASSERT_EQ(small_pages_only(false), 0);
	return NULL;
}

/* Each vCPU touches its part of the memory, once; the cycles for all of it. */
static u64 touch_all(struct protmem_vm *p, u64 size, bool fail)
{
	struct runner r[PROTMEM_MAX_VCPUS];
	pthread_t t[PROTMEM_MAX_VCPUS];
	pthread_barrier_t barrier;
	u64 part = size / p->nr_vcpus, start;
	int i;

	pthread_barrier_init(&barrier, NULL, p->nr_vcpus + 1);
	for (i = 0; i < p->nr_vcpus; i++) {
		/* What the guest runs by is there already. */
		protmem_call(p, i, guest_nop);
		protmem_prepare(p, i, guest_touch, GPA + i * part, part, 0, 0);
		r[i] = (struct runner) { p, i, &barrier, fail };
		kvm_pthread_create(&t[i], NULL, run_vcpu, &r[i]);
	}
	start = now();
	pthread_barrier_wait(&barrier);
	for (i = 0; i < p->nr_vcpus; i++)
		kvm_pthread_join(t[i], NULL);
	start = now() - start;
	pthread_barrier_destroy(&barrier);
	return start;
}

static bool can_have(enum backing backing)
{
	if (backing == PRIVATE_BY_PAGE && (small_pages_only(true) || small_pages_only(false))) {
		fprintf(stderr, "not measured: %s: it needs CONFIG_FAIL_PAGE_ALLOC\n",
			backing_names[backing]);
		return false;
	}
	return true;
}

static void first_touch(void)
{
	u64 pages = opt_size / PAGE_SIZE, cycles, flushes, large;
	struct protmem_vm p;
	enum backing b;

	result("clear_page", "alone", clear_page_cycles(), "cycles/page");
	for (b = 0; b < NR_BACKINGS; b++) {
		if (!can_have(b))
			continue;
		create(&p, b, opt_size, opt_vcpus);
		flushes = cross_calls();
		cycles = touch_all(&p, opt_size, b == PRIVATE_BY_PAGE);
		flushes = cross_calls() - flushes;
		result("first_touch", backing_names[b], (double)cycles / pages, "cycles/page");
		result("first_touch_ipi", backing_names[b], (double)flushes * BLOCK / opt_size,
		       "IPIs/2 MiB");
		/* That it is what it is called. */
		large = protmem_arch_nr_large(p.vm);
		if (b == PRIVATE_4K || b == PRIVATE_BY_PAGE)
			TEST_ASSERT_EQ(large, 0);
		if (b == PRIVATE_2M || b == HIDDEN_2M)
			TEST_ASSERT(large >= opt_size / BLOCK - 2, "only %lu large mappings", large);
		result("first_touch_2m", backing_names[b], large, "entries");
		protmem_vm_free(&p);
	}
}

struct part {
	pthread_barrier_t *barrier;
	u8 *mem;
	u64 size;
};

static void *touch_part(void *arg)
{
	struct part *part = arg;
	u64 off;

	pthread_barrier_wait(part->barrier);
	for (off = 0; off < part->size; off += PAGE_SIZE)
		WRITE_ONCE(*(u64 *)(part->mem + off), off);
	return NULL;
}

/*
 * No guest can have memory of memfd_secret(2): KVM does not get at its pages.  So it
 * is beside what a VMM touches of its own.
 */
static void host_touch(void)
{
	static const char * const names[] = { "anonymous memory, 4 KiB", "memfd_secret" };
	const struct rlimit limit = { RLIM_INFINITY, RLIM_INFINITY };
	u64 start, size, flushes;
	pthread_t t[PROTMEM_MAX_VCPUS];
	struct part part[PROTMEM_MAX_VCPUS];
	pthread_barrier_t barrier;
	int i, k, fd;
	u8 *mem;

	/* All of it is locked, and page by page it takes long. */
	size = opt_size / 4;
	for (i = 0; i < ARRAY_SIZE(names); i++) {
		fd = -1;
		if (i) {
			TEST_ASSERT_EQ(setrlimit(RLIMIT_MEMLOCK, &limit), 0);
			fd = syscall(__NR_memfd_secret, 0);
			if (fd < 0) {
				fprintf(stderr, "not measured: memfd_secret: %s; it needs CONFIG_SECRETMEM\n",
					strerror(errno));
				return;
			}
			TEST_ASSERT_EQ(ftruncate(fd, size), 0);
		}
		mem = kvm_mmap(size, PROT_READ | PROT_WRITE,
			       i ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS, fd);
		if (!i)
			TEST_ASSERT_EQ(madvise(mem, size, MADV_NOHUGEPAGE), 0);

		pthread_barrier_init(&barrier, NULL, opt_vcpus + 1);
		for (k = 0; k < opt_vcpus; k++) {
			part[k] = (struct part) {
				&barrier, mem + k * (size / opt_vcpus), size / opt_vcpus
			};
			kvm_pthread_create(&t[k], NULL, touch_part, &part[k]);
		}
		flushes = cross_calls();
		start = now();
		pthread_barrier_wait(&barrier);
		for (k = 0; k < opt_vcpus; k++)
			kvm_pthread_join(t[k], NULL);
		result("host_touch", names[i], (double)(now() - start) / (size / PAGE_SIZE),
		       "cycles/page");
		flushes = cross_calls() - flushes;
		result("host_touch_ipi", names[i], (double)flushes * BLOCK / size, "IPIs/2 MiB");
		pthread_barrier_destroy(&barrier);

		start = now();
		kvm_munmap(mem, size);
		if (fd >= 0)
			close(fd);
		result("host_teardown", names[i], (double)(now() - start) / (size / PAGE_SIZE),
		       "cycles/page");
	}
}

static void scale(void)
{
	static const enum backing backings[] = { GMEM, PRIVATE_2M, PRIVATE_4K };
	struct protmem_vm p;
	char measure[32];
	int n, i;

	for (n = 1; n <= PROTMEM_MAX_VCPUS && n <= protmem_nr_cpus(); n *= 2) {
		for (i = 0; i < ARRAY_SIZE(backings); i++) {
			create(&p, backings[i], SZ_64M, n);
			snprintf(measure, sizeof(measure), "scale_%d", n);
			result(measure, backing_names[backings[i]],
			       (double)touch_all(&p, SZ_64M, false) / (SZ_64M / PAGE_SIZE),
			       "cycles/page");
			protmem_vm_free(&p);
		}
	}
}

/*
 * How long CPUs wait for locks, by tracepoints: what the kernel's lock statistics
 * count, without what those cost.  This is time, and means something only where CPUs
 * run at the same time, i.e. not where instructions are counted.
 */
static void lock_waits(void)
{
	static const enum backing backings[] = { ANON_4K, GMEM, PRIVATE_2M, PRIVATE_4K };
	struct waiting { u64 lock, since; } *waiting, *w;
	const int nr_waiting = 1 << 16;
	struct protmem_vm p;
	u64 time, lock, sum, nr;
	char line[512], *s, *cpu;
	enum backing b;
	FILE *f;
	int i, r;

	if (protmem_write_file("/sys/kernel/tracing/trace_clock", "mono") ||
	    protmem_write_file("/sys/kernel/tracing/buffer_size_kb", "16384")) {
		fprintf(stderr, "not measured: lock_waits: it needs tracefs\n");
		return;
	}
	for (i = 0; i < ARRAY_SIZE(backings); i++) {
		b = backings[i];
		create(&p, b, opt_size, opt_vcpus);
		r = protmem_trace_start("lock");
		TEST_ASSERT(!r, "no tracepoints of locks: %d", r);
		touch_all(&p, opt_size, false);
		protmem_trace_stop("lock");
		protmem_vm_free(&p);

		/* By process; no array, as all of the program is in the guest, too. */
		waiting = calloc(nr_waiting, sizeof(*waiting));
		TEST_ASSERT(waiting, "no memory");
		sum = nr = 0;
		f = fopen(PROTMEM_TRACE, "r");
		TEST_ASSERT(f, "no " PROTMEM_TRACE);
		while (fgets(line, sizeof(line), f)) {
			/* COMM-PID [CPU] FLAGS SECONDS: contention_begin: LOCK (...) */
			TEST_ASSERT(!strstr(line, "LOST"), "The trace is not whole: %s", line);
			s = strstr(line, ": contention_");
			cpu = strstr(line, " [");
			if (line[0] == '#' || !s || !cpu)
				continue;
			*s = 0;
			time = atof(strrchr(line, ' ') + 1) * NSEC_PER_SEC;
			lock = strtoull(strstr(s + 1, ": ") + 2, NULL, 16);
			while (cpu > line && cpu[-1] == ' ')
				cpu--;
			*cpu = 0;
			w = &waiting[atoi(strrchr(line, '-') + 1) % nr_waiting];
			if (s[strlen(": contention_")] == 'b') {
				/* A mutex says so again when it stops to spin. */
				if (w->lock != lock)
					w->since = time;
				w->lock = lock;
			} else if (w->lock == lock) {
				sum += time - w->since;
				w->lock = 0;
				nr++;
			}
		}
		fclose(f);
		free(waiting);
		result("lock_waits", backing_names[b], nr, "waits");
		result("lock_wait_time", backing_names[b], (double)sum / (opt_size / PAGE_SIZE), "ns/page");
	}
}

/* A page with contents goes back and forth, and is used in between. */
static u64 guest_swing(u64 gpa, u64 n, u64 c, u64 d)
{
	u64 i;

	for (i = 0; i < n; i++) {
		if (guest_convert(gpa, PAGE_SIZE, PROTMEM_TO_SHARED, 0))
			return 1;
		WRITE_ONCE(*(u64 *)gpa, i);
		if (guest_convert(gpa, PAGE_SIZE, PROTMEM_TO_PRIVATE, 0))
			return 1;
		WRITE_ONCE(*(u64 *)gpa, i);
	}
	return 0;
}

#ifdef __x86_64__
/* What a VMM does for a VM whose private memory is another file. */
static void convert_by_vmm(struct protmem_vm *p)
{
	struct kvm_vcpu *vcpu = p->vcpu[0];
	struct kvm_run *run = vcpu->run;

	for (;;) {
		bool private;
		u64 gpa, size;

		vcpu_run(vcpu);
		if (run->exit_reason != KVM_EXIT_HYPERCALL) {
			TEST_ASSERT(protmem_done(p, 0), "exit %u", run->exit_reason);
			return;
		}
		gpa = run->hypercall.args[0];
		size = run->hypercall.args[1] * PAGE_SIZE;
		private = run->hypercall.args[2] & KVM_MAP_GPA_RANGE_ENCRYPTED;
		vm_set_memory_attributes(p->vm, gpa, size, private ?
					 KVM_MEMORY_ATTRIBUTE_PRIVATE : 0);
		if (private)
			TEST_ASSERT_EQ(madvise(p->mem + (gpa - GPA), size, MADV_DONTNEED), 0);
		else
			TEST_ASSERT_EQ(fallocate(p->gmem, FALLOC_FL_PUNCH_HOLE |
						 FALLOC_FL_KEEP_SIZE, gpa - GPA, size), 0);
		run->hypercall.ret = 0;
	}
}

static void create_sw_protected(struct protmem_vm *p, u64 size)
{
	struct protmem_opts opts = { .type = KVM_X86_SW_PROTECTED_VM, .size = size };

	protmem_vm_create(p, &opts);
	vm_enable_cap(p->vm, KVM_CAP_EXIT_HYPERCALL, BIT(KVM_HC_MAP_GPA_RANGE));
	vm_set_memory_attributes(p->vm, GPA, size, KVM_MEMORY_ATTRIBUTE_PRIVATE);
}

static void convert_sw_protected(u64 n)
{
	struct protmem_vm p;
	u64 start;
	int i;

	if (!(kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(KVM_X86_SW_PROTECTED_VM))) {
		fprintf(stderr, "not measured: conversions of a software-protected VM: it needs CONFIG_KVM_SW_PROTECTED_VM\n");
		return;
	}
	create_sw_protected(&p, BLOCK);
	protmem_call(&p, 0, guest_touch, GPA, BLOCK);
	for (i = 0; i < 2; i++) {
		protmem_prepare(&p, 0, guest_swing, GPA, i ? n : 2, 0, 0);
		start = now();
		convert_by_vmm(&p);
		TEST_ASSERT_EQ(p.cmd[0]->ret, 0);
	}
	result("convert_page", "software-protected VM", (double)(now() - start) / (2 * n),
	       "cycles");
	protmem_vm_free(&p);
}

static void share_sw_protected(void)
{
	struct protmem_vm p;
	u64 start;

	if (!(kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(KVM_X86_SW_PROTECTED_VM)))
		return;
	create_sw_protected(&p, SHARE_SIZE);
	protmem_call(&p, 0, guest_touch, GPA, SHARE_SIZE);
	protmem_prepare(&p, 0, guest_convert, GPA, SHARE_SIZE, PROTMEM_TO_SHARED, 0);
	start = now();
	convert_by_vmm(&p);
	TEST_ASSERT_EQ(p.cmd[0]->ret, 0);
	result("share_range", "software-protected VM (nothing is kept)",
	       (double)(now() - start) / (SHARE_SIZE / PAGE_SIZE), "cycles/page");
	protmem_vm_free(&p);
}
#else
/* There is no such VM. */
static void convert_sw_protected(u64 n)
{
}

static void share_sw_protected(void)
{
}
#endif

/* A guest's bounce buffers at boot, which it has cleared, and memory with contents. */
static void share_range(void)
{
	struct protmem_vm p;
	u64 start;
	int data;

	for (data = 0; data < 2; data++) {
		create(&p, PRIVATE_2M, SHARE_SIZE, 1);
		protmem_call(&p, 0, guest_touch, GPA, SHARE_SIZE);
		if (!data)
			protmem_call(&p, 0, guest_clear, GPA, SHARE_SIZE);
		start = now();
		TEST_ASSERT_EQ(protmem_make_shared(&p, GPA, SHARE_SIZE), 0);
		result("share_range", data ? "private, 2 MiB, data" : "private, 2 MiB, cleared",
		       (double)(now() - start) / (SHARE_SIZE / PAGE_SIZE), "cycles/page");
		result("share_range_takes", data ? "private, 2 MiB, data" : "private, 2 MiB, cleared",
		       (double)vm_get_stat(p.vm, protmem_shared_bytes) / SHARE_SIZE, "x size");
		if (data) {
			start = now();
			TEST_ASSERT_EQ(protmem_make_private(&p, GPA, SHARE_SIZE), 0);
			result("unshare_range", "private, 2 MiB, data",
			       (double)(now() - start) / (SHARE_SIZE / PAGE_SIZE), "cycles/page");
		}
		protmem_vm_free(&p);
	}
	share_sw_protected();
}

static void conversion(void)
{
	const u64 n = 200, rounds = 10;
	struct protmem_vm p;
	u64 start, sum;
	int i;

	/*
	 * In a block that is whole at first, and stays in small entries as long as
	 * a page of it swings, and in one that never is whole.
	 */
	for (i = 0; i < 2; i++) {
		enum backing b = i ? PRIVATE_4K : PRIVATE_2M;

		create(&p, b, BLOCK, 1);
		protmem_call(&p, 0, guest_touch, GPA, BLOCK);
		TEST_ASSERT_EQ(protmem_call(&p, 0, guest_swing, GPA + PAGE_SIZE, 2), 0);
		start = now();
		TEST_ASSERT_EQ(protmem_call(&p, 0, guest_swing, GPA + PAGE_SIZE, n), 0);
		result("convert_page", backing_names[b], (double)(now() - start) / (2 * n),
		       "cycles");
		protmem_vm_free(&p);
	}

	/* What it takes to split a block and to have it whole again. */
	create(&p, PRIVATE_2M, BLOCK, 1);
	protmem_call(&p, 0, guest_touch, GPA, BLOCK);
	for (i = 0, sum = 0; i < rounds; i++) {
		TEST_ASSERT_EQ(protmem_arch_nr_large(p.vm), 1);
		start = now();
		TEST_ASSERT_EQ(protmem_make_shared(&p, GPA + PAGE_SIZE, PAGE_SIZE), 0);
		protmem_call(&p, 0, guest_touch, GPA, BLOCK);
		sum += now() - start;
		usleep(500000);
		start = now();
		TEST_ASSERT_EQ(protmem_make_private(&p, GPA + PAGE_SIZE, PAGE_SIZE), 0);
		protmem_call(&p, 0, guest_touch, GPA, BLOCK);
		sum += now() - start;
	}
	result("split_block", backing_names[PRIVATE_2M], (double)sum / rounds, "cycles");
	protmem_vm_free(&p);

	convert_sw_protected(n);
}

static void untouched(void)
{
	static const u64 sizes[] = { BLOCK, SZ_1G };
	struct protmem_vm p;
	char name[32];
	u64 start;
	int i;

	for (i = 0; i < ARRAY_SIZE(sizes); i++) {
		struct protmem_opts opts = { .caps = PROTMEM_CAPS, .size = SZ_1G };

		protmem_vm_create(&p, &opts);
#ifdef __aarch64__
		/* A call of the guest is for one page; so the VMM does it, before it runs. */
		start = now();
		TEST_ASSERT_EQ(set_private(&p, 0, sizes[i], true), 0);
#else
		protmem_call(&p, 0, guest_nop);
		start = now();
		TEST_ASSERT_EQ(protmem_make_private(&p, GPA, sizes[i]), 0);
#endif
		snprintf(name, sizeof(name), "%lu MiB", sizes[i] / SZ_1M);
		result("untouched_private", name, now() - start, "cycles");
		protmem_vm_free(&p);
	}
}

#ifdef __x86_64__
/* mov %eax, (%rdi); dec %rcx; jnz the first; ret */
static const u8 mmio_code[8] = { 0x89, 0x07, 0x48, 0xff, 0xc9, 0x75, 0xf9, 0xc3 };

static void mmio(void)
{
	const u64 n = 500;
	struct protmem_vm p;
	u64 start, code;
	int i, k;

	memcpy(&code, mmio_code, sizeof(code));
	for (i = 0; i < 2; i++) {
		enum backing b = i ? PRIVATE_2M : GMEM;

		create(&p, b, BLOCK, 1);
		protmem_call(&p, 0, guest_write64, GPA, code);
		for (k = 0; k < 2; k++) {
			struct kvm_run *run = p.vcpu[0]->run;

			protmem_prepare(&p, 0, (protmem_fn_t)GPA, PROTMEM_MMIO_GPA, 0, 0, k ? n : 2);
			start = now();
			do {
				vcpu_run(p.vcpu[0]);
			} while (run->exit_reason == KVM_EXIT_MMIO);
			TEST_ASSERT(protmem_done(&p, 0), "exit %u", run->exit_reason);
		}
		result("mmio", backing_names[b], (double)(now() - start) / n, "cycles");
		protmem_vm_free(&p);
	}
}
#endif

static void teardown(void)
{
	static const enum backing backings[] = { ANON_4K, GMEM, PRIVATE_2M, PRIVATE_4K, HIDDEN_2M };
	u64 size = opt_size, start;
	struct protmem_vm p;
	int i;

	for (i = 0; i < ARRAY_SIZE(backings); i++) {
		create(&p, backings[i], size, 1);
		touch_all(&p, size, false);
		start = now();
		protmem_vm_free(&p);
		result("teardown", backing_names[backings[i]],
		       (double)(now() - start) / (size / PAGE_SIZE), "cycles/page");
	}
}

static void direct_map(void)
{
	u64 before = 0, pages = 0;
	struct protmem_vm p;
	s64 off;
	int i;

	/* The first ones split what is left of 1 GiB, once. */
	for (i = 0; i < 60; i++) {
		if (i == 10)
			before = file_number("/proc/meminfo", "DirectMap4k:");
		create(&p, i & 1 ? PRIVATE_4K : PRIVATE_2M, SZ_32M, 1);
		touch_all(&p, SZ_32M, false);
		TEST_ASSERT_EQ(protmem_call(&p, 0, guest_swing, GPA + 3 * PAGE_SIZE, 5), 0);
		protmem_vm_free(&p);
	}
	off = protmem_wait_off_direct_map(0);
	TEST_ASSERT(off >= 0, "no figure of what is off the direct map");
	pages = file_number("/proc/meminfo", "DirectMap4k:");
	if (before) {
		result("direct_map_4k", "before 50 VMs", before, "KiB");
		result("direct_map_4k", "after 50 VMs", pages, "KiB");
	}
	result("left_in_pools", "after 50 VMs", off, "bytes");
}

static u64 cgroup_kernel_bytes(void)
{
	/* What CPUs have counted each for itself is summed up every other second. */
	sleep(5);
	return file_number("/sys/fs/cgroup/protmem_perf_test/memory.stat", "kernel ");
}

/* A guest that shares every other page: what it costs besides the pages. */
static void metadata(void)
{
	const u64 size = SZ_64M;
	struct protmem_vm p;
	s64 before, kernel;
	u64 off;

	if (access("/sys/fs/cgroup/cgroup.controllers", R_OK)) {
		fprintf(stderr, "not measured: metadata: it needs cgroup v2 in /sys/fs/cgroup\n");
		return;
	}
	protmem_cgroup_require("protmem_perf_test");
	protmem_cgroup_create();
	protmem_cgroup_enter();
	create(&p, PRIVATE_2M, size, 1);
	protmem_call(&p, 0, guest_nop);
	before = cgroup_kernel_bytes();
	touch_all(&p, size, false);
	kernel = cgroup_kernel_bytes() - vm_get_stat(p.vm, protmem_block_bytes);
	result("metadata", "all private", (double)(kernel - before) * SZ_1G / size / SZ_1M,
	       "MiB/GiB");
	for (off = 0; off < size; off += 2 * PAGE_SIZE)
		TEST_ASSERT_EQ(protmem_make_shared(&p, GPA + off, PAGE_SIZE), 0);
	protmem_call(&p, 0, guest_touch, GPA, size);
	kernel = cgroup_kernel_bytes() - vm_get_stat(p.vm, protmem_block_bytes);
	result("metadata", "every other page shared",
	       (double)(kernel - before) * SZ_1G / size / SZ_1M, "MiB/GiB");
	result("held", "every other page shared",
	       (double)(vm_get_stat(p.vm, protmem_block_bytes) +
			vm_get_stat(p.vm, protmem_shared_bytes)) / size, "x size");
	protmem_vm_free(&p);
	protmem_cgroup_leave();
	protmem_cgroup_destroy();
}

static const struct { const char *name; void (*fn)(void); } measures[] = {
	{ "first_touch", first_touch },
	{ "host_touch", host_touch },
	{ "scale", scale },
	{ "lock_waits", lock_waits },
	{ "conversion", conversion },
	{ "share_range", share_range },
	{ "untouched", untouched },
#ifdef __x86_64__
	{ "mmio", mmio },
#endif
	{ "teardown", teardown },
	{ "direct_map", direct_map },
	{ "metadata", metadata },
};

static void help(const char *name)
{
	int i;

	printf("usage: %s [-h] [-s MIB] [-v VCPUS] [MEASURE...]\n\n"
	       "-s: memory to touch (default: 256), -v: vCPUs to touch it (default: 4)\n"
	       "Measures (default: all):", name);
	for (i = 0; i < ARRAY_SIZE(measures); i++)
		printf(" %s", measures[i].name);
	printf("\n");
}

int main(int argc, char **argv)
{
	int opt, i, k;

	while ((opt = getopt(argc, argv, "hs:v:")) != -1) {
		switch (opt) {
		case 's':
			opt_size = atoi_positive("Memory in MiB", optarg) * (u64)SZ_1M;
			break;
		case 'v':
			opt_vcpus = atoi_positive("vCPUs", optarg);
			break;
		default:
			help(argv[0]);
			return opt == 'h' ? 0 : KSFT_FAIL;
		}
	}
	TEST_ASSERT(opt_vcpus <= PROTMEM_MAX_VCPUS && opt_size / BLOCK % opt_vcpus == 0,
		    "Each vCPU has to have whole blocks of 2 MiB, and there are %d at most",
		    PROTMEM_MAX_VCPUS);

	protmem_require();
	for (k = optind; k < argc; k++) {
		for (i = 0; i < ARRAY_SIZE(measures) && strcmp(measures[i].name, argv[k]); i++)
			;
		TEST_ASSERT(i < ARRAY_SIZE(measures), "No measure is called '%s'", argv[k]);
	}
	for (i = 0; i < ARRAY_SIZE(measures); i++) {
		for (k = optind; k < argc && strcmp(measures[i].name, argv[k]); k++)
			;
		if (optind == argc || k < argc)
			measures[i].fn();
	}
	return 0;
}
