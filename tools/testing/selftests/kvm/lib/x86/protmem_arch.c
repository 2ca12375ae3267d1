// SPDX-License-Identifier: GPL-2.0-only
/*
 * The tests of KVM_CAP_PROTECTED_MEMORY: x86.
 */
#include "protmem.h"

/* What alone decides on x86; without it there must be no protected memory. */
bool protmem_tdp_is_on(void)
{
	return kvm_is_tdp_enabled() && get_kvm_param_bool("tdp_mmu");
}

/*
 * What a VMM does about CPUID: announce the hypercall, hide what protected VMs
 * don't have.  Bit 18 is KVM's to force or clear, whatever is asked for here.
 */
unsigned long protmem_arch_vm_type(u64 caps)
{
	return VM_TYPE_DEFAULT;
}

void protmem_arch_vm_prepare(struct protmem_vm *p)
{
	struct kvm_cpuid2 *cpuid = (void *)kvm_get_supported_cpuid();
	int i;

	for (i = 0; i < cpuid->nent; i++) {
		struct kvm_cpuid_entry2 *e = &cpuid->entries[i];

		switch (e->function) {
		case 0x1:
			e->ecx &= ~BIT(5);		/* VMX */
			break;
		case 0x80000001:
			e->ecx &= ~BIT(2);		/* SVM */
			break;
		case KVM_CPUID_FEATURES:
			e->eax |= BIT(KVM_FEATURE_HC_MAP_GPA_RANGE) |
				  BIT(KVM_FEATURE_PROTECTED_MEMORY);
			break;
		}
	}
}

void protmem_arch_map(struct kvm_vm *vm, u64 gpa, u64 size)
{
	if (size <= SZ_16M)
		virt_map(vm, gpa, gpa, size / PAGE_SIZE);
	else
		virt_map_level(vm, gpa, gpa, size, PG_LEVEL_2M);
}

void protmem_arch_vcpu_init(struct protmem_vm *p, int cpu,
			    const struct protmem_opts *opts)
{
	struct protmem_vcpu_state *boot = &p->boot[cpu];
	struct kvm_vcpu *vcpu = p->vcpu[cpu];

	vcpu_regs_get(vcpu, &boot->regs);
	/*
	 * Nothing interrupts these guests.  But the only emulator of VMX
	 * forgets that the host's interrupts end a guest that was entered
	 * without IF, so one that waits for the host would wait forever.
	 */
	if (host_cpu_is_intel && !opts->no_interrupts) {
		boot->regs.rflags |= X86_EFLAGS_IF;
		vcpu_regs_set(vcpu, &boot->regs);
	}
	vcpu_sregs_get(vcpu, &boot->sregs);
}

void protmem_vcpu_reset(struct protmem_vm *p, int cpu)
{
	vcpu_sregs_set(p->vcpu[cpu], &p->boot[cpu].sregs);
	vcpu_regs_set(p->vcpu[cpu], &p->boot[cpu].regs);
}

u64 protmem_arch_nr_large(struct kvm_vm *vm)
{
	return vm_get_stat(vm, pages_2m);
}

void protmem_arch_guest_done(void)
{
	asm volatile("outb %%al, %%dx"
		     : : "a"(0), "d"(PROTMEM_DONE_PORT) : "memory");
}

bool protmem_arch_is_done(struct kvm_vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;

	return run->exit_reason == KVM_EXIT_IO && run->io.port == PROTMEM_DONE_PORT;
}

u64 guest_convert(u64 gpa, u64 size, u64 to, u64 unused)
{
	return __kvm_hypercall_map_gpa_range(gpa, size, to);
}

u64 guest_wrmsr(u64 msr, u64 val, u64 c, u64 d)
{
	return wrmsr_safe(msr, val);
}

u64 guest_ins(u64 gpa, u64 n, u64 c, u64 d)
{
	asm volatile("cld; rep insb"
		     : "+D"(gpa), "+c"(n) : "d"(PROTMEM_STRING_PORT) : "memory");
	return gpa;
}
