/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * KVM protected memory: what the rest of x86 KVM calls, and only that.  What the
 * generic code calls, kvm_arch_protmem_*(), is in <linux/kvm_protected_memory.h>.
 */
#ifndef __KVM_X86_PROTECTED_MEMORY_H
#define __KVM_X86_PROTECTED_MEMORY_H

#include <linux/kvm_host.h>
#include <linux/kvm_para.h>

#include "kvm_emulate.h"
#include "regs.h"

struct pvclock_vcpu_time_info;

#ifdef CONFIG_KVM_PROTECTED_MEMORY

bool kvm_protmem_refuses_cap(struct kvm *kvm, long cap);
bool kvm_protmem_refuses_ioctl(struct kvm *kvm, unsigned int ioctl);
int kvm_protmem_check_cpuid(struct kvm_vcpu *vcpu);
void kvm_protmem_update_cpuid(struct kvm_vcpu *vcpu);
bool kvm_protmem_refuses_pdptrs(struct kvm_vcpu *vcpu,
				const struct kvm_sregs *sregs);
int kvm_protmem_emulated_access_failed(struct kvm_vcpu *vcpu, gpa_t gpa);
bool kvm_protmem_retry_emulation(struct kvm_vcpu *vcpu, int emulation_type);
void kvm_protmem_write_pvclock(struct kvm_vcpu *vcpu, gpa_t gpa,
			       struct pvclock_vcpu_time_info *hv_clock);
int kvm_protmem_emulate_hypercall(struct kvm_vcpu *vcpu);

static inline bool kvm_protmem_is_hypercall(struct kvm_vcpu *vcpu)
{
	if (!kvm_protmem_guest_converts(vcpu->kvm))
		return false;

	return (is_64_bit_hypercall(vcpu) ? kvm_rax_read_raw(vcpu) :
		kvm_eax_read(vcpu)) == KVM_HC_MAP_GPA_RANGE;
}

#else

static inline bool kvm_protmem_refuses_cap(struct kvm *kvm, long cap)
{
	return false;
}

static inline bool kvm_protmem_refuses_ioctl(struct kvm *kvm,
					     unsigned int ioctl)
{
	return false;
}

static inline int kvm_protmem_check_cpuid(struct kvm_vcpu *vcpu)
{
	return 0;
}

static inline void kvm_protmem_update_cpuid(struct kvm_vcpu *vcpu)
{
}

static inline bool kvm_protmem_refuses_pdptrs(struct kvm_vcpu *vcpu,
					      const struct kvm_sregs *sregs)
{
	return false;
}

static inline int kvm_protmem_emulated_access_failed(struct kvm_vcpu *vcpu,
						     gpa_t gpa)
{
	return X86EMUL_CONTINUE;
}

static inline bool kvm_protmem_retry_emulation(struct kvm_vcpu *vcpu,
					       int emulation_type)
{
	return false;
}

static inline void kvm_protmem_write_pvclock(struct kvm_vcpu *vcpu, gpa_t gpa,
					     struct pvclock_vcpu_time_info *hv_clock)
{
}

static inline bool kvm_protmem_is_hypercall(struct kvm_vcpu *vcpu)
{
	return false;
}

static inline int kvm_protmem_emulate_hypercall(struct kvm_vcpu *vcpu)
{
	return -EIO;
}

#endif /* CONFIG_KVM_PROTECTED_MEMORY */
#endif /* __KVM_X86_PROTECTED_MEMORY_H */
