// SPDX-License-Identifier: GPL-2.0-only
/*
 * Guests that convert their memory on several vCPUs at once while their VMM
 * touches it, pins it, asks about it, resets it and dies.
 *
 * Each vCPU keeps a shadow of what it wrote in memory that is never converted
 * and compares after each step.  Words with bit 63 set are secrets: they are in
 * private pages only, so whoever reads one on the host side has found a leak.
 */
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "kselftest_harness.h"
#include "kvm_syscalls.h"
#include "protmem.h"

#define GPA		PROTMEM_GPA
#define NR_VCPUS	4
#define PAGES_PER_VCPU	48
#define TOTAL		(NR_VCPUS * PAGES_PER_VCPU * PAGE_SIZE)
#define SECRET		BIT_ULL(63)
/* Enough of a page to notice that it is another one. */
#define WORDS		8
#define STRIDE		(PAGE_SIZE / WORDS)

/* Per page: the seed it was filled with, and what it is. */
struct shadow {
	u64 seed;
	bool is_private;
	bool is_secret;
};

struct guest_state {
	struct shadow shadow[PAGES_PER_VCPU];
	u64 rng;
	u64 steps;
};

/* In the guest's copy of the data, one for each vCPU. */
static struct guest_state guest_states[NR_VCPUS];

static u64 next_random(struct guest_state *s)
{
	s->rng = s->rng * 6364136223846793005ull + 1442695040888963407ull;
	return s->rng >> 33;
}

static u64 word(const struct shadow *sh, u64 addr)
{
	u64 w = protmem_word(sh->seed, addr);

	return sh->is_secret ? w | SECRET : w & ~SECRET;
}

static void write_page(struct shadow *sh, u64 gpa, u64 seed, bool secret)
{
	u64 i;

	sh->seed = seed;
	sh->is_secret = secret;
	for (i = 0; i < WORDS; i++)
		WRITE_ONCE(*(u64 *)(gpa + i * STRIDE), word(sh, gpa + i * STRIDE));
}

static bool page_is_right(const struct shadow *sh, u64 gpa)
{
	u64 i, want;

	for (i = 0; i < WORDS; i++) {
		want = sh->seed ? word(sh, gpa + i * STRIDE) : 0;
		if (READ_ONCE(*(u64 *)(gpa + i * STRIDE)) != want)
			return false;
	}
	return true;
}

/*
 * Returns 0, or what went wrong in the low byte and the step above it.  The
 * shadow starts out as all shared and empty if @fresh.
 */
static u64 guest_convert_at_random(u64 cmd_gva, u64 cpu, u64 steps, u64 fresh)
{
	struct protmem_cmd *cmd = (void *)cmd_gva;
	struct guest_state *s = &guest_states[cpu];
	u64 base = GPA + cpu * PAGES_PER_VCPU * PAGE_SIZE;
	u64 i, j, n, page, gpa, r;

	if (fresh) {
		memset(s, 0, sizeof(*s));
		s->rng = fresh + cpu * 977;
	}

	for (i = 0; i < steps && !READ_ONCE(cmd->stop); i++) {
		page = next_random(s) % PAGES_PER_VCPU;
		n = 1 + next_random(s) % 4;
		if (n > PAGES_PER_VCPU - page)
			n = PAGES_PER_VCPU - page;
		gpa = base + page * PAGE_SIZE;

		for (j = page; j < page + n; j++) {
			if (!page_is_right(&s->shadow[j], base + j * PAGE_SIZE))
				return 1 | i << 8;
		}

		if (next_random(s) & 1) {
			r = guest_convert(gpa, n * PAGE_SIZE, PROTMEM_TO_PRIVATE, 0);
			if (r)
				return 2 | i << 8;
			for (j = page; j < page + n; j++) {
				s->shadow[j].is_private = true;
				if (!page_is_right(&s->shadow[j], base + j * PAGE_SIZE))
					return 3 | i << 8;
				if (next_random(s) & 1)
					write_page(&s->shadow[j], base + j * PAGE_SIZE,
						   next_random(s) | 1, true);
			}
		} else {
			/* No secrets in what is given away. */
			for (j = page; j < page + n; j++) {
				if (s->shadow[j].is_secret || next_random(s) & 1)
					write_page(&s->shadow[j], base + j * PAGE_SIZE,
						   next_random(s) | 1, false);
			}
			r = guest_convert(gpa, n * PAGE_SIZE, PROTMEM_TO_SHARED, 0);
			if (r)
				return 4 | i << 8;
			for (j = page; j < page + n; j++) {
				s->shadow[j].is_private = false;
				if (!page_is_right(&s->shadow[j], base + j * PAGE_SIZE))
					return 5 | i << 8;
				if (next_random(s) & 1)
					write_page(&s->shadow[j], base + j * PAGE_SIZE,
						   next_random(s) | 1, false);
			}
		}
		s->steps++;
		WRITE_ONCE(cmd->count, s->steps);
	}

	/* The neighbours' pages are not to be seen in ours. */
	for (j = 0; j < PAGES_PER_VCPU; j++) {
		if (!page_is_right(&s->shadow[j], base + j * PAGE_SIZE))
			return 6 | i << 8;
	}
	return 0;
}

struct host {
	struct protmem_vm p;
	pthread_t vcpu_thread[NR_VCPUS];
	struct { struct host *h; int cpu; } vcpu_arg[NR_VCPUS];
	bool stop;
	u64 reads, refused, leaks, splices, splices_refused, queries;
};

static u32 thread_random(u64 *s)
{
	*s = *s * 6364136223846793005ull + 1442695040888963407ull;
	return *s >> 33;
}

/* Touches whatever there is. */
static void *toucher(void *arg)
{
	struct host *h = arg;
	u64 rng = (unsigned long)&rng, val;

	while (!READ_ONCE(h->stop)) {
		u64 off = thread_random(&rng) % (TOTAL / STRIDE) * STRIDE;

		if (protmem_try_read(h->p.mem + off, &val)) {
			__atomic_fetch_add(&h->refused, 1, __ATOMIC_RELAXED);
		} else {
			__atomic_fetch_add(&h->reads, 1, __ATOMIC_RELAXED);
			if (val & SECRET)
				__atomic_fetch_add(&h->leaks, 1, __ATOMIC_RELAXED);
		}
	}
	return NULL;
}

/* Pins pages in a pipe for a while and looks at them later. */
static void *pinner(void *arg)
{
	struct host *h = arg;
	u64 rng = (unsigned long)&rng + 1;
	u64 buf[4 * PAGE_SIZE / 8];
	int fds[2], i;

	TEST_ASSERT(!pipe(fds), "pipe");
	while (!READ_ONCE(h->stop)) {
		struct iovec iov = {
			.iov_base = h->p.mem + thread_random(&rng) %
				    (TOTAL / PAGE_SIZE - 4) * PAGE_SIZE,
			.iov_len = (1 + thread_random(&rng) % 4) * PAGE_SIZE,
		};
		ssize_t n = vmsplice(fds[1], &iov, 1, SPLICE_F_NONBLOCK);

		if (n < 0) {
			TEST_ASSERT(errno == EFAULT, "vmsplice: errno %d", errno);
			h->splices_refused++;
			continue;
		}
		h->splices++;
		for (i = thread_random(&rng) % 64; i; i--)
			sched_yield();
		n = read(fds[0], buf, n);
		for (i = 0; i < n / 8; i++) {
			if (buf[i] & SECRET)
				__atomic_fetch_add(&h->leaks, 1, __ATOMIC_RELAXED);
		}
	}
	close(fds[0]);
	close(fds[1]);
	return NULL;
}

/* Asks about the state, and tries what the latch forbids. */
static void *asker(void *arg)
{
	struct host *h = arg;
	u64 rng = (unsigned long)&rng + 2, attributes, run;

	while (!READ_ONCE(h->stop)) {
		u64 off = thread_random(&rng) % (TOTAL / PAGE_SIZE) * PAGE_SIZE;
		int r;

		TEST_ASSERT_EQ(protmem_get_attr(h->p.gmem, off, h->p.size - off,
						&attributes, &run), 0);
		TEST_ASSERT(run && !(run % PAGE_SIZE), "run %lx", run);
		/* Nothing private is in the last quarter, ever. */
		r = protmem_punch(h->p.gmem, h->p.size * 3 / 4, PAGE_SIZE);
		TEST_ASSERT_EQ(r, 0);
		vm_get_stat(h->p.vm, protmem_private_bytes);
		h->queries++;
	}
	return NULL;
}

static void *vcpu_thread(void *arg)
{
	struct { struct host *h; int cpu; } *a = arg;

	protmem_run(&a->h->p, a->cpu);
	return NULL;
}

static void start_vcpus(struct host *h, u64 steps, u64 fresh)
{
	int i;

	for (i = 0; i < NR_VCPUS; i++) {
		h->p.cmd[i]->stop = 0;
		h->p.cmd[i]->count = 0;
		protmem_prepare(&h->p, i, guest_convert_at_random,
				h->p.cmd_gva[i], i, steps, fresh);
		h->vcpu_arg[i].h = h;
		h->vcpu_arg[i].cpu = i;
		kvm_pthread_create(&h->vcpu_thread[i], NULL, vcpu_thread,
				   &h->vcpu_arg[i]);
	}
}

static void join_vcpus(struct host *h)
{
	int i;

	for (i = 0; i < NR_VCPUS; i++) {
		kvm_pthread_join(h->vcpu_thread[i], NULL);
		TEST_ASSERT(!h->p.cmd[i]->ret, "vCPU %d: error %lu at step %lu", i,
			    h->p.cmd[i]->ret & 0xff, h->p.cmd[i]->ret >> 8);
	}
}

static void stop_vcpus(struct host *h)
{
	int i;

	for (i = 0; i < NR_VCPUS; i++)
		WRITE_ONCE(h->p.cmd[i]->stop, 1);
	join_vcpus(h);
}

static void host_init(struct host *h)
{
	struct protmem_opts opts = { .caps = PROTMEM_CAPS, .nr_vcpus = NR_VCPUS };

	memset(h, 0, sizeof(*h));
	protmem_vm_create(&h->p, &opts);
}

static void check_all_back(struct __test_metadata *_metadata)
{
	s64 left = protmem_wait_off_direct_map(0);

	if (left < 0)
		return;
	EXPECT_EQ(0, left);
	EXPECT_LE(protmem_read_sysfs("quarantined_bytes"), 0);
}

/* Four vCPUs against four threads of the VMM. */
TEST(convert_against_vmm)
{
	u64 steps = protmem_test_iterations(1500);
	pthread_t t[4];
	struct host h;
	int i;

	if (protmem_nr_cpus() < 2)
		SKIP(return, "needs 2 CPUs");

	host_init(&h);
	pthread_create(&t[0], NULL, toucher, &h);
	pthread_create(&t[1], NULL, toucher, &h);
	pthread_create(&t[2], NULL, pinner, &h);
	pthread_create(&t[3], NULL, asker, &h);
	start_vcpus(&h, steps, 4242);
	join_vcpus(&h);
	WRITE_ONCE(h.stop, true);
	for (i = 0; i < 4; i++)
		pthread_join(t[i], NULL);

	EXPECT_EQ(0, h.leaks);
	EXPECT_LT(0, h.refused);
	EXPECT_LE(h.refused, vm_get_stat(h.p.vm, protmem_refused));
	TH_LOG("%d vCPUs with %lu steps each, %lu conversions", NR_VCPUS, steps,
	       vm_get_stat(h.p.vm, protmem_conversions));
	TH_LOG("VMM: %lu reads, %lu refused, %lu pins, %lu refused, %lu queries",
	       h.reads, h.refused, h.splices, h.splices_refused, h.queries);
	protmem_vm_free(&h.p);
	check_all_back(_metadata);
}

/* The same, stopped and reset again and again. */
TEST(convert_and_reset)
{
	u64 rounds = protmem_test_iterations(30), i;
	struct host h;
	pthread_t t[2];
	int r, busy = 0;

	if (protmem_nr_cpus() < 2)
		SKIP(return, "needs 2 CPUs");

	host_init(&h);
	pthread_create(&t[0], NULL, toucher, &h);
	pthread_create(&t[1], NULL, pinner, &h);
	for (i = 0; i < rounds; i++) {
		start_vcpus(&h, 1u << 30, 1000 + i);
		/* Some of them have begun, at least. */
		while (!READ_ONCE(h.p.cmd[i % NR_VCPUS]->count))
			sched_yield();
		usleep(i * 100 % 3000);
		r = protmem_reset(&h.p);
		ASSERT_EQ(-EBUSY, r);
		busy++;
		stop_vcpus(&h);
		ASSERT_EQ(0, protmem_reset(&h.p));
		ASSERT_EQ(0, vm_get_stat(h.p.vm, protmem_private_bytes));
	}
	WRITE_ONCE(h.stop, true);
	pthread_join(t[0], NULL);
	pthread_join(t[1], NULL);
	EXPECT_EQ(0, h.leaks);
	TH_LOG("%lu rounds, %lu reads, %lu refused, %lu pins", rounds, h.reads,
	       h.refused, h.splices);
	protmem_vm_free(&h.p);
	check_all_back(_metadata);
}

/*
 * Death.  A child is killed at a named point, and everything has to come back.
 */
enum stage {
	AFTER_CREATE,
	AFTER_CAP,
	AFTER_SLOT,
	ALL_PRIVATE_UNTOUCHED,
	ALL_PRIVATE_FILLED,
	HALF_SHARED,
	AFTER_RESET,
	IN_CONVERSION,
	IN_LARGE_CONVERSION,
	IN_SET_ATTRIBUTES,
	IN_RESET,
	IN_SLOT_DELETION,
	WITH_PINS,
	FD_OUTLIVES_VM,
	VM_OUTLIVES_FD,
	IN_EMULATION,
	UNDER_FIRE,
	/* These are for killed_at_random only. */
	IN_RESET_OF_MANY,
	IN_BIRTH_AND_DEATH,
};

FIXTURE(death) {
};

FIXTURE_VARIANT(death) {
	enum stage stage;
	bool smp;
};

FIXTURE_VARIANT_ADD(death, after_create) {
	.stage = AFTER_CREATE,
};

FIXTURE_VARIANT_ADD(death, after_cap) {
	.stage = AFTER_CAP,
};

FIXTURE_VARIANT_ADD(death, after_slot) {
	.stage = AFTER_SLOT,
};

FIXTURE_VARIANT_ADD(death, all_private_untouched) {
	.stage = ALL_PRIVATE_UNTOUCHED,
};

FIXTURE_VARIANT_ADD(death, all_private_filled) {
	.stage = ALL_PRIVATE_FILLED,
};

FIXTURE_VARIANT_ADD(death, half_shared) {
	.stage = HALF_SHARED,
};

FIXTURE_VARIANT_ADD(death, after_reset) {
	.stage = AFTER_RESET,
};

FIXTURE_VARIANT_ADD(death, in_conversion) {
	.stage = IN_CONVERSION,
	.smp = true,
};

FIXTURE_VARIANT_ADD(death, in_large_conversion) {
	.stage = IN_LARGE_CONVERSION,
};

FIXTURE_VARIANT_ADD(death, in_set_attributes) {
	.stage = IN_SET_ATTRIBUTES,
};

FIXTURE_VARIANT_ADD(death, in_reset) {
	.stage = IN_RESET,
};

FIXTURE_VARIANT_ADD(death, in_slot_deletion) {
	.stage = IN_SLOT_DELETION,
};

FIXTURE_VARIANT_ADD(death, with_pins) {
	.stage = WITH_PINS,
};

FIXTURE_VARIANT_ADD(death, fd_outlives_vm) {
	.stage = FD_OUTLIVES_VM,
};

FIXTURE_VARIANT_ADD(death, vm_outlives_fd) {
	.stage = VM_OUTLIVES_FD,
};

FIXTURE_VARIANT_ADD(death, in_emulated_string) {
	.stage = IN_EMULATION,
};

FIXTURE_VARIANT_ADD(death, under_fire) {
	.stage = UNDER_FIRE,
	.smp = true,
};

FIXTURE_SETUP(death)
{
}

FIXTURE_TEARDOWN(death)
{
}

static u64 guest_convert_forever(u64 gpa, u64 size, u64 c, u64 d)
{
	for (;;) {
		if (guest_convert(gpa, size, PROTMEM_TO_PRIVATE, 0) ||
		    guest_convert(gpa, size, PROTMEM_TO_SHARED, 0))
			return 1;
	}
}

static void send_fd(int sock, int fd)
{
	char c = 0, ctl[CMSG_SPACE(sizeof(int))] = {};
	struct iovec iov = { &c, 1 };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = ctl,
		.msg_controllen = sizeof(ctl),
	};
	struct cmsghdr *cm = CMSG_FIRSTHDR(&msg);

	cm->cmsg_level = SOL_SOCKET;
	cm->cmsg_type = SCM_RIGHTS;
	cm->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(cm), &fd, sizeof(int));
	TEST_ASSERT(sendmsg(sock, &msg, 0) == 1, "sendmsg: %d", errno);
}

static int recv_fd(int sock)
{
	char c, ctl[CMSG_SPACE(sizeof(int))];
	struct iovec iov = { &c, 1 };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = ctl,
		.msg_controllen = sizeof(ctl),
	};
	struct cmsghdr *cm;
	int fd = -1;

	if (recvmsg(sock, &msg, 0) != 1)
		return -1;
	cm = CMSG_FIRSTHDR(&msg);
	if (cm)
		memcpy(&fd, CMSG_DATA(cm), sizeof(int));
	return fd;
}

static void ready(int sock)
{
	char c = 1;

	TEST_ASSERT(write(sock, &c, 1) == 1, "write");
}

/* Never returns: says that it is there, and waits to be killed or goes on. */
static void live(enum stage stage, int sock)
{
	struct protmem_opts opts = { .caps = PROTMEM_CAPS };
	struct protmem_vm *p, vm;
	static struct host h;
	pthread_t t[4];
	struct kvm_vm *bare;
	u64 i;

	switch (stage) {
	case AFTER_CREATE:
		bare = vm_create_barebones();
		(void)bare;
		goto wait;
	case AFTER_CAP:
		bare = vm_create_barebones();
		protmem_enable_cap(bare, PROTMEM_CAPS, 0);
		vm_create_guest_memfd(bare, SZ_1M, PROTMEM_GMEM_FLAGS);
		goto wait;
	case IN_CONVERSION:
		host_init(&h);
		start_vcpus(&h, -1ull, 99);
		for (i = 0; i < NR_VCPUS; i++) {
			while (!READ_ONCE(h.p.cmd[i]->count))
				sched_yield();
		}
		goto wait;
	case UNDER_FIRE:
		host_init(&h);
		pthread_create(&t[0], NULL, toucher, &h);
		pthread_create(&t[1], NULL, toucher, &h);
		pthread_create(&t[2], NULL, pinner, &h);
		pthread_create(&t[3], NULL, asker, &h);
		start_vcpus(&h, -1ull, 98);
		goto wait;
	case IN_RESET_OF_MANY:
		host_init(&h);
		for (i = 0; ; i++) {
			start_vcpus(&h, 1u << 30, 97 + i);
			usleep(i * 100 % 3000);
			stop_vcpus(&h);
			TEST_ASSERT_EQ(protmem_reset(&h.p), 0);
		}
	case IN_BIRTH_AND_DEATH:
		for (;;) {
			protmem_vm_create(&vm, &opts);
			TEST_ASSERT_EQ(protmem_make_private(&vm, GPA, 256 * PAGE_SIZE), 0);
			protmem_call(&vm, 0, guest_fill, GPA, 16 * PAGE_SIZE, 96);
			TEST_ASSERT_EQ(protmem_make_shared(&vm, GPA, 4 * PAGE_SIZE), 0);
			protmem_vm_free(&vm);
		}
	default:
		break;
	}

	p = &vm;
	if (stage == IN_LARGE_CONVERSION || stage == IN_SET_ATTRIBUTES)
		opts.size = SZ_32M;
	protmem_vm_create(p, &opts);
	if (stage == AFTER_SLOT)
		goto wait;

	if (stage == IN_LARGE_CONVERSION) {
		protmem_fill(p, GPA, p->size, 1);
		ready(sock);
		protmem_call(p, 0, guest_convert_forever, GPA, p->size);
		exit(1);
	}
	if (stage == IN_SET_ATTRIBUTES) {
		protmem_fill(p, GPA, p->size, 1);
		ready(sock);
		for (i = 0; ; i++)
			protmem_set_attr(p->gmem, 0, p->size,
					 i & 1 ? 0 : KVM_MEMORY_ATTRIBUTE_PRIVATE,
					 KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE, NULL);
	}

	TEST_ASSERT_EQ(protmem_make_private(p, GPA, p->size), 0);
	if (stage == ALL_PRIVATE_UNTOUCHED)
		goto wait;
	protmem_call(p, 0, guest_fill, GPA, p->size, 7);

	switch (stage) {
	case HALF_SHARED:
		TEST_ASSERT_EQ(protmem_make_shared(p, GPA, p->size / 2), 0);
		for (i = 0; i < p->size / 2; i += 2 * PAGE_SIZE)
			TEST_ASSERT_EQ(protmem_make_private(p, GPA + i, PAGE_SIZE), 0);
		break;
	case AFTER_RESET:
		TEST_ASSERT_EQ(protmem_reset(p), 0);
		break;
	case IN_RESET:
		ready(sock);
		for (;;) {
			TEST_ASSERT_EQ(protmem_reset(p), 0);
			TEST_ASSERT_EQ(protmem_make_private(p, GPA, p->size), 0);
			protmem_call(p, 0, guest_fill, GPA, p->size, 8);
		}
	case IN_SLOT_DELETION:
		TEST_ASSERT_EQ(protmem_reset(p), 0);
		ready(sock);
		for (;;) {
			protmem_set_attr(p->gmem, 0, 256 * PAGE_SIZE,
					 KVM_MEMORY_ATTRIBUTE_PRIVATE,
					 KVM_SET_MEMORY_ATTRIBUTES2_ZERO, NULL);
			protmem_call(p, 0, guest_fill, GPA, 16 * PAGE_SIZE, 9);
			if (PROTMEM_RUN_LATCHES)
				TEST_ASSERT_EQ(protmem_reset(p), 0);
			TEST_ASSERT_EQ(protmem_delete_slot(p, PROTMEM_SLOT), 0);
			TEST_ASSERT_EQ(protmem_set_slot(p, PROTMEM_SLOT, GPA,
							p->size, 0), 0);
		}
	case WITH_PINS: {
		struct iovec iov = { p->mem, 8 * PAGE_SIZE };
		int fds[2];

		/* The parent keeps the pipe, and so the pages. */
		TEST_ASSERT_EQ(protmem_make_shared(p, GPA, 256 * PAGE_SIZE), 0);
		TEST_ASSERT_EQ(pipe(fds), 0);
		TEST_ASSERT_EQ(vmsplice(fds[1], &iov, 1, 0), 8 * PAGE_SIZE);
		send_fd(sock, fds[0]);
		TEST_ASSERT_EQ(protmem_make_private(p, GPA, 256 * PAGE_SIZE), 0);
		protmem_call(p, 0, guest_fill, GPA, 256 * PAGE_SIZE, 10);
		break;
	}
	case FD_OUTLIVES_VM:
		/* In the parent, while all else of the VM dies with the child. */
		send_fd(sock, p->gmem);
		break;
	case VM_OUTLIVES_FD:
		send_fd(sock, p->vm->fd);
		break;
	case IN_EMULATION:
#ifdef __x86_64__
		protmem_prepare(p, 0, guest_ins, GPA, 16 * PAGE_SIZE, 0, 0);
		vcpu_run(p->vcpu[0]);
		TEST_ASSERT_KVM_EXIT_REASON(p->vcpu[0], KVM_EXIT_IO);
#else
		protmem_prepare(p, 0, guest_read64, PROTMEM_MMIO_GPA, 0, 0, 0);
		vcpu_run(p->vcpu[0]);
		TEST_ASSERT_KVM_EXIT_REASON(p->vcpu[0], KVM_EXIT_MMIO);
#endif
		break;
	default:
		break;
	}
wait:
	ready(sock);
	for (;;)
		pause();
}

TEST_F(death, at_stage)
{
	int socks[2], fd = -1, rounds, i, status;
	u64 buf[8 * PAGE_SIZE / 8];
	char c;
	pid_t pid;

	if (variant->smp && protmem_nr_cpus() < 2)
		SKIP(return, "needs 2 CPUs");

	/* Where it matters when, try several times. */
	rounds = variant->stage >= IN_CONVERSION &&
		 variant->stage <= IN_SLOT_DELETION ? 5 :
		 variant->stage == UNDER_FIRE ? 5 : 1;
	for (i = 0; i < rounds; i++) {
		ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, socks));
		pid = fork();
		if (!pid) {
			close(socks[0]);
			live(variant->stage, socks[1]);
			_exit(1);
		}
		close(socks[1]);
		if (variant->stage == WITH_PINS || variant->stage == FD_OUTLIVES_VM ||
		    variant->stage == VM_OUTLIVES_FD) {
			fd = recv_fd(socks[0]);
			ASSERT_LE(0, fd);
		}
		ASSERT_EQ(1, read(socks[0], &c, 1)) {
			TH_LOG("the child did not get there");
		}
		usleep(i * 7000);
		kill(pid, SIGKILL);
		waitpid(pid, &status, 0);
		EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
		close(socks[0]);

		switch (variant->stage) {
		case WITH_PINS:
			/* Orphans: all else is gone, and they are as they were. */
			check_all_back(_metadata);
			EXPECT_EQ(8 * PAGE_SIZE, read(fd, buf, sizeof(buf)));
			EXPECT_EQ(8 * PAGE_SIZE,
				  protmem_mismatch(buf, GPA, 8 * PAGE_SIZE, 7));
			close(fd);
			break;
		case FD_OUTLIVES_VM: {
			u64 val;
			u8 *m = mmap(NULL, SZ_1M, PROT_READ | PROT_WRITE, MAP_SHARED,
				     fd, 0);

			/* Still nobody else's. */
			if (m != MAP_FAILED) {
				EXPECT_EQ(BUS_ADRERR, protmem_try_read(m, &val));
				munmap(m, SZ_1M);
			}
			EXPECT_EQ(-EPERM, protmem_punch(fd, 0, SZ_1M));
			close(fd);
			break;
		}
		case VM_OUTLIVES_FD:
			/* Last close: the VM is dead, its memory comes back now. */
			EXPECT_EQ(-1, ioctl(fd, KVM_CHECK_EXTENSION,
					    KVM_CAP_USER_MEMORY));
			EXPECT_EQ(EIO, errno);
			check_all_back(_metadata);
			close(fd);
			break;
		default:
			break;
		}
		check_all_back(_metadata);
	}
}

static u64 now_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000ull + ts.tv_nsec / 1000;
}

/* A line of /proc/meminfo in KiB; 0 if there is none. */
static s64 meminfo(const char *name)
{
	FILE *f = fopen("/proc/meminfo", "r");
	s64 kb = 0;
	char line[128];

	if (!f)
		return 0;
	while (fgets(line, sizeof(line), f)) {
		if (!strncmp(line, name, strlen(name)) && line[strlen(name)] == ':')
			kb = strtoll(line + strlen(name) + 1, NULL, 10);
	}
	fclose(f);
	return kb;
}

/* What is free once all has been given back that can be; -1 without the right. */
static s64 free_memory(void)
{
	s64 now, most = 0;
	int fd, i;

	for (i = 0; i < 20; i++) {
		fd = open("/proc/sys/vm/drop_caches", O_WRONLY);
		if (fd < 0 || write(fd, "3", 1) != 1)
			return -1;
		close(fd);
		now = meminfo("MemFree");
		if (i && now < most + 64)
			break;
		most = max(most, now);
		usleep(300000);
	}
	return most;
}

/*
 * Free memory goes up and down by several MiB with what each CPU keeps.  A block
 * that is lost is seen at once by other means.
 */
#define MAX_LOST_KB	16384

/*
 * Killed at moments that nobody has chosen, while starting, faulting,
 * converting, being reset, changing slots and dying.
 */
TEST(killed_at_random)
{
	static const enum stage stages[] = {
		IN_CONVERSION, IN_LARGE_CONVERSION, IN_SET_ATTRIBUTES, IN_RESET,
		IN_SLOT_DELETION, UNDER_FIRE, IN_RESET_OF_MANY,
		IN_BIRTH_AND_DEATH,
	};
	u64 rounds = protmem_test_iterations(16), i, start, longest = 0, delay;
	s64 free_before = 0, free_after, small_before = 0, small_after;
	u64 seed = now_us(), rng = seed, early = 0, warm_up;
	int socks[2], status;
	char c;
	pid_t pid;

	if (protmem_nr_cpus() < 2)
		SKIP(return, "needs 2 CPUs");

	/* One round for each stage, to see how long its start takes. */
	warm_up = ARRAY_SIZE(stages);
	TH_LOG("seed %lu", seed);
	for (i = 0; i < warm_up + rounds; i++) {
		enum stage stage = i < warm_up ? stages[i] :
				   stages[thread_random(&rng) % ARRAY_SIZE(stages)];

		/* What is kept for good is kept after the first few. */
		if (i == warm_up + rounds / 4) {
			free_before = free_memory();
			small_before = meminfo("DirectMap4k");
		}
		ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0,
					socks));
		start = now_us();
		pid = fork();
		if (!pid) {
			close(socks[0]);
			live(stage, socks[1]);
			_exit(1);
		}
		close(socks[1]);
		if (i < warm_up && stage < IN_RESET_OF_MANY) {
			while (read(socks[0], &c, 1) < 0 && errno == EAGAIN)
				usleep(1000);
			longest = max(longest, now_us() - start);
		} else {
			delay = thread_random(&rng) % (2 * longest);
			usleep(delay);
			if (stage < IN_RESET_OF_MANY && read(socks[0], &c, 1) < 0)
				early++;
		}
		kill(pid, SIGKILL);
		ASSERT_EQ(pid, waitpid(pid, &status, 0));
		ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) {
			TH_LOG("round %lu, stage %d: ended by itself, status %x", i,
			       stage, status);
		}
		close(socks[0]);
		ASSERT_EQ(0, protmem_wait_off_direct_map(0)) {
			TH_LOG("round %lu, stage %d", i, stage);
		}
		ASSERT_EQ(0, protmem_read_sysfs("quarantined_bytes"));
	}

	small_after = meminfo("DirectMap4k");
	free_after = free_memory();
	TH_LOG("%lu killed, %lu of them before they were ready; it took up to %lu us to be",
	       rounds, early, longest);
	TH_LOG("free memory %ld kB before, %ld kB after; mapped by 4 KiB pages %ld kB before, %ld kB after",
	       free_before, free_after, small_before, small_after);
	EXPECT_LT(0, free_before);
	/* What comes and goes by itself is more than a few VMs can lose. */
	if (rounds >= 100)
		EXPECT_LE(free_before - free_after, MAX_LOST_KB);
	/* Large entries are cut only where memory is in small pieces. */
	EXPECT_LE(small_after - small_before, MAX_LOST_KB);
}

/* Many VMs, one after the other and side by side, and no byte is lost. */
TEST(many_vms)
{
	u64 rounds = protmem_test_iterations(10), i;
	struct protmem_opts opts = { .caps = PROTMEM_CAPS };
	static struct protmem_vm p[3];
	int j;

	for (i = 0; i < rounds; i++) {
		for (j = 0; j < 3; j++) {
			protmem_vm_create(&p[j], &opts);
			ASSERT_EQ(0, protmem_make_private(&p[j], GPA, SZ_1M));
			ASSERT_EQ(0, protmem_call(&p[j], 0, guest_check_zero, GPA,
						  SZ_256K));
			protmem_call(&p[j], 0, guest_fill, GPA, SZ_256K, 100 + j);
		}
		for (j = 0; j < 3; j++) {
			ASSERT_EQ(0, protmem_call(&p[j], 0, guest_check, GPA, SZ_256K,
						  100 + j));
			protmem_vm_free(&p[j]);
		}
	}
	TH_LOG("%lu rounds of 3 VMs", rounds);
	check_all_back(_metadata);
}

int main(int argc, char **argv)
{
	protmem_require();
	return test_harness_run(argc, argv);
}
