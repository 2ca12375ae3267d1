// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM's emulator works on private memory for the guest, through a window that
 * nobody else can see.  What the guest asks to be sent out goes out, and nothing
 * else: after each exit, all that KVM shares with the VMM for the vCPU is
 * searched for pieces of the secret that surrounds the operands.
 */
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <time.h>
#include <sys/mman.h>

#include <asm/kvm_para.h>

#include "kselftest_harness.h"
#include "kvm_syscalls.h"
#include "protmem.h"

#define GPA		PROTMEM_GPA
#define MMIO		PROTMEM_MMIO_GPA
/* Two pages of secret, then one shared, then room for what the test needs. */
#define SECRET_PAGES	2
#define SHARED_GPA	(GPA + SECRET_PAGES * PAGE_SIZE)
#define SPARE_GPA	(GPA + 4 * PAGE_SIZE)
#define TABLES_GPA	(GPA + SZ_2M)
/* A private page and the MMIO page, next to each other for the guest. */
#define STRADDLE_GVA	0x600000000ULL

FIXTURE(emul) {
	struct protmem_vm p;
	u64 secret;
};

static size_t run_size(void)
{
	static size_t size;
	int fd;

	if (!size) {
		fd = open_kvm_dev_path_or_exit();
		size = ioctl(fd, KVM_GET_VCPU_MMAP_SIZE, NULL);
		close(fd);
	}
	return size;
}

static void run_clear(struct kvm_vcpu *vcpu)
{
	/* Exit information only: what userspace has to answer is in there. */
	memset(vcpu->run->padding, 0, sizeof(vcpu->run->padding));
	memset((u8 *)vcpu->run + PAGE_SIZE, 0, PAGE_SIZE);
}

/*
 * Look for four consecutive bytes of @secret, repeated, in all that the kernel
 * shares with the VMM for a vCPU: kvm_run, the port I/O page, the coalesced
 * ring.
 */
static bool run_leaks(struct kvm_vcpu *vcpu, u64 secret)
{
	const u8 *b = (u8 *)vcpu->run;
	size_t size = run_size(), i;
	u32 window[8], v;
	int j;

	for (j = 0; j < 8; j++)
		window[j] = (u32)((secret >> (j * 8)) |
				  (j ? secret << (64 - j * 8) : 0));

	for (i = 0; i + sizeof(v) <= size; i++) {
		memcpy(&v, b + i, sizeof(v));
		for (j = 0; j < 8; j++) {
			if (v == window[j])
				return true;
		}
	}
	return false;
}

static u64 guest_fill_const(u64 gpa, u64 size, u64 val, u64 unused)
{
	u64 a;

	for (a = gpa; a < gpa + size; a += 8)
		WRITE_ONCE(*(u64 *)a, val);
	return 0;
}

static u64 random_secret(void)
{
	u64 s = 0;
	int i;

	/* No byte that is common in exit information. */
	for (i = 0; i < 8; i++)
		s = s << 8 | (0x81 + kvm_random_u32(&kvm_rng) % 0x7d);
	return s;
}

static void setup(struct protmem_vm *p, u64 *secret, const struct protmem_opts *opts)
{
	*secret = random_secret();
	protmem_vm_create(p, opts);
	virt_map(p->vm, STRADDLE_GVA, GPA + PAGE_SIZE, 1);
	virt_map(p->vm, STRADDLE_GVA + PAGE_SIZE, MMIO, 1);
	TEST_ASSERT_EQ(protmem_make_private(p, GPA, SECRET_PAGES * PAGE_SIZE), 0);
	TEST_ASSERT_EQ(protmem_make_private(p, SPARE_GPA, SZ_1M), 0);
	protmem_call(p, 0, guest_fill_const, GPA, SECRET_PAGES * PAGE_SIZE, *secret);
}

FIXTURE_SETUP(emul)
{
	struct protmem_opts opts = { .caps = PROTMEM_CAPS };

	setup(&self->p, &self->secret, &opts);
}

FIXTURE_TEARDOWN(emul)
{
	protmem_vm_free(&self->p);
}

/* What the guest sent, in order, and what it is given. */
struct talk {
	u8 sent[3 * PAGE_SIZE];
	size_t nr_sent;
	u8 give[3 * PAGE_SIZE];
	size_t nr_given;
	u64 first_mmio;
	int exits;
};

static struct talk talk;

static void talk_reset(void)
{
	int i;

	memset(&talk, 0, sizeof(talk));
	for (i = 0; i < sizeof(talk.give); i++)
		talk.give[i] = i * 7 + 3;
}

/* Run to the end of what was prepared. */
static u64 run_talk(struct protmem_vm *p, u64 secret)
{
	struct kvm_vcpu *vcpu = p->vcpu[0];
	struct kvm_run *run = vcpu->run;
	u8 answer[PAGE_SIZE];
	size_t n, off;

	run_clear(vcpu);
	for (;;) {
		vcpu_run(vcpu);
		TEST_ASSERT(!run_leaks(vcpu, secret),
			    "Guest contents in an exit (%s)",
			    exit_reason_str(run->exit_reason));
		if (protmem_done(p, 0))
			return p->cmd[0]->ret;

		talk.exits++;
		if (run->exit_reason == KVM_EXIT_MMIO) {
			TEST_ASSERT(run->mmio.phys_addr >= MMIO &&
				    run->mmio.phys_addr + run->mmio.len <=
				    MMIO + PAGE_SIZE,
				    "MMIO exit for gpa 0x%llx", run->mmio.phys_addr);
			if (!talk.first_mmio)
				talk.first_mmio = run->mmio.phys_addr;
			n = run->mmio.len;
			if (run->mmio.is_write) {
				memcpy(talk.sent + talk.nr_sent, run->mmio.data, n);
				talk.nr_sent += n;
			} else {
				memcpy(run->mmio.data, talk.give + talk.nr_given, n);
				talk.nr_given += n;
			}
			continue;
		}

		TEST_ASSERT(run->exit_reason == KVM_EXIT_IO && run->io.port == PROTMEM_STRING_PORT,
			    "Unexpected exit %u (%s), suberror %u", run->exit_reason,
			    exit_reason_str(run->exit_reason), run->internal.suberror);
		n = run->io.size * run->io.count;
		off = run->io.data_offset;
		if (run->io.direction == KVM_EXIT_IO_OUT) {
			memcpy(talk.sent + talk.nr_sent, (u8 *)run + off, n);
			talk.nr_sent += n;
		} else {
			memcpy(answer, talk.give + talk.nr_given, n);
			memcpy((u8 *)run + off, answer, n);
			talk.nr_given += n;
		}
	}
}

static u64 talk_call(struct protmem_vm *p, u64 secret, protmem_fn_t fn,
		     u64 a, u64 b, u64 c, u64 d)
{
	talk_reset();
	protmem_prepare(p, 0, fn, a, b, c, d);
	return run_talk(p, secret);
}

/* A recognizable, harmless string in the middle of the secret. */
static void public_bytes(u8 *buf, int n)
{
	int i;

	for (i = 0; i < n; i++)
		buf[i] = 'A' + i % 26;
}

static u64 guest_public(u64 gva, u64 n, u64 c, u64 d)
{
	u64 i;

	for (i = 0; i < n; i++)
		WRITE_ONCE(((u8 *)gva)[i], 'A' + i % 26);
	return 0;
}

/* Are the @n bytes at @gva what the VMM gave? */
static u64 guest_check_given(u64 gva, u64 n, u64 c, u64 d)
{
	u64 i;

	for (i = 0; i < n; i++) {
		if (READ_ONCE(((u8 *)gva)[i]) != (u8)(i * 7 + 3))
			return i + 1;
	}
	return 0;
}

static u64 guest_movs(u64 dst, u64 src, u64 n, u64 d)
{
	asm volatile("cld; rep movsb" : "+D"(dst), "+S"(src), "+c"(n) : : "memory");
	return n;
}

static u64 guest_movsq(u64 dst, u64 src, u64 n, u64 d)
{
	asm volatile("cld; rep movsq" : "+D"(dst), "+S"(src), "+c"(n) : : "memory");
	return n;
}

static u64 guest_outs(u64 src, u64 n, u64 c, u64 d)
{
	asm volatile("cld; rep outsb" : "+S"(src), "+c"(n) : "d"(PROTMEM_STRING_PORT) : "memory");
	return n;
}

static u64 guest_outsl(u64 src, u64 n, u64 c, u64 d)
{
	asm volatile("cld; rep outsl" : "+S"(src), "+c"(n) : "d"(PROTMEM_STRING_PORT) : "memory");
	return n;
}

static void check_state(struct protmem_vm *p)
{
	u64 val;

	TEST_ASSERT(protmem_is_private(p, GPA) &&
		    protmem_is_private(p, GPA + PAGE_SIZE), "State changed");
	TEST_ASSERT_EQ(protmem_try_read(p->mem, &val), BUS_ADRERR);
}

TEST_F(emul, movs_private_to_mmio)
{
	struct protmem_vm *p = &self->p;
	u8 want[32];

	public_bytes(want, 32);
	protmem_call(p, 0, guest_public, GPA + 256, 32);
	EXPECT_EQ(0, talk_call(p, self->secret, guest_movs, MMIO, GPA + 256, 32, 0));
	EXPECT_EQ(32, talk.nr_sent);
	EXPECT_EQ(0, memcmp(talk.sent, want, 32));

	EXPECT_EQ(0, talk_call(p, self->secret, guest_movsq, MMIO, GPA + 256, 4, 0));
	EXPECT_EQ(32, talk.nr_sent);
	EXPECT_EQ(0, memcmp(talk.sent, want, 32));
	check_state(p);
}

/* From one private page into the next, and on into a shared one. */
TEST_F(emul, movs_across_pages)
{
	struct protmem_vm *p = &self->p;
	u64 at[] = { GPA + PAGE_SIZE - 12, GPA + 2 * PAGE_SIZE - 12 };
	u8 want[24];
	int i;

	public_bytes(want, 24);
	for (i = 0; i < ARRAY_SIZE(at); i++) {
		protmem_call(p, 0, guest_public, at[i], 24);
		/* Operands that straddle the boundary themselves. */
		EXPECT_EQ(0, talk_call(p, self->secret, guest_movsq, MMIO, at[i],
				       3, 0));
		EXPECT_EQ(24, talk.nr_sent);
		EXPECT_EQ(0, memcmp(talk.sent, want, 24));

		EXPECT_EQ(0, talk_call(p, self->secret, guest_movsq, at[i], MMIO,
				       3, 0));
		EXPECT_EQ(0, protmem_call(p, 0, guest_check_given, at[i], 24));
	}
	check_state(p);
}

TEST_F(emul, movs_mmio_to_private)
{
	struct protmem_vm *p = &self->p;

	EXPECT_EQ(0, talk_call(p, self->secret, guest_movs, GPA + 512, MMIO, 32, 0));
	EXPECT_EQ(32, talk.nr_given);
	EXPECT_EQ(0, protmem_call(p, 0, guest_check_given, GPA + 512, 32));
	/* The bytes around them are as they were. */
	EXPECT_EQ(self->secret, protmem_call(p, 0, guest_read64, GPA + 504));
	EXPECT_EQ(self->secret, protmem_call(p, 0, guest_read64, GPA + 544));
	check_state(p);
}

/* Nobody has touched the page before the emulator does. */
TEST_F(emul, untouched_operands)
{
	struct protmem_vm *p = &self->p;

	EXPECT_EQ(0, talk_call(p, self->secret, guest_movs, SPARE_GPA, MMIO, 32, 0));
	EXPECT_EQ(0, protmem_call(p, 0, guest_check_given, SPARE_GPA, 32));
	EXPECT_EQ(0, talk_call(p, self->secret, guest_movsq, MMIO,
			       SPARE_GPA + PAGE_SIZE, 4, 0));
	EXPECT_EQ(32, talk.nr_sent);
	EXPECT_EQ(0, talk.sent[0]);
	EXPECT_EQ(0, memcmp(talk.sent, talk.sent + 1, 31));
	/* And a shared one. */
	EXPECT_EQ(0, talk_call(p, self->secret, guest_movs, GPA + 3 * SZ_1M, MMIO,
			       32, 0));
	EXPECT_EQ(0, protmem_call(p, 0, guest_check_given, GPA + 3 * SZ_1M, 32));
	EXPECT_EQ(0, memcmp(p->mem + 3 * SZ_1M, talk.give, 32));
	check_state(p);
}

TEST_F(emul, outs)
{
	struct protmem_vm *p = &self->p;
	u8 want[64];

	public_bytes(want, 64);
	protmem_call(p, 0, guest_public, GPA + PAGE_SIZE - 32, 64);
	EXPECT_EQ(0, talk_call(p, self->secret, guest_outs, GPA + PAGE_SIZE - 32,
			       64, 0, 0));
	EXPECT_EQ(64, talk.nr_sent);
	EXPECT_EQ(0, memcmp(talk.sent, want, 64));
	EXPECT_EQ(0, talk_call(p, self->secret, guest_outsl, GPA + PAGE_SIZE - 30,
			       15, 0, 0));
	EXPECT_EQ(60, talk.nr_sent);
	EXPECT_EQ(0, memcmp(talk.sent, want + 2, 60));
	check_state(p);
}

TEST_F(emul, ins)
{
	struct protmem_vm *p = &self->p;
	const u64 n = PAGE_SIZE + 512;

	EXPECT_EQ(GPA + 64 + n,
		  talk_call(p, self->secret, guest_ins, GPA + 64, n, 0, 0));
	EXPECT_EQ(n, talk.nr_given);
	EXPECT_EQ(0, protmem_call(p, 0, guest_check_given, GPA + 64, n));
	EXPECT_EQ(self->secret, protmem_call(p, 0, guest_read64, GPA + 56));
	EXPECT_EQ(self->secret, protmem_call(p, 0, guest_read64, GPA + 64 + n));
	check_state(p);
}

/* One operand, half of it private memory and half of it MMIO. */
TEST_F(emul, operand_straddles_ram_and_mmio)
{
	struct protmem_vm *p = &self->p;
	const u64 gva = STRADDLE_GVA + PAGE_SIZE - 4;
	u64 val;

	talk_reset();
	protmem_prepare(p, 0, guest_write64, gva, 0x4847464544434241ull, 0, 0);
	run_talk(p, self->secret);
	EXPECT_EQ(MMIO, talk.first_mmio);
	EXPECT_EQ(4, talk.nr_sent);
	EXPECT_EQ(0, memcmp(talk.sent, "EFGH", 4));
	EXPECT_EQ(0x44434241, protmem_call(p, 0, guest_read64,
					   GPA + 2 * PAGE_SIZE - 8) >> 32);

	val = talk_call(p, self->secret, guest_read64, gva, 0, 0, 0);
	EXPECT_EQ(MMIO, talk.first_mmio);
	EXPECT_EQ(4, talk.nr_given);
	EXPECT_EQ(0x44434241, val & -1u);
	EXPECT_EQ(0, memcmp((u8 *)&val + 4, talk.give, 4));
	check_state(p);
}

/* The instruction itself is in private memory. */
static u64 guest_put_code(u64 gpa, u64 code, u64 n, u64 d)
{
	u64 i;

	for (i = 0; i < n; i++)
		WRITE_ONCE(((u8 *)gpa)[i], code >> (i * 8));
	return 0;
}

static u64 guest_call_code(u64 gpa, u64 a, u64 b, u64 d)
{
	return ((u64 (*)(u64, u64))gpa)(a, b);
}

/* mov (%rdi), %rax; ret */
#define CODE_LOAD	0xc3078b48ull
/* mov %rsi, (%rdi); ret */
#define CODE_STORE	0xc3378948ull
/* movl $0x44434241, (%rdi); ret */
#define CODE_STORE_IMM	0xc34443424107c7ull
/* flds (%rax) after mov %rdi, %rax; ret */
#define CODE_FLDS	0xc300d9f88948ull

TEST_F(emul, fetch)
{
	struct protmem_vm *p = &self->p;
	/* In the middle, across private pages, across private and shared. */
	u64 at[] = { GPA + 128, GPA + PAGE_SIZE - 2, GPA + 2 * PAGE_SIZE - 2,
		     GPA + PAGE_SIZE - 1, GPA + 2 * PAGE_SIZE - 1 };
	u64 val, want;
	int i;

	for (i = 0; i < ARRAY_SIZE(at); i++) {
		protmem_call(p, 0, guest_put_code, at[i], CODE_LOAD, 4);
		val = talk_call(p, self->secret, guest_call_code, at[i], MMIO, 0, 0);
		memcpy(&want, talk.give, 8);
		EXPECT_EQ(want, val);

		protmem_call(p, 0, guest_put_code, at[i], CODE_STORE, 4);
		talk_call(p, self->secret, guest_call_code, at[i], MMIO,
			  0x4847464544434241ull, 0);
		EXPECT_EQ(8, talk.nr_sent);
		EXPECT_EQ(0, memcmp(talk.sent, "ABCDEFGH", 8));

		protmem_call(p, 0, guest_put_code, at[i], CODE_STORE_IMM, 7);
		talk_call(p, self->secret, guest_call_code, at[i], MMIO, 0, 0);
		EXPECT_EQ(4, talk.nr_sent);
		EXPECT_EQ(0, memcmp(talk.sent, "ABCD", 4));
	}
	check_state(p);
}

/* The same code twice, with something else at the same place in between. */
TEST_F(emul, fetch_is_not_stale)
{
	struct protmem_vm *p = &self->p;
	u64 at = GPA + 128, val;
	int i;

	for (i = 0; i < 20; i++) {
		protmem_call(p, 0, guest_put_code, at, CODE_STORE, 4);
		talk_call(p, self->secret, guest_call_code, at, MMIO, 0x41, 0);
		ASSERT_EQ(8, talk.nr_sent);
		ASSERT_EQ('A', talk.sent[0]);
		/* Another page now: a window left open would show the old. */
		ASSERT_EQ(0, protmem_make_shared(p, GPA, PAGE_SIZE));
		ASSERT_EQ(0, protmem_make_private(p, GPA, PAGE_SIZE));
		protmem_call(p, 0, guest_put_code, at, CODE_LOAD, 4);
		val = talk_call(p, self->secret, guest_call_code, at, MMIO, 0, 0);
		ASSERT_EQ(0, memcmp(&val, talk.give, 8));
	}
}

/*
 * What KVM cannot emulate ends in an error that carries no instruction bytes,
 * asked for or not.
 */
static void test_emulation_failure(struct __test_metadata *_metadata,
				   struct protmem_vm *p, u64 secret)
{
	struct kvm_run *run = p->vcpu[0]->run;

	protmem_call(p, 0, guest_put_code, GPA + 128, CODE_FLDS, 6);
	protmem_prepare(p, 0, guest_call_code, GPA + 128, MMIO, 0, 0);
	run_clear(p->vcpu[0]);
	vcpu_run(p->vcpu[0]);
	EXPECT_EQ(KVM_EXIT_INTERNAL_ERROR, run->exit_reason);
	EXPECT_EQ(KVM_INTERNAL_ERROR_EMULATION, run->emulation_failure.suberror);
	EXPECT_FALSE(run->emulation_failure.ndata > 0 &&
		     (run->emulation_failure.flags &
		      KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES));
	EXPECT_FALSE(run_leaks(p->vcpu[0], secret));
	/* Nor by themselves: flds; ret; secret ... */
	EXPECT_EQ(NULL, memmem(run, PAGE_SIZE, "\xd9\x00\xc3", 3));
	protmem_vcpu_reset(p, 0);
	EXPECT_EQ(1, protmem_call(p, 0, guest_nop, 1));
	check_state(p);
}

TEST_F(emul, emulation_failure)
{
	test_emulation_failure(_metadata, &self->p, self->secret);
	vm_enable_cap(self->p.vm, KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1);
	test_emulation_failure(_metadata, &self->p, self->secret);
}

/* The stack is private, the other operand is MMIO. */
static u64 guest_push(u64 mmio, u64 stack, u64 c, u64 d)
{
	asm volatile("mov %%rsp, %%rbx\n\t"
		     "mov %[stack], %%rsp\n\t"
		     "push (%[mmio])\n\t"
		     "mov %%rbx, %%rsp"
		     : : [stack] "r"(stack), [mmio] "r"(mmio) : "rbx", "memory");
	return READ_ONCE(*(u64 *)(stack - 8));
}

static u64 guest_pop(u64 mmio, u64 stack, u64 c, u64 d)
{
	asm volatile("mov %%rsp, %%rbx\n\t"
		     "lea -8(%[stack]), %%rsp\n\t"
		     "pop (%[mmio])\n\t"
		     "sub %[stack], %%rsp\n\t"
		     "mov %%rsp, %[stack]\n\t"
		     "mov %%rbx, %%rsp"
		     : [stack] "+r"(stack) : [mmio] "r"(mmio) : "rbx", "memory");
	return stack;
}

/* call *(mmio): the return address goes to the private stack. */
static u64 guest_call_mmio(u64 mmio, u64 stack, u64 c, u64 d)
{
	u64 ret = 0;

	asm volatile("mov %%rsp, %%rbx\n\t"
		     "mov %[stack], %%rsp\n\t"
		     "call *(%[mmio])\n\t"
		     "mov %%rbx, %%rsp"
		     : "=a"(ret)
		     : [stack] "r"(stack), [mmio] "r"(mmio) : "rbx", "memory");
	return ret;
}

TEST_F(emul, stack)
{
	struct protmem_vm *p = &self->p;
	u64 stack = GPA + PAGE_SIZE + 64, want, code;

	memcpy(&want, (talk_reset(), talk.give), 8);
	EXPECT_EQ(want, talk_call(p, self->secret, guest_push, MMIO, stack, 0, 0));
	/* Across pages. */
	EXPECT_EQ(want, talk_call(p, self->secret, guest_push, MMIO,
				  GPA + PAGE_SIZE + 4, 0, 0));

	protmem_call(p, 0, guest_write64, stack - 8, 0x4847464544434241ull);
	EXPECT_EQ(0, talk_call(p, self->secret, guest_pop, MMIO, stack, 0, 0));
	EXPECT_EQ(8, talk.nr_sent);
	EXPECT_EQ(0, memcmp(talk.sent, "ABCDEFGH", 8));

	/* mov $0x42, %eax; ret */
	protmem_call(p, 0, guest_put_code, GPA + 256, 0xc300000042b8ull, 6);
	code = GPA + 256;
	talk_reset();
	memcpy(talk.give, &code, 8);
	protmem_prepare(p, 0, guest_call_mmio, MMIO, stack, 0, 0);
	EXPECT_EQ(0x42, run_talk(p, self->secret));
	check_state(p);
}

/* Atomic instructions on MMIO say what they write, and nothing else. */
static u64 guest_xchg(u64 mmio, u64 val, u64 c, u64 d)
{
	asm volatile("xchg %0, (%1)" : "+r"(val) : "r"(mmio) : "memory");
	return val;
}

static u64 guest_lock_add(u64 mmio, u64 val, u64 c, u64 d)
{
	asm volatile("lock addl %k0, (%1)" : : "r"(val), "r"(mmio) : "memory");
	return 0;
}

static u64 guest_lock_cmpxchg(u64 mmio, u64 old, u64 new, u64 d)
{
	asm volatile("lock cmpxchg %2, (%1)"
		     : "+a"(old) : "r"(mmio), "r"(new) : "memory");
	return old;
}

TEST_F(emul, atomics_on_mmio)
{
	struct protmem_vm *p = &self->p;
	u64 given;

	memcpy(&given, (talk_reset(), talk.give), 8);
	EXPECT_EQ(given, talk_call(p, self->secret, guest_xchg, MMIO,
				   0x4847464544434241ull, 0, 0));
	EXPECT_EQ(0, memcmp(talk.sent, "ABCDEFGH", 8));

	talk_call(p, self->secret, guest_lock_add, MMIO, 1, 0, 0);
	EXPECT_EQ(4, talk.nr_sent);
	EXPECT_EQ((u32)given + 1, *(u32 *)talk.sent);

	talk_call(p, self->secret, guest_lock_cmpxchg, MMIO, given,
		  0x4847464544434241ull, 0);
	EXPECT_EQ(0, memcmp(talk.sent, "ABCDEFGH", 8));
	check_state(p);
}

/* With the forced emulation prefix, any instruction works on private memory. */
static u64 fep_cmpxchg(u64 gpa, u64 old, u64 new, u64 d)
{
	asm volatile(KVM_FEP "lock cmpxchg %2, (%1)"
		     : "+a"(old) : "r"(gpa), "r"(new) : "memory");
	return old;
}

static u64 fep_xadd(u64 gpa, u64 val, u64 c, u64 d)
{
	asm volatile(KVM_FEP "lock xadd %0, (%1)" : "+r"(val) : "r"(gpa) : "memory");
	return val;
}

static u64 fep_store_load(u64 gpa, u64 val, u64 c, u64 d)
{
	u64 r;

	asm volatile(KVM_FEP "mov %1, (%2)\n\t"
		     KVM_FEP "mov (%2), %0"
		     : "=&r"(r) : "r"(val), "r"(gpa) : "memory");
	return r;
}

static u64 fep_movs(u64 dst, u64 src, u64 n, u64 d)
{
	asm volatile("cld\n\t" KVM_FEP "rep movsb"
		     : "+D"(dst), "+S"(src), "+c"(n) : : "memory");
	return n;
}

/* Load a segment register from a GDT in private memory. */
static u64 fep_segment(u64 gpa, u64 c, u64 d, u64 e)
{
	struct { u16 limit; u64 base; } __packed old, new;
	u64 data_descriptor = 0x00cf92000000ffffull;
	u16 es;

	WRITE_ONCE(*(u64 *)gpa, 0);
	WRITE_ONCE(*(u64 *)(gpa + 8), data_descriptor);
	new.limit = 15;
	new.base = gpa;
	asm volatile("sgdt %[old]\n\t"
		     "mov %%es, %[es]\n\t"
		     "lgdt %[new]\n\t"
		     KVM_FEP "mov %w[sel], %%es\n\t"
		     "lgdt %[old]\n\t"
		     "mov %[es], %%es"
		     : [old] "=m"(old), [es] "=&r"(es)
		     : [new] "m"(new), [sel] "r"(8) : "memory");
	return READ_ONCE(*(u64 *)(gpa + 8)) ^ data_descriptor;
}

/* lgdt and sgdt with the operand in private memory. */
static u64 fep_descriptor_table(u64 gpa, u64 b, u64 c, u64 d)
{
	asm volatile(KVM_FEP "sgdt (%0)\n\t" KVM_FEP "lgdt (%0)"
		     : : "r"(gpa) : "memory");
	return READ_ONCE(*(u16 *)gpa);
}

TEST_F(emul, forced)
{
	struct protmem_vm *p = &self->p;
	/* Aligned, not aligned, across private pages, private and shared. */
	u64 at[] = { GPA + 128, GPA + 131, GPA + PAGE_SIZE - 4,
		     GPA + 2 * PAGE_SIZE - 4 };
	int i;

	if (!kvm_is_forced_emulation_enabled())
		SKIP(return, "needs kvm.force_emulation_prefix=1");

	for (i = 0; i < ARRAY_SIZE(at); i++) {
		u64 a = at[i];

		TH_LOG("operand at offset %#llx", a - GPA);
		protmem_call(p, 0, guest_write64, a, 5);
		EXPECT_EQ(5, talk_call(p, self->secret, fep_cmpxchg, a, 5, 77, 0));
		EXPECT_EQ(77, protmem_call(p, 0, guest_read64, a));
		EXPECT_EQ(77, talk_call(p, self->secret, fep_cmpxchg, a, 5, 78, 0));
		EXPECT_EQ(77, protmem_call(p, 0, guest_read64, a));
		EXPECT_EQ(77, talk_call(p, self->secret, fep_xadd, a, 3, 0, 0));
		EXPECT_EQ(80, protmem_call(p, 0, guest_read64, a));
		EXPECT_EQ(0x123456789abcdefull,
			  talk_call(p, self->secret, fep_store_load, a,
				    0x123456789abcdefull, 0, 0));
		EXPECT_EQ(0, talk.exits);
	}

	protmem_call(p, 0, guest_public, GPA + 1024, 48);
	talk_call(p, self->secret, fep_movs, GPA + PAGE_SIZE - 24, GPA + 1024, 48, 0);
	EXPECT_EQ(protmem_call(p, 0, guest_read64, GPA + 1024),
		  protmem_call(p, 0, guest_read64, GPA + PAGE_SIZE - 24));
	EXPECT_EQ(protmem_call(p, 0, guest_read64, GPA + 1024 + 40),
		  protmem_call(p, 0, guest_read64, GPA + PAGE_SIZE - 24 + 40));

	/* The accessed bit of the descriptor, set in private memory. */
	EXPECT_EQ(BIT_ULL(40), talk_call(p, self->secret, fep_segment, GPA + 512, 0,
					 0, 0));
	EXPECT_LT(0, talk_call(p, self->secret, fep_descriptor_table, GPA + 2048, 0,
			       0, 0));
	check_state(p);
}

/* Another mapping of the slot than the guest_memfd's, or none at all. */
TEST(userspace_addr_is_not_trusted)
{
	struct protmem_opts opts = { .caps = PROTMEM_CAPS, .decoy = true };
	struct protmem_vm p;
	u64 secret;
	u8 want[32];

	setup(&p, &secret, &opts);
	memset(p.hva, 0xdd, p.size);
	public_bytes(want, 32);

	/* Private. */
	protmem_call(&p, 0, guest_public, GPA + 256, 32);
	talk_call(&p, secret, guest_movs, MMIO, GPA + 256, 32, 0);
	EXPECT_EQ(0, memcmp(talk.sent, want, 32));
	talk_call(&p, secret, guest_movs, GPA + 512, MMIO, 32, 0);
	EXPECT_EQ(0, protmem_call(&p, 0, guest_check_given, GPA + 512, 32));
	/* Shared. */
	protmem_call(&p, 0, guest_public, SHARED_GPA + 256, 32);
	EXPECT_EQ(0, memcmp(protmem_hva(&p, SHARED_GPA + 256), want, 32));
	talk_call(&p, secret, guest_movs, MMIO, SHARED_GPA + 256, 32, 0);
	EXPECT_EQ(0, memcmp(talk.sent, want, 32));
	talk_call(&p, secret, guest_movs, SHARED_GPA + 512, MMIO, 32, 0);
	EXPECT_EQ(0, protmem_call(&p, 0, guest_check_given, SHARED_GPA + 512, 32));

	/* The decoy has seen nothing. */
	EXPECT_EQ(0, memcmp(p.hva, p.hva + 1, p.size - 1));
	EXPECT_EQ(0xdd, p.hva[0]);

	/* And without it. */
	mprotect(p.hva, p.size, PROT_NONE);
	talk_call(&p, secret, guest_movs, MMIO, GPA + 256, 32, 0);
	EXPECT_EQ(0, memcmp(talk.sent, want, 32));
	talk_call(&p, secret, guest_movs, MMIO, SHARED_GPA + 256, 32, 0);
	EXPECT_EQ(0, memcmp(talk.sent, want, 32));
	talk_call(&p, secret, guest_ins, GPA + 1024, 32, 0, 0);
	EXPECT_EQ(0, protmem_call(&p, 0, guest_check_given, GPA + 1024, 32));
	protmem_vm_free(&p);
}

/*
 * The guest's page tables in private memory, all of them.  The walks are KVM's
 * for string I/O, since the processor exits before it touches the operand, so the
 * accessed and dirty bits are set by KVM, too.
 */
static u64 clone_tables(struct protmem_vm *p, u64 table, int level, u64 *next)
{
	u64 clone = *next, *src = addr_gpa2hva(p->vm, table), *dst;
	int i;

	TEST_ASSERT(clone + PAGE_SIZE <= GPA + p->size, "No room for tables");
	*next += PAGE_SIZE;
	dst = protmem_hva(p, clone);
	for (i = 0; i < 512; i++) {
		u64 pte = src[i] & ~(BIT_ULL(5) | BIT_ULL(6));

		if (!(pte & BIT(0))) {
			dst[i] = 0;
			continue;
		}
		if (level > PG_LEVEL_4K && !(pte & BIT(7)))
			pte = (pte & ~PHYSICAL_PAGE_MASK) |
			      clone_tables(p, pte & PHYSICAL_PAGE_MASK, level - 1,
					   next);
		dst[i] = pte;
	}
	return clone;
}

/* Where the leaf entry for @gva is, in the clone. */
static u64 clone_pte(struct protmem_vm *p, u64 root, u64 gva)
{
	int level = p->vm->mmu.pgtable_levels;
	u64 table = root;

	for (;; level--) {
		u64 at = table + ((gva >> PG_LEVEL_SHIFT(level)) & 0x1ff) * 8;

		if (level == PG_LEVEL_4K)
			return at;
		table = *(u64 *)protmem_hva(p, at) & PHYSICAL_PAGE_MASK;
	}
}

#define A	BIT_ULL(5)
#define D	BIT_ULL(6)

static u64 private_tables(struct protmem_vm *p, u64 *src_pte, u64 *dst_pte)
{
	struct kvm_sregs sregs;
	u64 next = TABLES_GPA, root;

	root = clone_tables(p, p->vm->mmu.pgd, p->vm->mmu.pgtable_levels, &next);
	*src_pte = clone_pte(p, root, SPARE_GPA);
	*dst_pte = clone_pte(p, root, SPARE_GPA + PAGE_SIZE);
	TEST_ASSERT_EQ(protmem_make_private(p, TABLES_GPA, next - TABLES_GPA), 0);
	vcpu_sregs_get(p->vcpu[0], &sregs);
	sregs.cr3 = root;
	vcpu_sregs_set(p->vcpu[0], &sregs);
	return root;
}

TEST_F(emul, page_tables)
{
	struct protmem_vm *p = &self->p;
	u64 src_pte, dst_pte, pte;

	private_tables(p, &src_pte, &dst_pte);

	pte = protmem_call(p, 0, guest_read64, src_pte);
	EXPECT_EQ(0, pte & (A | D));
	EXPECT_EQ(SPARE_GPA, pte & PHYSICAL_PAGE_MASK);
	EXPECT_EQ(0, protmem_call(p, 0, guest_read64, dst_pte) & (A | D));

	EXPECT_EQ(0, talk_call(p, self->secret, guest_outs, SPARE_GPA, 16, 0, 0));
	EXPECT_EQ(16, talk.nr_sent);
	EXPECT_EQ(A, protmem_call(p, 0, guest_read64, src_pte) & (A | D));

	EXPECT_EQ(SPARE_GPA + PAGE_SIZE + 16,
		  talk_call(p, self->secret, guest_ins, SPARE_GPA + PAGE_SIZE, 16,
			       0, 0));
	EXPECT_EQ(16, talk.nr_given);
	EXPECT_EQ(A | D, protmem_call(p, 0, guest_read64, dst_pte) & (A | D));
	EXPECT_EQ(0, protmem_call(p, 0, guest_check_given, SPARE_GPA + PAGE_SIZE, 16));

	/* Everything else works with such tables, too. */
	protmem_call(p, 0, guest_public, GPA + 256, 32);
	talk_call(p, self->secret, guest_movs, MMIO, GPA + 256, 32, 0);
	EXPECT_EQ(32, talk.nr_sent);
	protmem_call(p, 0, guest_put_code, GPA + 128, CODE_STORE, 4);
	talk_call(p, self->secret, guest_call_code, GPA + 128, MMIO, 0x41, 0);
	EXPECT_EQ(8, talk.nr_sent);
	check_state(p);
}

/* ioctls get nothing out of private memory: they are not the guest's. */
TEST_F(emul, kvm_translate)
{
	struct protmem_vm *p = &self->p;
	struct kvm_translation tr = { .linear_address = SPARE_GPA };
	u64 src_pte, dst_pte;

	/* With tables in ordinary memory it is nobody's secret. */
	EXPECT_EQ(0, __vcpu_ioctl(p->vcpu[0], KVM_TRANSLATE, &tr));
	EXPECT_EQ(1, tr.valid);
	EXPECT_EQ(SPARE_GPA, tr.physical_address);

	private_tables(p, &src_pte, &dst_pte);
	memset(&tr, 0, sizeof(tr));
	tr.linear_address = SPARE_GPA;
	EXPECT_EQ(0, __vcpu_ioctl(p->vcpu[0], KVM_TRANSLATE, &tr));
	EXPECT_EQ(0, tr.valid);
	EXPECT_NE(SPARE_GPA, tr.physical_address);
	/* The guest is none the worse for it. */
	EXPECT_EQ(0, protmem_call(p, 0, guest_read64, dst_pte) & (A | D));
	EXPECT_EQ(3, protmem_call(p, 0, guest_nop, 3));
}

TEST_F(emul, kvm_set_vapic_addr)
{
	struct protmem_vm *p = &self->p;
	struct kvm_vapic_addr va = { .vapic_addr = GPA + 16 };

	EXPECT_EQ(-1, __vcpu_ioctl(p->vcpu[0], KVM_SET_VAPIC_ADDR, &va));
	EXPECT_EQ(EINVAL, errno);
	va.vapic_addr = SHARED_GPA;
	EXPECT_EQ(-1, __vcpu_ioctl(p->vcpu[0], KVM_SET_VAPIC_ADDR, &va));
	EXPECT_EQ(EINVAL, errno);
	/* What VMMs do at reset. */
	va.vapic_addr = 0;
	EXPECT_EQ(0, __vcpu_ioctl(p->vcpu[0], KVM_SET_VAPIC_ADDR, &va));
	EXPECT_EQ(self->secret, protmem_call(p, 0, guest_read64, GPA + 16));
}

/* PAE: the four entries that CR3 points to, loaded by an ioctl. */
TEST(kvm_set_sregs_pdptrs)
{
	struct protmem_opts opts = { .caps = PROTMEM_CAPS, .nr_vcpus = 2 };
	struct kvm_sregs2 before, sregs;
	struct protmem_vm p;
	u64 secret = 0x0000000badc0f001ull;
	int i;

	/* CR3 has 32 bits there. */
	opts.no_slot = true;
	protmem_vm_create(&p, &opts);
	ASSERT_EQ(0, protmem_set_slot(&p, PROTMEM_SLOT, 0x40000000, SZ_1M, 0));
	virt_map(p.vm, 0x40000000, 0x40000000, 1);
	ASSERT_EQ(0, protmem_make_private(&p, 0x40000000, PAGE_SIZE));
	protmem_call(&p, 0, guest_fill_const, 0x40000000, PAGE_SIZE, secret);

	if (!kvm_check_cap(KVM_CAP_SREGS2)) {
		protmem_vm_free(&p);
		SKIP(return, "no KVM_CAP_SREGS2");
	}
	memset(&before, 0, sizeof(before));
	vcpu_ioctl(p.vcpu[1], KVM_GET_SREGS2, &before);
	sregs = before;
	sregs.flags = 0;
	sregs.efer &= ~(BIT_ULL(8) | BIT_ULL(10));
	sregs.cr4 &= ~X86_CR4_LA57;
	sregs.cr4 |= X86_CR4_PAE;
	sregs.cs.l = 0;
	sregs.cs.db = 1;
	sregs.cr3 = 0x40000000;
	EXPECT_EQ(-1, __vcpu_ioctl(p.vcpu[1], KVM_SET_SREGS2, &sregs));
	EXPECT_EQ(EFAULT, errno);
	memset(&sregs, 0, sizeof(sregs));
	ASSERT_EQ(0, __vcpu_ioctl(p.vcpu[1], KVM_GET_SREGS2, &sregs));
	for (i = 0; i < 4; i++)
		EXPECT_NE(secret, sregs.pdptrs[i]);
	EXPECT_EQ(secret, protmem_call(&p, 0, guest_read64, 0x40000000));

	/* It was refused as a whole: the vCPU goes on as it was. */
	ASSERT_EQ(0, memcmp(&before, &sregs, sizeof(before)));
	EXPECT_EQ(7, protmem_call(&p, 1, guest_nop, 7));
	protmem_vm_free(&p);
}

/*
 * What KVM writes for the guest on its own has to be in shared memory.  Asking
 * for it elsewhere is answered like any address without memory, by #GP or not
 * at all; nowhere may it show or destroy private contents.
 */
static const struct { const char *name; u32 msr; u64 enable; } pv_msrs[] = {
	{ "wall clock", MSR_KVM_WALL_CLOCK_NEW, 0 },
	{ "kvmclock", MSR_KVM_SYSTEM_TIME_NEW, 1 },
	{ "steal time", MSR_KVM_STEAL_TIME, 1 },
	{ "async page faults", MSR_KVM_ASYNC_PF_EN, BIT(3) | 1 },
	{ "PV EOI", MSR_KVM_PV_EOI_EN, 1 },
};

TEST_F(emul, pv_areas_in_private_memory)
{
	struct protmem_vm *p = &self->p;
	int i, j, vector;

	for (i = 0; i < ARRAY_SIZE(pv_msrs); i++) {
		vector = protmem_call(p, 0, guest_wrmsr, pv_msrs[i].msr,
				      (GPA + 0x400 + i * 128) | pv_msrs[i].enable);
		TH_LOG("%s: vector %d", pv_msrs[i].name, vector);
		EXPECT_TRUE(vector == 0 || vector == 13);
		for (j = 0; j < 20; j++) {
			usleep(500);
			ASSERT_EQ(j, protmem_call(p, 0, guest_nop, j));
			ASSERT_FALSE(run_leaks(p->vcpu[0], self->secret));
		}
		for (j = 0; j < 128; j += 8)
			EXPECT_EQ(self->secret,
				  protmem_call(p, 0, guest_read64,
					       GPA + 0x400 + i * 128 + j));
		if (!vector)
			protmem_call(p, 0, guest_wrmsr, pv_msrs[i].msr, 0);
	}
	check_state(p);
}

TEST_F(emul, pv_areas_that_turn_private)
{
	struct protmem_vm *p = &self->p;
	const u64 area = SHARED_GPA + 0x400;
	int i, j;

	for (i = 0; i < ARRAY_SIZE(pv_msrs); i++) {
		protmem_call(p, 0, guest_fill_const, SHARED_GPA, PAGE_SIZE, 0);
		EXPECT_EQ(0, protmem_call(p, 0, guest_wrmsr, pv_msrs[i].msr,
					  area | pv_msrs[i].enable));
		protmem_call(p, 0, guest_nop);
		if (pv_msrs[i].msr == MSR_KVM_SYSTEM_TIME_NEW)
			EXPECT_NE(0, protmem_call(p, 0, guest_read64, area + 16));

		ASSERT_EQ(0, protmem_make_private(p, SHARED_GPA, PAGE_SIZE));
		protmem_call(p, 0, guest_fill_const, SHARED_GPA, PAGE_SIZE,
			     self->secret);
		for (j = 0; j < 20; j++) {
			usleep(500);
			ASSERT_EQ(j, protmem_call(p, 0, guest_nop, j));
		}
		for (j = 0; j < 128; j += 8)
			EXPECT_EQ(self->secret, protmem_call(p, 0, guest_read64,
							     area + j)) {
				TH_LOG("%s", pv_msrs[i].name);
			}
		protmem_call(p, 0, guest_wrmsr, pv_msrs[i].msr, 0);
		protmem_call(p, 0, guest_fill_const, SHARED_GPA, PAGE_SIZE, 0);
		ASSERT_EQ(0, protmem_make_shared(p, SHARED_GPA, PAGE_SIZE));
	}
	check_state(p);
}

/*
 * One vCPU has its operand emulated while another one moves the page: whichever
 * way it is reached, the contents are the same.
 */
static u64 guest_flip(u64 cmd_gva, u64 gpa, u64 c, u64 d)
{
	struct protmem_cmd *cmd = (void *)cmd_gva;
	u64 n = 0;

	while (!READ_ONCE(cmd->stop)) {
		if (__kvm_hypercall_map_gpa_range(gpa, PAGE_SIZE,
						  KVM_MAP_GPA_RANGE_DECRYPTED) ||
		    __kvm_hypercall_map_gpa_range(gpa, PAGE_SIZE,
						  KVM_MAP_GPA_RANGE_ENCRYPTED)) {
			/* Nobody shall wait for it. */
			WRITE_ONCE(cmd->count, -1ull);
			return 1;
		}
		WRITE_ONCE(cmd->count, ++n);
	}
	return 0;
}

static void *flip_thread(void *arg)
{
	protmem_run(arg, 1);
	return NULL;
}

TEST(operand_moves)
{
	struct protmem_opts opts = { .caps = PROTMEM_CAPS, .nr_vcpus = 2 };
	u64 iterations = protmem_test_iterations(150), i, secret;
	/* Each round waits for the lock that the other vCPU takes all the time. */
	time_t end = time(NULL) + 60;
	struct protmem_vm p;
	pthread_t thread;
	u8 want[64];

	if (protmem_nr_cpus() < 2)
		SKIP(return, "needs 2 CPUs");

	setup(&p, &secret, &opts);
	public_bytes(want, 64);
	protmem_call(&p, 0, guest_public, SPARE_GPA, 64);
	p.cmd[1]->stop = 0;
	p.cmd[1]->count = 0;
	protmem_prepare(&p, 1, guest_flip, p.cmd_gva[1], SPARE_GPA, 0, 0);
	pthread_create(&thread, NULL, flip_thread, &p);
	while (!READ_ONCE(p.cmd[1]->count))
		sched_yield();
	for (i = 0; i < iterations && (i < 20 || time(NULL) < end); i++) {
		talk_call(&p, secret, guest_outs, SPARE_GPA, 64, 0, 0);
		ASSERT_EQ(64, talk.nr_sent);
		ASSERT_EQ(0, memcmp(talk.sent, want, 64));
		talk_call(&p, secret, guest_ins, SPARE_GPA + 512, 64, 0, 0);
		ASSERT_EQ(0, protmem_call(&p, 0, guest_check_given,
					  SPARE_GPA + 512, 64));
		/* So that the next round has something to change. */
		protmem_call(&p, 0, guest_fill_const, SPARE_GPA + 512, 64, 0);
	}
	WRITE_ONCE(p.cmd[1]->stop, 1);
	pthread_join(thread, NULL);
	EXPECT_EQ(0, p.cmd[1]->ret);
	TH_LOG("%lu iterations, %lu conversions", i, 2 * p.cmd[1]->count);
	protmem_vm_free(&p);
}

/*
 * From reset to protected mode, with an interrupt on the way; code, data, stack,
 * vectors and descriptors are in private memory, as when a secondary CPU of a
 * protected guest starts.  On VMX without unrestricted guests KVM emulates some
 * of it, and runs the rest with page tables and a TSS of its own making.
 */
#define REAL_VECTOR	0x40
#define REAL_CODE	0x1000
#define REAL_GDT	0x1f00
#define REAL_DATA	0x2000
#define REAL_SHARED	0x3000
#define REAL_SIZE	0x10000

extern const u8 real_mode_code[], real_mode_hypercall[], real_mode_irq[],
		real_mode_end[];
asm(".pushsection .rodata\n"
	"real_mode_code:\n"
	".code16\n"
	"	mov	0x2000, %ax\n"
	"	add	$0x1111, %ax\n"
	"	push	%ax\n"
	"	pop	%bx\n"
	"	mov	%bx, 0x2002\n"
	"	out	%al, $0xe4\n"
	"	lgdtl	0x1f20\n"
	"	mov	%cr0, %eax\n"
	"	or	$1, %al\n"
	"	mov	%eax, %cr0\n"
	"	ljmpl	$8, $(0x1000 + 1f - real_mode_code)\n"
	".code32\n"
	"1:	mov	$16, %ax\n"
	"	mov	%ax, %ds\n"
	"	mov	%ax, %es\n"
	"	mov	%ax, %ss\n"
	"	mov	0x2000, %esi\n"
	"	mov	$12, %eax\n"		/* KVM_HC_MAP_GPA_RANGE, to share */
	"	mov	$0x3000, %ebx\n"
	"	mov	$1, %ecx\n"
	"	mov	$0, %edx\n"
	"real_mode_hypercall:\n"
	"	vmcall\n"
	"	mov	%esi, 0x3000\n"
	"	mov	%eax, 0x3004\n"
	"	out	%al, $0xe4\n"
	".code16\n"
	"real_mode_irq:\n"
	"	incw	0x2000\n"
	"	iret\n"
	".code64\n"
	"real_mode_end:\n"
	".popsection\n");

TEST(real_mode)
{
	static const u64 gdt[] = { 0, 0x00cf9b000000ffff, 0x00cf93000000ffff };
	const u32 word = 0x1234;
	struct kvm_vm *vm = vm_create_barebones();
	struct kvm_vcpu_events events;
	struct kvm_vcpu *vcpu;
	struct kvm_sregs sregs;
	struct kvm_regs regs;
	u64 val;
	u8 *mem;
	int fd;

	ASSERT_EQ(0, protmem_enable_cap(vm, PROTMEM_CAPS, 0));
	vm_ioctl(vm, KVM_SET_TSS_ADDR, (void *)0xfffbd000ul);
	fd = vm_create_guest_memfd(vm, REAL_SIZE, PROTMEM_GMEM_FLAGS);
	mem = kvm_mmap(REAL_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
	vm_set_user_memory_region2(vm, 1, PROTMEM_FLAGS, 0, REAL_SIZE, mem, fd, 0);

	memcpy(mem + REAL_CODE, real_mode_code, real_mode_end - real_mode_code);
	/* vmcall or vmmcall */
	mem[REAL_CODE + (real_mode_hypercall - real_mode_code) + 2] =
		host_cpu_is_intel ? 0xc1 : 0xd9;
	memcpy(mem + REAL_GDT, gdt, sizeof(gdt));
	*(u16 *)(mem + REAL_GDT + 0x20) = sizeof(gdt) - 1;
	*(u32 *)(mem + REAL_GDT + 0x22) = REAL_GDT;
	*(u32 *)(mem + REAL_DATA) = word;
	*(u32 *)(mem + REAL_VECTOR * 4) =
		REAL_CODE + (real_mode_irq - real_mode_code);
	ASSERT_EQ(0, protmem_set_attr(fd, 0, REAL_SIZE, KVM_MEMORY_ATTRIBUTE_PRIVATE,
				      KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE, NULL));

	vcpu = __vm_vcpu_add(vm, 0);
	vcpu_sregs_get(vcpu, &sregs);
	sregs.cs.base = sregs.cs.selector = 0;
	vcpu_sregs_set(vcpu, &sregs);
	vcpu_regs_get(vcpu, &regs);
	regs.rip = REAL_CODE;
	regs.rsp = REAL_DATA + 0xf00;
	/* VMX doesn't inject an interrupt into a guest that has them off. */
	regs.rflags |= X86_EFLAGS_IF;
	vcpu_regs_set(vcpu, &regs);

	vcpu_run(vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_IO);
	vcpu_regs_get(vcpu, &regs);
	EXPECT_EQ(word + 0x1111, regs.rbx & 0xffff);
	EXPECT_EQ(BUS_ADRERR, protmem_try_read(mem + REAL_DATA, &val));

	vcpu_run_complete_io(vcpu);
	vcpu_events_get(vcpu, &events);
	events.interrupt.injected = 1;
	events.interrupt.nr = REAL_VECTOR;
	vcpu_events_set(vcpu, &events);
	vcpu_run(vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_IO);
	EXPECT_EQ(0, protmem_try_read(mem + REAL_SHARED, &val));
	EXPECT_EQ((word + 0x1111) << 16 | (word + 1), val);
	EXPECT_EQ(BUS_ADRERR, protmem_try_read(mem + REAL_DATA, &val));
	EXPECT_EQ(BUS_ADRERR, protmem_try_read(mem + REAL_CODE, &val));

	kvm_munmap(mem, REAL_SIZE);
	close(fd);
	kvm_vm_free(vm);
}

int main(int argc, char **argv)
{
	protmem_require();
	return test_harness_run(argc, argv);
}
