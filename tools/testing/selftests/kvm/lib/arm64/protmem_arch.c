// SPDX-License-Identifier: GPL-2.0-only
/*
 * The tests of KVM_CAP_PROTECTED_MEMORY: arm64.
 */
#include "protmem.h"

/* There is no other way to run a guest. */
bool protmem_tdp_is_on(void)
{
	return true;
}

unsigned long protmem_arch_vm_type(u64 caps)
{
	return caps & KVM_PROTMEM_HOST_KERNEL ? KVM_VM_TYPE_ARM_PROTECTED : 0;
}

/* Where the page tables of a big slot are, for which there is no room elsewhere. */
#define TABLES_SLOT		20
#define TABLES_GPA		0x80000000ULL

void protmem_arch_vm_prepare(struct protmem_vm *p)
{
	struct kvm_vm *vm = p->vm;

	if (p->size <= SZ_16M || p->caps & KVM_PROTMEM_HOST_KERNEL)
		return;
	/* Half of each table is used at least. */
	vm_userspace_mem_region_add(vm, VM_MEM_SRC_ANONYMOUS, TABLES_GPA, TABLES_SLOT,
				    p->size / vm->page_size / (vm->page_size / 16), 0);
	vm->memslots[MEM_REGION_PT] = TABLES_SLOT;
}

void protmem_arch_map(struct kvm_vm *vm, u64 gpa, u64 size)
{
	virt_map(vm, gpa, gpa, size / vm->page_size);
}

void protmem_arch_vcpu_init(struct protmem_vm *p, int cpu,
			    const struct protmem_opts *opts)
{
	struct protmem_vcpu_state *boot = &p->boot[cpu];
	struct kvm_vcpu *vcpu = p->vcpu[cpu];

	boot->pc = vcpu_get_reg(vcpu, ARM64_CORE_REG(regs.pc));
	boot->x0 = vcpu_get_reg(vcpu, ARM64_CORE_REG(regs.regs[0]));
	boot->sp = vcpu_get_reg(vcpu, ctxt_reg_alias(vcpu, SYS_SP_EL1));
}

void protmem_vcpu_reset(struct protmem_vm *p, int cpu)
{
	struct protmem_vcpu_state *boot = &p->boot[cpu];
	struct kvm_vcpu *vcpu = p->vcpu[cpu];

	aarch64_vcpu_setup(vcpu, &vcpu->init);
	vcpu_set_reg(vcpu, ARM64_CORE_REG(regs.pc), boot->pc);
	vcpu_set_reg(vcpu, ARM64_CORE_REG(regs.regs[0]), boot->x0);
	vcpu_set_reg(vcpu, ctxt_reg_alias(vcpu, SYS_SP_EL1), boot->sp);
}

/*
 * KVM counts none here, but shows its tables (CONFIG_PTDUMP_STAGE2_DEBUGFS): a line has
 * "0xSTART-0xEND SIZE LEVEL ATTRIBUTES" of entries that follow one another and are alike.
 */
u64 protmem_arch_nr_large(struct kvm_vm *vm)
{
	unsigned long start, end;
	char path[128], line[256];
	unsigned int level;
	u64 nr = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/sys/kernel/debug/kvm/%d-%d/stage2_page_tables",
		 getpid(), vm->fd);
	f = fopen(path, "r");
	TEST_ASSERT(f, "no %s: it takes debugfs and CONFIG_PTDUMP_STAGE2_DEBUGFS", path);
	while (fgets(line, sizeof(line), f)) {
		if (strstr(line, "BLK") &&
		    sscanf(line, "0x%lx-0x%lx %*s %u", &start, &end, &level) == 3 &&
		    level == 2)
			nr += (end - start) / SZ_2M;
	}
	fclose(f);
	return nr;
}

void protmem_arch_guest_done(void)
{
	/* One store that KVM can tell userspace about. */
	asm volatile("str xzr, [%0]"
		     : : "r"(PROTMEM_MMIO_GPA + PROTMEM_DONE_REG) : "memory");
}

bool protmem_arch_is_done(struct kvm_vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;

	return run->exit_reason == KVM_EXIT_MMIO && run->mmio.is_write &&
	       run->mmio.phys_addr == PROTMEM_MMIO_GPA + PROTMEM_DONE_REG;
}

/* A page for each call.  Returns 0, or what the first that failed returned. */
u64 guest_convert(u64 gpa, u64 size, u64 to, u64 unused)
{
	struct arm_smccc_res res;
	u64 end = gpa + size;

	for (; gpa < end; gpa += PAGE_SIZE) {
		smccc_hvc(to, gpa, 0, 0, 0, 0, 0, 0, &res);
		if (res.a0)
			return res.a0;
	}
	return 0;
}
