/* SPDX-License-Identifier: GPL-2.0-only */
/* KVM protected memory: what the rest of x86 KVM calls. */
#ifndef __KVM_X86_PROTECTED_MEMORY_H
#define __KVM_X86_PROTECTED_MEMORY_H

#include <linux/kvm_host.h>
#include <linux/kvm_para.h>

#include "regs.h"

struct pvclock_vcpu_time_info;

#ifdef CONFIG_KVM_PROTECTED_MEMORY

bool kvm_protmem_hides_cap(struct kvm *kvm, long cap);
bool kvm_protmem_refuses_ioctl(struct kvm *kvm, unsigned int ioctl);
int kvm_protmem_check_cpuid(struct kvm_vcpu *vcpu);
void kvm_protmem_write_pvclock(struct kvm_vcpu *vcpu, gpa_t gpa,
			       struct pvclock_vcpu_time_info *hv_clock);
int kvm_protmem_emulate_hypercall(struct kvm_vcpu *vcpu);

/* The guest converts by itself, and finds that in its CPUID. */
static inline bool kvm_protmem_guest_converts(struct kvm *kvm)
{
	return kvm->protmem.caps & KVM_PROTMEM_GUEST_CONVERT;
}

static inline bool kvm_protmem_is_hypercall(struct kvm_vcpu *vcpu)
{
	return kvm_protmem_guest_converts(vcpu->kvm) &&
	       kvm_eax_read(vcpu) == KVM_HC_MAP_GPA_RANGE;
}

#else

static inline bool kvm_protmem_hides_cap(struct kvm *kvm, long cap)
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

static inline void kvm_protmem_write_pvclock(struct kvm_vcpu *vcpu, gpa_t gpa,
					     struct pvclock_vcpu_time_info *hv_clock)
{
}

static inline bool kvm_protmem_guest_converts(struct kvm *kvm)
{
	return false;
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
