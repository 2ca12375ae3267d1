// SPDX-License-Identifier: GPL-2.0-only
/*
 * Protected memory and memory cgroups: what is off the direct map is charged,
 * a limit is heeded without harm to the guest's memory, and a VMM that the OOM
 * killer ends leaves nothing behind.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kselftest_harness.h"
#include "kvm_syscalls.h"
#include "protmem.h"

#define GPA		PROTMEM_GPA
#define VM_SIZE		SZ_64M
#define FILLED		SZ_32M
#define LIMIT		(12ll * SZ_1M)
#define SEED		41

FIXTURE(memcg) {
	struct protmem_vm p;
};

/* Charges can outlive what they were for by a grace period or two. */
static bool wait_charged_below(s64 bytes)
{
	int i;

	for (i = 0; i < 250; i++) {
		if (protmem_cgroup_charged() < bytes)
			return true;
		usleep(20000);
	}
	return false;
}

FIXTURE_SETUP(memcg)
{
	protmem_cgroup_create();
}

FIXTURE_TEARDOWN(memcg)
{
	protmem_cgroup_leave();
	protmem_cgroup_destroy();
	EXPECT_EQ(0, protmem_wait_off_direct_map(0));
	EXPECT_EQ(0, protmem_read_sysfs("quarantined_bytes"));
}

static void create(struct protmem_vm *p, u64 caps)
{
	struct protmem_opts opts = { .caps = caps, .size = VM_SIZE };

	protmem_vm_create(p, &opts);
}

static u64 fill(struct protmem_vm *p, u64 size)
{
	return protmem_call(p, 0, guest_fill, GPA, size, SEED);
}

/* All that is off the direct map counts, and is given back. */
TEST_F(memcg, charged)
{
	struct protmem_vm *p = &self->p;
	s64 before, with;

	protmem_cgroup_enter();
	create(p, PROTMEM_CAPS);
	ASSERT_EQ(0, protmem_make_private(p, GPA, VM_SIZE));
	before = protmem_cgroup_charged();
	fill(p, SZ_16M);
	with = protmem_cgroup_charged();
	EXPECT_LE(SZ_16M, protmem_off_direct_map());
	EXPECT_LE(protmem_off_direct_map(), with);
	EXPECT_LE(SZ_16M, with - before);
	EXPECT_GE(SZ_16M + SZ_4M, with - before);
	protmem_vm_free(p);
	EXPECT_TRUE(wait_charged_below(before + SZ_1M));
	TH_LOG("%ld bytes charged before, %ld with, %ld after", before, with,
	       protmem_cgroup_charged());
}

TEST_F(memcg, hidden_is_charged)
{
	struct protmem_vm *p = &self->p;
	s64 before;

	protmem_cgroup_enter();
	create(p, PROTMEM_CAPS_HIDE);
	before = protmem_cgroup_charged();
	fill(p, SZ_8M);
	EXPECT_LE(SZ_8M, protmem_cgroup_charged() - before);
	protmem_vm_free(p);
	EXPECT_TRUE(wait_charged_below(before + SZ_1M));
}

/*
 * It is charged to those who created it, wherever they are now: there is nobody
 * to be killed, so the vCPU gets an error, and goes on once there is memory.
 */
TEST_F(memcg, fault_at_limit)
{
	struct protmem_vm *p = &self->p;
	s64 limit;
	u64 gpa;
	int i;

	protmem_cgroup_enter();
	create(p, PROTMEM_CAPS);
	protmem_cgroup_leave();
	ASSERT_EQ(0, protmem_make_private(p, GPA, VM_SIZE));
	fill(p, SZ_2M);
	limit = protmem_cgroup_charged() + LIMIT;
	protmem_cgroup_limit(limit);

	protmem_prepare(p, 0, guest_fill, GPA, FILLED, SEED, 0);
	for (i = 0; i < 3; i++) {
		EXPECT_EQ(-1, _vcpu_run(p->vcpu[0]));
		EXPECT_EQ(ENOMEM, errno);
		EXPECT_GE(limit, protmem_cgroup_charged());
	}
	/* It is used up to the last few pages. */
	EXPECT_LE(limit - SZ_1M, protmem_cgroup_charged());
	EXPECT_LE(LIMIT - SZ_1M, protmem_off_direct_map());

	protmem_cgroup_limit(-1);
	protmem_run(p, 0);
	EXPECT_EQ(0, protmem_call(p, 0, guest_check, GPA, FILLED, SEED));
	for (gpa = GPA; gpa < GPA + FILLED; gpa += SZ_1M)
		EXPECT_EQ(BUS_ADRERR, protmem_try_read(protmem_hva(p, gpa), &(u64){0}));
	protmem_vm_free(p);
	EXPECT_TRUE(wait_charged_below(SZ_2M));
}

/*
 * What is reserved for pages that a conversion has left empty is taken before the
 * OOM killer is called, who finds nobody to kill here.
 */
TEST_F(memcg, reserved_before_oom)
{
	struct protmem_vm *p = &self->p;
	const int nr = VM_SIZE / SZ_2M;
	s64 ooms;
	int i;

	protmem_cgroup_enter();
	create(p, PROTMEM_CAPS);
	protmem_cgroup_leave();
	/* A block for each range, as far as there are any. */
	for (i = 0; i < nr / 2; i++) {
		/* Or it would be all of the range. */
		ASSERT_EQ(0, fallocate(p->gmem, FALLOC_FL_KEEP_SIZE, i * SZ_2M, PAGE_SIZE));
		protmem_fill(p, GPA + i * SZ_2M, PAGE_SIZE, SEED);
	}
	ASSERT_EQ(0, protmem_set_attr(p->gmem, 0, VM_SIZE, KVM_MEMORY_ATTRIBUTE_PRIVATE,
				      KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE, NULL));
	if (protmem_off_direct_map() < nr / 2 * SZ_2M) {
		protmem_vm_free(p);
		SKIP(return, "no large blocks to be had");
	}

	ooms = protmem_cgroup_events("oom");
	protmem_cgroup_limit(protmem_cgroup_charged());
	for (i = nr / 2; i < nr; i++)
		protmem_call(p, 0, guest_fill, GPA + i * SZ_2M, SZ_1M, SEED);
	EXPECT_EQ(ooms, protmem_cgroup_events("oom"));
	protmem_cgroup_limit(-1);
	for (i = 0; i < nr; i++)
		EXPECT_EQ(0, protmem_call(p, 0, guest_check, GPA + i * SZ_2M,
					  i < nr / 2 ? PAGE_SIZE : SZ_1M, SEED));
	protmem_vm_free(p);
}

/* What is converted is there twice for a moment. */
TEST_F(memcg, conversion_at_limit)
{
	struct protmem_vm *p = &self->p;
	u64 done;

	protmem_cgroup_enter();
	create(p, PROTMEM_CAPS);
	protmem_fill(p, GPA, FILLED, SEED);
	protmem_cgroup_leave();

	/* It is full already, so not even the first batch goes. */
	protmem_cgroup_limit(protmem_cgroup_charged() / 2);
	EXPECT_EQ(-ENOMEM,
		  protmem_set_attr(p->gmem, 0, FILLED, KVM_MEMORY_ATTRIBUTE_PRIVATE,
				   KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE, &done));
	EXPECT_EQ(0, done);
	EXPECT_FALSE(protmem_is_private(p, GPA));
	EXPECT_EQ(FILLED, protmem_mismatch(p->mem, GPA, FILLED, SEED));

	/* A batch has room, and what was shared is free and charged no more. */
	protmem_cgroup_limit(protmem_cgroup_charged() + LIMIT / 2);
	EXPECT_EQ(0, protmem_set_attr(p->gmem, 0, FILLED, KVM_MEMORY_ATTRIBUTE_PRIVATE,
				      KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE, &done));
	protmem_cgroup_limit(-1);
	ASSERT_EQ(0, protmem_make_private(p, GPA, FILLED));
	EXPECT_EQ(0, protmem_call(p, 0, guest_check, GPA, FILLED, SEED));
	protmem_vm_free(p);
}

enum need {
	NEED_PRIVATE,
	NEED_HIDDEN,
	NEED_BOTH_TO_SHARE,
	NEED_BOTH_TO_UNSHARE,
	NR_NEEDS
};

static void need_memory(struct protmem_vm *p, enum need need)
{
	protmem_cgroup_enter();
	create(p, need == NEED_HIDDEN ? PROTMEM_CAPS_HIDE : PROTMEM_CAPS);

	switch (need) {
	case NEED_PRIVATE:
		protmem_make_private(p, GPA, VM_SIZE);
		/* fall through */
	case NEED_HIDDEN:
		fill(p, SZ_2M);
		protmem_cgroup_limit(protmem_cgroup_charged() + LIMIT);
		fill(p, FILLED);
		break;
	case NEED_BOTH_TO_SHARE:
		protmem_make_private(p, GPA, VM_SIZE);
		fill(p, SZ_4M);
		protmem_cgroup_limit(protmem_cgroup_charged() + SZ_64K);
		protmem_make_shared(p, GPA, SZ_4M);
		fill(p, FILLED);
		break;
	default:
		fill(p, SZ_4M);
		protmem_cgroup_limit(protmem_cgroup_charged() + SZ_64K);
		protmem_make_private(p, GPA, SZ_4M);
		fill(p, FILLED);
	}
}

/* The VMM is in there, and dies of it. */
TEST_F(memcg, oom_kill)
{
	int status, i;
	s64 kills;
	pid_t pid;

	for (i = 0; i < NR_NEEDS; i++) {
		kills = protmem_cgroup_events("oom_kill");
		protmem_cgroup_limit(-1);
		pid = fork();
		if (!pid) {
			need_memory(&self->p, i);
			_exit(0);
		}
		ASSERT_EQ(pid, waitpid(pid, &status, 0));
		EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) {
			TH_LOG("%d: status %x", i, status);
		}
		EXPECT_EQ(kills + 1, protmem_cgroup_events("oom_kill"));
		EXPECT_EQ(0, protmem_wait_off_direct_map(0));
		EXPECT_EQ(0, protmem_read_sysfs("quarantined_bytes"));
		EXPECT_TRUE(wait_charged_below(SZ_2M)) {
			TH_LOG("%d: %ld bytes still charged", i, protmem_cgroup_charged());
		}
	}
}

int main(int argc, char **argv)
{
	protmem_require();
	protmem_cgroup_require("protmem_memcg_test");
	return test_harness_run(argc, argv);
}
