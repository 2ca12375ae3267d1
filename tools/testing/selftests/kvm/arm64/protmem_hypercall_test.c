// SPDX-License-Identifier: GPL-2.0-only
/*
 * Protected memory on arm64: the guest's hypercalls, who may restrict them, the
 * latch, which closes when the guest first runs, and what a VM can't have besides.
 */
#include <pthread.h>
#include <sched.h>

#include "kselftest_harness.h"
#include "protmem.h"

#define GPA		PROTMEM_GPA
#define SEED		0xa64
#define PRIVATE		KVM_MEMORY_ATTRIBUTE_PRIVATE
#define ZERO		KVM_SET_MEMORY_ATTRIBUTES2_ZERO
#define PRESERVE	KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE

#define NOT_SUPPORTED	((u64)SMCCC_RET_NOT_SUPPORTED)
#define INVALID		((u64)SMCCC_RET_INVALID_PARAMETER)
#define CALLS		(BIT(KVM_REG_ARM_VENDOR_HYP_BIT_HYP_MEMINFO) |	\
			 BIT(KVM_REG_ARM_VENDOR_HYP_BIT_MEM_SHARE) |	\
			 BIT(KVM_REG_ARM_VENDOR_HYP_BIT_MEM_UNSHARE))

PROTMEM_FIXTURE(hypercall);

static u64 guest_hvc(u64 function, u64 a, u64 b, u64 c)
{
	struct arm_smccc_res res;

	smccc_hvc(function, a, b, c, 0, 0, 0, 0, &res);
	return res.a0;
}

static u64 features(struct protmem_vm *p)
{
	return protmem_call(p, 0, guest_hvc, ARM_SMCCC_VENDOR_HYP_KVM_FEATURES_FUNC_ID);
}

TEST_F(hypercall, meminfo)
{
	struct protmem_vm *p = &self->p;

	EXPECT_EQ(CALLS, features(p) & CALLS);
	EXPECT_EQ(PAGE_SIZE, protmem_call(p, 0, guest_hvc, PROTMEM_HYP_MEMINFO));
	EXPECT_EQ(INVALID, protmem_call(p, 0, guest_hvc, PROTMEM_HYP_MEMINFO, 1));
	EXPECT_EQ(INVALID, protmem_call(p, 0, guest_hvc, PROTMEM_HYP_MEMINFO, 0, 1));
	EXPECT_EQ(INVALID, protmem_call(p, 0, guest_hvc, PROTMEM_HYP_MEMINFO, 0, 0, 1));
}

TEST_F(hypercall, contents_are_kept)
{
	struct protmem_vm *p = &self->p;
	u64 val;

	protmem_fill(p, GPA, 2 * PAGE_SIZE, SEED);
	ASSERT_EQ(0, protmem_make_private(p, GPA, PAGE_SIZE));
	EXPECT_TRUE(protmem_is_private(p, GPA));
	EXPECT_FALSE(protmem_is_private(p, GPA + PAGE_SIZE));
	EXPECT_EQ(BUS_ADRERR, protmem_try_read(protmem_hva(p, GPA), &val));
	EXPECT_EQ(0, protmem_try_read(protmem_hva(p, GPA + PAGE_SIZE), &val));
	EXPECT_EQ(0, protmem_call(p, 0, guest_check, GPA, 2 * PAGE_SIZE, SEED));

	protmem_call(p, 0, guest_fill, GPA, PAGE_SIZE, SEED + 1);
	ASSERT_EQ(0, protmem_make_shared(p, GPA, PAGE_SIZE));
	EXPECT_EQ(PAGE_SIZE, protmem_mismatch(p->mem, GPA, PAGE_SIZE, SEED + 1));

	/* Once more is as good. */
	EXPECT_EQ(0, protmem_make_shared(p, GPA, PAGE_SIZE));
	EXPECT_EQ(0, protmem_make_private(p, GPA, PAGE_SIZE));
	EXPECT_EQ(0, protmem_make_private(p, GPA, PAGE_SIZE));
	EXPECT_EQ(0, protmem_call(p, 0, guest_check, GPA, PAGE_SIZE, SEED + 1));
}

TEST_F(hypercall, bad_arguments)
{
	const u32 functions[] = { PROTMEM_TO_PRIVATE, PROTMEM_TO_SHARED };
	struct protmem_vm *p = &self->p;
	const u64 elsewhere[] = { 0, PROTMEM_MMIO_GPA, GPA + p->size, -PAGE_SIZE };
	int i;

	for (i = 0; i < ARRAY_SIZE(functions); i++) {
		EXPECT_EQ(INVALID, protmem_call(p, 0, guest_hvc, functions[i], GPA + 1));
		EXPECT_EQ(INVALID, protmem_call(p, 0, guest_hvc, functions[i], GPA + 8));
		EXPECT_EQ(INVALID, protmem_call(p, 0, guest_hvc, functions[i], GPA, 1));
		EXPECT_EQ(INVALID, protmem_call(p, 0, guest_hvc, functions[i], GPA, 0, 1));
	}
	EXPECT_FALSE(protmem_is_private(p, GPA));

	/* Ordinary memory, and where there is none, is shared, and stays so. */
	for (i = 0; i < ARRAY_SIZE(elsewhere); i++) {
		EXPECT_EQ(0, protmem_call(p, 0, guest_hvc, PROTMEM_TO_SHARED, elsewhere[i]));
		EXPECT_EQ(INVALID, protmem_call(p, 0, guest_hvc, PROTMEM_TO_PRIVATE,
						elsewhere[i]));
	}
}

static void expect_no_calls(struct __test_metadata *_metadata, struct protmem_vm *p)
{
	EXPECT_EQ(0, features(p) & CALLS);
	EXPECT_EQ(NOT_SUPPORTED, protmem_call(p, 0, guest_hvc, PROTMEM_HYP_MEMINFO));
	EXPECT_EQ(NOT_SUPPORTED, protmem_call(p, 0, guest_hvc, PROTMEM_TO_SHARED, GPA));
	EXPECT_EQ(NOT_SUPPORTED, protmem_call(p, 0, guest_hvc, PROTMEM_TO_PRIVATE, GPA));
}

/* VMs without the calls say so, and can't be given them otherwise. */
TEST(others_do_not_have_them)
{
	static const u64 caps[] = {
		PROTMEM_CAPS_ORDINARY, PROTMEM_CAPS_NO_CONVERT, PROTMEM_CAPS_HIDE,
	};
	struct protmem_opts opts = {};
	struct protmem_vm p;
	u64 bmap;
	int i;

	for (i = 0; i < ARRAY_SIZE(caps); i++) {
		opts.caps = caps[i];
		protmem_vm_create(&p, &opts);
		bmap = vcpu_get_reg(p.vcpu[0], KVM_REG_ARM_VENDOR_HYP_BMAP);
		EXPECT_EQ(0, bmap & CALLS);
		EXPECT_EQ(-1, __vcpu_set_reg(p.vcpu[0], KVM_REG_ARM_VENDOR_HYP_BMAP,
					     bmap | CALLS));
		EXPECT_EQ(EINVAL, errno);
		expect_no_calls(_metadata, &p);
		protmem_vm_free(&p);
	}
}

/* The VMM can take them away, each for itself, until the guest runs. */
TEST_F(hypercall, vmm_restricts_them)
{
	struct protmem_vm *p = &self->p;
	struct kvm_vcpu *vcpu = p->vcpu[0];
	u64 bmap = vcpu_get_reg(vcpu, KVM_REG_ARM_VENDOR_HYP_BMAP);

	EXPECT_EQ(CALLS, bmap & CALLS);
	vcpu_set_reg(vcpu, KVM_REG_ARM_VENDOR_HYP_BMAP,
		     bmap & ~BIT(KVM_REG_ARM_VENDOR_HYP_BIT_MEM_SHARE));
	EXPECT_EQ(PAGE_SIZE, protmem_call(p, 0, guest_hvc, PROTMEM_HYP_MEMINFO));
	EXPECT_EQ(NOT_SUPPORTED, protmem_call(p, 0, guest_hvc, PROTMEM_TO_SHARED, GPA));
	EXPECT_EQ(0, protmem_call(p, 0, guest_hvc, PROTMEM_TO_PRIVATE, GPA));
	EXPECT_TRUE(protmem_is_private(p, GPA));

	EXPECT_EQ(-1, __vcpu_set_reg(vcpu, KVM_REG_ARM_VENDOR_HYP_BMAP, bmap));
	EXPECT_EQ(EBUSY, errno);
}

TEST_F(hypercall, vmm_takes_all_away)
{
	struct protmem_vm *p = &self->p;
	struct kvm_vcpu *vcpu = p->vcpu[0];
	u64 bmap = vcpu_get_reg(vcpu, KVM_REG_ARM_VENDOR_HYP_BMAP);

	vcpu_set_reg(vcpu, KVM_REG_ARM_VENDOR_HYP_BMAP, bmap & ~CALLS);
	expect_no_calls(_metadata, p);
}

static int set_filter(struct kvm_vm *vm, u32 base, u32 nr, u8 action)
{
	struct kvm_smccc_filter filter = {
		.base = base,
		.nr_functions = nr,
		.action = action,
	};

	return __kvm_device_attr_set(vm->fd, KVM_ARM_VM_SMCCC_CTRL,
				     KVM_ARM_VM_SMCCC_FILTER, &filter) ? -errno : 0;
}

/* It must not answer in KVM's place: it could say that a page is private. */
TEST_F(hypercall, vmm_does_not_answer_them)
{
	static const u8 actions[] = { KVM_SMCCC_FILTER_FWD_TO_USER, KVM_SMCCC_FILTER_DENY };
	struct protmem_vm *p = &self->p;
	struct kvm_vm *vm;
	int i;

	for (i = 0; i < ARRAY_SIZE(actions); i++) {
		EXPECT_EQ(-EEXIST, set_filter(p->vm, PROTMEM_HYP_MEMINFO, 1, actions[i]));
		EXPECT_EQ(-EEXIST, set_filter(p->vm, PROTMEM_TO_PRIVATE, 1, actions[i]));
		EXPECT_EQ(-EEXIST, set_filter(p->vm, PROTMEM_HYP_MEMINFO - 1, 8, actions[i]));
	}
	EXPECT_EQ(0, set_filter(p->vm, PROTMEM_TO_PRIVATE + 1, 8, KVM_SMCCC_FILTER_FWD_TO_USER));
	EXPECT_EQ(0, protmem_make_private(p, GPA, PAGE_SIZE));
	EXPECT_TRUE(protmem_is_private(p, GPA));

	/* The other way round the filter is first, and there is no protected memory. */
	vm = vm_create_barebones();
	ASSERT_EQ(0, set_filter(vm, PROTMEM_HYP_MEMINFO, 3, KVM_SMCCC_FILTER_FWD_TO_USER));
	EXPECT_EQ(-EINVAL, protmem_enable_cap(vm, PROTMEM_CAPS, 0));
	kvm_vm_free(vm);
}

TEST(exits_after_conversions)
{
	struct protmem_opts opts = {
		.caps = PROTMEM_CAPS,
		.exit_flags = KVM_PROTMEM_EXIT_CONVERT,
	};
	struct protmem_vm p;

	protmem_vm_create(&p, &opts);
	EXPECT_EQ(0, protmem_make_private(&p, GPA, 2 * PAGE_SIZE));
	EXPECT_EQ(2, p.nr_convert_exits);
	EXPECT_EQ(GPA + PAGE_SIZE, p.convert_gpa);
	EXPECT_EQ(PAGE_SIZE, p.convert_size);
	EXPECT_EQ(PRIVATE, p.convert_attributes);
	EXPECT_EQ(0, protmem_make_shared(&p, GPA, PAGE_SIZE));
	EXPECT_EQ(3, p.nr_convert_exits);
	EXPECT_EQ(GPA, p.convert_gpa);
	EXPECT_EQ(0, p.convert_attributes);
	EXPECT_EQ(INVALID, protmem_make_shared(&p, GPA + 8, PAGE_SIZE));
	EXPECT_EQ(3, p.nr_convert_exits);
	protmem_vm_free(&p);
}

/* What a VMM does: all private before the first run, and nothing afterwards. */
TEST_F(hypercall, latched_by_running)
{
	struct protmem_vm *p = &self->p;
	u64 val, err;

	/* Until then it may change its mind. */
	ASSERT_EQ(0, protmem_set_attr(p->gmem, 0, p->size, PRIVATE, ZERO, NULL));
	ASSERT_EQ(0, protmem_set_attr(p->gmem, 0, p->size, 0, ZERO, NULL));
	protmem_fill(p, GPA, 4 * PAGE_SIZE, SEED);
	ASSERT_EQ(0, protmem_set_attr(p->gmem, 0, p->size, PRIVATE, PRESERVE, NULL));
	EXPECT_EQ(0, protmem_delete_slot(p, PROTMEM_SLOT));
	EXPECT_EQ(0, protmem_set_slot(p, PROTMEM_SLOT, GPA, p->size, 0));
	EXPECT_EQ(0, vm_get_stat(p->vm, protmem_latched));

	EXPECT_EQ(0, protmem_call(p, 0, guest_check, GPA, 4 * PAGE_SIZE, SEED));
	EXPECT_EQ(1, vm_get_stat(p->vm, protmem_latched));

	EXPECT_EQ(-EPERM, protmem_set_attr(p->gmem, 0, PAGE_SIZE, 0, PRESERVE, &err));
	EXPECT_EQ(0, err);
	EXPECT_EQ(-EPERM, protmem_set_attr(p->gmem, 0, PAGE_SIZE, 0, ZERO, NULL));
	EXPECT_EQ(-EPERM, protmem_set_attr(p->gmem, 0, PAGE_SIZE, PRIVATE, ZERO, NULL));
	EXPECT_EQ(-EPERM, protmem_punch(p->gmem, 0, PAGE_SIZE));
	EXPECT_EQ(-EPERM, protmem_delete_slot(p, PROTMEM_SLOT));
	EXPECT_EQ(BUS_ADRERR, protmem_try_read(p->mem, &val));
	EXPECT_EQ(0, protmem_call(p, 0, guest_check, GPA, 4 * PAGE_SIZE, SEED));

	/* The way out leaves nothing. */
	ASSERT_EQ(0, protmem_reset(p));
	protmem_vcpu_reset(p, 0);
	EXPECT_EQ(0, vm_get_stat(p->vm, protmem_latched));
	EXPECT_FALSE(protmem_is_private(p, GPA));
	EXPECT_EQ(p->size, protmem_first_nonzero(p->mem, p->size));
	protmem_fill(p, GPA, PAGE_SIZE, SEED + 1);
	ASSERT_EQ(0, protmem_set_attr(p->gmem, 0, p->size, PRIVATE, PRESERVE, NULL));
	EXPECT_EQ(0, protmem_call(p, 0, guest_check, GPA, PAGE_SIZE, SEED + 1));
	EXPECT_EQ(-EPERM, protmem_punch(p->gmem, 0, PAGE_SIZE));
}

/*
 * The VMM shares while the guest starts.  How far it has come by then is up to chance,
 * but from the guest's first instruction on nothing changes.
 */
#define RACE_SIZE	SZ_4M

static u64 guest_started(u64 cmd_gva, u64 b, u64 c, u64 d)
{
	struct protmem_cmd *cmd = (void *)cmd_gva;

	WRITE_ONCE(cmd->count, 1);
	while (!READ_ONCE(cmd->stop))
		cpu_relax();
	return 0;
}

struct sharer {
	struct protmem_vm *p;
	u64 delay;
	u64 started;
	int r;
	u64 err;
};

static void *share_thread(void *arg)
{
	struct sharer *s = arg;
	u64 i;

	WRITE_ONCE(s->started, 1);
	for (i = 0; i < s->delay; i++)
		cpu_relax();
	s->r = protmem_set_attr(s->p->gmem, 0, RACE_SIZE, 0, PRESERVE, &s->err);
	return NULL;
}

static void *run_thread(void *arg)
{
	struct protmem_vm *p = arg;

	protmem_run(p, 0);
	return NULL;
}

static u64 shared_bytes(struct protmem_vm *p)
{
	u64 attributes, run;

	TEST_ASSERT_EQ(protmem_get_attr(p->gmem, 0, RACE_SIZE, &attributes, &run), 0);
	return attributes & PRIVATE ? 0 : run;
}

TEST(sharing_races_with_the_first_run)
{
	struct protmem_opts opts = { .caps = PROTMEM_CAPS, .size = RACE_SIZE };
	int none = 0, all = 0, part = 0, i, iterations = protmem_test_iterations(60);
	pthread_t run, share;
	struct sharer s = {};
	struct protmem_vm p;
	u64 then, now;

	if (protmem_nr_cpus() < 2)
		SKIP(return, "needs 2 CPUs to race");

	protmem_vm_create(&p, &opts);
	s.p = &p;
	for (i = 0; i < iterations; i++) {
		ASSERT_EQ(0, protmem_reset(&p));
		/* Contents, so that it takes its time. */
		protmem_fill(&p, GPA, RACE_SIZE, SEED);
		ASSERT_EQ(0, protmem_set_attr(p.gmem, 0, RACE_SIZE, PRIVATE, PRESERVE,
					      NULL));
		p.cmd[0]->count = 0;
		p.cmd[0]->stop = 0;
		s.started = 0;
		protmem_prepare(&p, 0, guest_started, p.cmd_gva[0], 0, 0, 0);
		pthread_create(&share, NULL, share_thread, &s);
		while (!READ_ONCE(s.started))
			sched_yield();
		pthread_create(&run, NULL, run_thread, &p);
		while (!READ_ONCE(p.cmd[0]->count))
			sched_yield();

		then = shared_bytes(&p);
		pthread_join(share, NULL);
		now = shared_bytes(&p);
		WRITE_ONCE(p.cmd[0]->stop, 1);
		pthread_join(run, NULL);

		ASSERT_EQ(then, now);
		ASSERT_EQ(now == RACE_SIZE ? 0 : -EPERM, s.r);
		if (s.r)
			ASSERT_EQ(now, s.err);
		none += !now;
		all += now == RACE_SIZE;
		part += now && now < RACE_SIZE;
		/* Who was too early is later the next time. */
		if (now)
			s.delay += 100 + s.delay / 8;
		else
			s.delay -= s.delay / 8;
	}
	TH_LOG("nothing shared %d times, all %d times, a part %d times", none, all, part);
	protmem_vm_free(&p);
}

TEST(refusals)
{
	struct protmem_opts opts = { .caps = PROTMEM_CAPS };
	struct kvm_device_attr attr = {
		.group = KVM_ARM_VCPU_PVTIME_CTRL,
		.attr = KVM_ARM_VCPU_PVTIME_IPA,
	};
	struct kvm_enable_cap cap = { .cap = KVM_CAP_ARM_MTE };
	struct protmem_vm p;
	struct kvm_vm *vm;

	protmem_vm_create(&p, &opts);
	EXPECT_EQ(-1, __vcpu_ioctl(p.vcpu[0], KVM_HAS_DEVICE_ATTR, &attr));
	EXPECT_EQ(ENXIO, errno);
	protmem_vm_free(&p);

	if (!kvm_has_cap(KVM_CAP_ARM_MTE))
		SKIP(return, "the CPUs have no MTE");
	vm = vm_create_barebones();
	ASSERT_EQ(0, protmem_enable_cap(vm, PROTMEM_CAPS, 0));
	EXPECT_EQ(-1, __vm_ioctl(vm, KVM_ENABLE_CAP, &cap));
	EXPECT_EQ(EINVAL, errno);
	kvm_vm_free(vm);

	vm = vm_create_barebones();
	ASSERT_EQ(0, __vm_ioctl(vm, KVM_ENABLE_CAP, &cap));
	EXPECT_EQ(-EINVAL, protmem_enable_cap(vm, PROTMEM_CAPS, 0));
	kvm_vm_free(vm);
}

int main(int argc, char **argv)
{
	protmem_require();
	return test_harness_run(argc, argv);
}
