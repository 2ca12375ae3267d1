// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM protected memory, what is particular to arm64: when it can be had, the
 * guest's hypercalls, and what a VM with it can't have besides.
 *
 * The guest's hypercalls are those of pKVM (Documentation/virt/kvm/arm/hypercalls.rst):
 * all of its memory is private when it starts, and it shares page by page.
 *
 * KVM itself never looks into private pages on arm64: it walks no page tables of the
 * guest's and decodes no instructions, unless the guest has EL2, which is refused.
 * What it reads and writes at an address that the guest or the VMM has given (the
 * tables of an ITS, pending interrupts, stolen time) it accesses by the VMM's
 * mapping: that fails unless the guest has shared it.
 *
 * Caches: the code for the second stage cleans and invalidates by the linear map,
 * which private pages are not in.
 *
 *  - Data: never, as FEAT_S2FWB makes all of the guest's accesses cacheable, and
 *    the host's are; without it there is no protected memory.
 *  - Instructions: nothing is to be done with CTR_EL0.DIC; without it, all of the
 *    instruction cache is invalidated instead of the page.
 *
 * See Documentation/virt/kvm/protected-memory.rst.
 */
#include <linux/arm-smccc.h>
#include <linux/kvm_host.h>

#include <asm/cpufeature.h>
#include <asm/kvm_emulate.h>
#include <asm/kvm_mmu.h>
#include <asm/kvm_pgtable.h>
#include <asm/kvm_pkvm.h>
#include <asm/virt.h>

#include <kvm/arm_hypercalls.h>

#include "protected_memory.h"

/*
 * With pKVM only VMs that EL2 protects have protected memory, and have it from there:
 * virt/kvm/protected_memory_in_place.c.
 */
#define PROTMEM_EL2_CAPS	(KVM_PROTMEM_DIRECT_MAP | KVM_PROTMEM_USER | \
				 KVM_PROTMEM_GUEST_CONVERT | KVM_PROTMEM_HOST_KERNEL)

static bool protmem_possible(struct kvm *kvm, const char **why)
{
	if (is_protected_kvm_enabled() && !(kvm && kvm_vm_is_protected(kvm)))
		*why = "the hypervisor at EL2 owns the second stage, and has it for protected VMs only";
	else if (!cpus_have_final_cap(ARM64_HAS_STAGE2_FWB))
		*why = "the second stage can't force memory to be cacheable (FEAT_S2FWB)";
	else
		return true;

	return false;
}

/* As <linux/kvm_protected_memory.h> says; so are the other kvm_arch_*(). */
u64 kvm_arch_protmem_supported_caps(struct kvm *kvm)
{
	const char *why;

	if (!protmem_possible(kvm, &why)) {
		pr_info_once("kvm: no protected memory: %s\n", why);
		return 0;
	}
	if (is_protected_kvm_enabled())
		return PROTMEM_EL2_CAPS;

	return KVM_PROTMEM_DIRECT_MAP | KVM_PROTMEM_USER |
	       KVM_PROTMEM_GUEST_CONVERT | KVM_PROTMEM_HIDE_ONLY;
}

bool kvm_arch_protmem_can_hide(struct kvm *kvm)
{
	const char *why;

	return !is_protected_kvm_enabled() && protmem_possible(kvm, &why);
}

int kvm_arch_protmem_enable(struct kvm *kvm)
{
	lockdep_assert_held(&kvm->lock);

	if (kvm_has_mte(kvm))
		return -EINVAL;
	if (is_protected_kvm_enabled()) {
		/* EL2 has no parts of it to give, and the kernel is kept out in any case. */
		kvm->protmem.caps |= KVM_PROTMEM_HOST_KERNEL;
		if (kvm->protmem.caps != PROTMEM_EL2_CAPS)
			return -EINVAL;
	}
	if (!kvm_protmem_guest_converts(kvm))
		return 0;

	guard(mutex)(&kvm->arch.config_lock);

	/* A filter that is there already may have the calls go to userspace. */
	if (!mtree_empty(&kvm->arch.smccc_filter))
		return -EINVAL;

	kvm->arch.smccc_feat.vendor_hyp_bmap |= KVM_PROTMEM_VENDOR_HYP_FEATURES;
	/* There is no vCPU, and so no VM at EL2. */
	kvm->arch.pkvm.host_completes = is_protected_kvm_enabled();
	return 0;
}

static int protmem_topup(struct kvm_vcpu *vcpu)
{
	return topup_hyp_memcache(&vcpu->arch.pkvm_memcache,
				  kvm_mmu_cache_min_pages(vcpu->arch.hw_mmu)) ? -ENOMEM : 0;
}

/*
 * The guest of a VM that EL2 protects has touched @gfn, which EL2 has no page for.
 * The caller holds kvm->srcu.  Returns 0, or as
 * kvm_protmem_map_in_place() does.
 */
int kvm_protmem_pkvm_abort(struct kvm_vcpu *vcpu, struct kvm_memory_slot *slot,
			   gfn_t gfn)
{
	return protmem_topup(vcpu) ?: kvm_protmem_map_in_place(vcpu, slot, gfn);
}

bool kvm_arch_protmem_given(struct kvm *kvm, gfn_t gfn)
{
	guard(read_lock)(&kvm->mmu_lock);

	return pkvm_pgtable_stage2_is_mapped(kvm->arch.mmu.pgt, gfn_to_gpa(gfn));
}

int kvm_arch_protmem_give(struct kvm_vcpu *vcpu, gfn_t gfn, kvm_pfn_t pfn,
			  struct inode *inode)
{
	u8 class = kvm_vcpu_trap_get_class(vcpu);
	struct kvm_hyp_memcache *mc = &vcpu->arch.pkvm_memcache;
	struct kvm_pgtable *pgt = vcpu->arch.hw_mmu->pgt;
	struct kvm *kvm = vcpu->kvm;
	int r;

	guard(write_lock)(&kvm->mmu_lock);

	/* A fault there is for EL2 to look into: the page may have been lost. */
	if (class != ESR_ELx_EC_DABT_LOW && class != ESR_ELx_EC_IABT_LOW &&
	    pkvm_pgtable_stage2_is_mapped(pgt, gfn_to_gpa(gfn)))
		return 0;

	mc->mapping->inode = inode;
	r = pkvm_pgtable_stage2_map(pgt, gfn_to_gpa(gfn), PAGE_SIZE, __pfn_to_phys(pfn),
				    KVM_PGTABLE_PROT_RWX, mc, 0);
	if (r)
		mc->mapping->inode = NULL;
	else
		ihold(inode);	/* EL2 has the page until the VM is torn down. */

	return r == -EAGAIN ? 0 : r;
}

int kvm_arch_protmem_complete(struct kvm *kvm)
{
	return kvm_call_hyp_nvhe(__pkvm_vcpu_complete_mem_call) ? -EINVAL : 0;
}

/* There is nothing here that splits an entry but to log what is dirty. */
void kvm_arch_protmem_split(struct kvm *kvm, struct kvm_memory_slot *slot,
			    gfn_t start, gfn_t end)
{
}

void kvm_arch_protmem_reset_vcpu(struct kvm_vcpu *vcpu)
{
	lockdep_assert_held(&vcpu->mutex);

	/* The access to a device that userspace would complete. */
	vcpu->mmio_needed = 0;
	vcpu_clear_flag(vcpu, PENDING_EXCEPTION);
	vcpu_clear_flag(vcpu, EXCEPT_MASK);
	vcpu_clear_flag(vcpu, INCREMENT_PC);
}

/* The bits of KVM_REG_ARM_VENDOR_HYP_BMAP that this VM can have besides the usual. */
unsigned long kvm_protmem_vendor_hyp_features(struct kvm *kvm)
{
	return kvm_protmem_guest_converts(kvm) ? KVM_PROTMEM_VENDOR_HYP_FEATURES : 0;
}

/*
 * Userspace must not answer the guest's hypercalls: it could say that a page is
 * private which is not.  Called with config_lock held, before the first range of
 * userspace's is in the filter.  Returns 0, or -ENOMEM.
 */
int kvm_protmem_reserve_smccc(struct kvm *kvm)
{
	if (!kvm_protmem_guest_converts(kvm))
		return 0;

	return mtree_insert_range(&kvm->arch.smccc_filter,
				  ARM_SMCCC_VENDOR_HYP_KVM_HYP_MEMINFO_FUNC_ID,
				  ARM_SMCCC_VENDOR_HYP_KVM_MEM_UNSHARE_FUNC_ID,
				  xa_mk_value(KVM_SMCCC_FILTER_HANDLE),
				  GFP_KERNEL_ACCOUNT);
}

/*
 * Called in KVM_RUN, with @vcpu->mutex held: once the guest runs its memory is its
 * own.  Returns 0, or -EINTR.
 */
int kvm_protmem_check_run(struct kvm_vcpu *vcpu)
{
	struct kvm *kvm = vcpu->kvm;

	if (likely(!kvm_has_private_pages(kvm) || smp_load_acquire(&kvm->protmem.may_run)))
		return 0;

	return kvm_protmem_latch(kvm);
}

/* The guest executes the same HVC or SMC again. */
static void protmem_repeat_call(struct kvm_vcpu *vcpu)
{
	if (kvm_vcpu_trap_get_class(vcpu) == ESR_ELx_EC_SMC64)
		/* handle_smc() has asked for it. */
		vcpu_clear_flag(vcpu, INCREMENT_PC);
	else
		*vcpu_pc(vcpu) -= 4;
}

/*
 * EL2 may need page tables for a page that is to be shared, as the guest has to have it
 * first.  There is no memory in a protected VM but what can be private.  Returns 0 or as
 * kvm_protmem_convert_range() does.
 */
static int protmem_prepare_in_place(struct kvm_vcpu *vcpu, gfn_t gfn, bool private)
{
	if (!kvm_protmem_in_place(vcpu->kvm))
		return 0;
	if (!gfn_to_memslot(vcpu->kvm, gfn))
		return -EINVAL;

	return private ? 0 : protmem_topup(vcpu);
}

/**
 * kvm_protmem_hypercall - HYP_MEMINFO, MEM_SHARE and MEM_UNSHARE of a protected VM
 * @vcpu: the vCPU, in KVM_RUN.
 * @func_id: ARM_SMCCC_VENDOR_HYP_KVM_*_FUNC_ID of one of these.
 *
 * One page is shared or not.  The conversion is done here, and userspace is not asked.
 *
 * Return: as for any exit handler.
 */
int kvm_protmem_hypercall(struct kvm_vcpu *vcpu, u32 func_id)
{
	bool private = func_id == ARM_SMCCC_VENDOR_HYP_KVM_MEM_UNSHARE_FUNC_ID;
	gpa_t gpa = smccc_get_arg1(vcpu);
	gfn_t gfn = gpa_to_gfn(gpa);
	int r;

	if (func_id == ARM_SMCCC_VENDOR_HYP_KVM_HYP_MEMINFO_FUNC_ID) {
		if (gpa || smccc_get_arg2(vcpu) || smccc_get_arg3(vcpu))
			smccc_set_retval(vcpu, SMCCC_RET_INVALID_PARAMETER, 0, 0, 0);
		else
			smccc_set_retval(vcpu, PAGE_SIZE, 0, 0, 0);
		return 1;
	}

	/* EL2 takes notice of HVCs only, and would do nothing. */
	if (kvm_protmem_in_place(vcpu->kvm) &&
	    kvm_vcpu_trap_get_class(vcpu) != ESR_ELx_EC_HVC64) {
		smccc_set_retval(vcpu, SMCCC_RET_NOT_SUPPORTED, 0, 0, 0);
		return 1;
	}
	/* Numbers of 64-bit calls; and a 32-bit guest's IT state could not be taken back. */
	if (vcpu_mode_is_32bit(vcpu)) {
		smccc_set_retval(vcpu, SMCCC_RET_NOT_SUPPORTED, 0, 0, 0);
		return 1;
	}
	if (!PAGE_ALIGNED(gpa) || smccc_get_arg2(vcpu) || smccc_get_arg3(vcpu)) {
		smccc_set_retval(vcpu, SMCCC_RET_INVALID_PARAMETER, 0, 0, 0);
		return 1;
	}

	kvm_vcpu_srcu_read_lock(vcpu);
	r = protmem_prepare_in_place(vcpu, gfn, private);
	if (!r)
		r = kvm_protmem_convert_range(vcpu, &gfn, gfn + 1, private);
	kvm_vcpu_srcu_read_unlock(vcpu);
	if (r == -EINVAL) {
		smccc_set_retval(vcpu, SMCCC_RET_INVALID_PARAMETER, 0, 0, 0);
		return 1;
	}
	if (r) {
		protmem_repeat_call(vcpu);
		return r;
	}

	smccc_set_retval(vcpu, SMCCC_RET_SUCCESS, 0, 0, 0);
	if (!(vcpu->kvm->protmem.exit_flags & KVM_PROTMEM_EXIT_CONVERT))
		return 1;

	kvm_protmem_prepare_exit(vcpu, gpa_to_gfn(gpa), gfn, private);
	return 0;
}

/*
 * How much around @gfn the second stage may map by one entry, in bytes: guest_memfd
 * has said @max_order, for the naturally aligned range of gfns.
 */
long kvm_protmem_mapping_size(struct kvm_memory_slot *slot, gfn_t gfn,
			      int max_order)
{
	const gfn_t nr = 1UL << PMD_ORDER;
	gfn_t first = ALIGN_DOWN(gfn, nr);

	if (max_order < PMD_ORDER || first < slot->base_gfn ||
	    first + nr > slot->base_gfn + slot->npages)
		return PAGE_SIZE;

	return PMD_SIZE;
}
