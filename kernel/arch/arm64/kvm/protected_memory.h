/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * KVM protected memory: what the rest of arm64 KVM calls, and only that.  What the
 * generic code calls, kvm_arch_protmem_*(), is in <linux/kvm_protected_memory.h>.
 */
#ifndef __KVM_ARM64_PROTECTED_MEMORY_H
#define __KVM_ARM64_PROTECTED_MEMORY_H

#include <linux/kvm_host.h>

/* The services of kvm_protmem_hypercall(). */
#define KVM_PROTMEM_VENDOR_HYP_FEATURES					\
	(BIT(KVM_REG_ARM_VENDOR_HYP_BIT_HYP_MEMINFO) |			\
	 BIT(KVM_REG_ARM_VENDOR_HYP_BIT_MEM_SHARE) |			\
	 BIT(KVM_REG_ARM_VENDOR_HYP_BIT_MEM_UNSHARE))

#ifdef CONFIG_KVM_PROTECTED_MEMORY

int kvm_protmem_check_run(struct kvm_vcpu *vcpu);
int kvm_protmem_hypercall(struct kvm_vcpu *vcpu, u32 func_id);
unsigned long kvm_protmem_vendor_hyp_features(struct kvm *kvm);
int kvm_protmem_reserve_smccc(struct kvm *kvm);
long kvm_protmem_mapping_size(struct kvm_memory_slot *slot, gfn_t gfn,
			      int max_order);
int kvm_protmem_pkvm_abort(struct kvm_vcpu *vcpu, struct kvm_memory_slot *slot,
			   gfn_t gfn);

#else

static inline int kvm_protmem_check_run(struct kvm_vcpu *vcpu)
{
	return 0;
}

static inline int kvm_protmem_hypercall(struct kvm_vcpu *vcpu, u32 func_id)
{
	return -EIO;
}

static inline unsigned long kvm_protmem_vendor_hyp_features(struct kvm *kvm)
{
	return 0;
}

static inline int kvm_protmem_reserve_smccc(struct kvm *kvm)
{
	return 0;
}

static inline int kvm_protmem_pkvm_abort(struct kvm_vcpu *vcpu,
					 struct kvm_memory_slot *slot, gfn_t gfn)
{
	return -EIO;
}

static inline long kvm_protmem_mapping_size(struct kvm_memory_slot *slot,
					    gfn_t gfn, int max_order)
{
	return PAGE_SIZE;
}

#endif /* CONFIG_KVM_PROTECTED_MEMORY */
#endif /* __KVM_ARM64_PROTECTED_MEMORY_H */
