// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM protected memory, what is particular to x86: when it can be had, the
 * guest's hypercall, what a VM with it can't have besides, and the state of a
 * vCPU that has to go when the memory does.
 *
 * See Documentation/virt/kvm/protected-memory.rst.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/kvm_host.h>
#include <linux/kvm_para.h>
#include <linux/sched/signal.h>

#include <asm/pvclock.h>

#include "cpuid.h"
#include "hyperv.h"
#include "kvm_emulate.h"
#include "mmu.h"
#include "protected_memory.h"
#include "regs.h"
#include "trace.h"
#include "x86.h"
#include "xen.h"

u64 kvm_arch_protmem_supported_caps(struct kvm *kvm)
{
	if (!tdp_enabled || !tdp_mmu_enabled) {
		pr_info_once("no protected memory: two-dimensional paging with the TDP MMU is off\n");
		return 0;
	}

	if (kvm && kvm->arch.vm_type != KVM_X86_DEFAULT_VM) {
		pr_info_once("no protected memory: only VMs of the default type can have it\n");
		return 0;
	}

	return KVM_PROTMEM_DIRECT_MAP | KVM_PROTMEM_USER |
	       KVM_PROTMEM_GUEST_CONVERT | KVM_PROTMEM_HIDE_ONLY;
}

/* What firmware or hardware does to the pages of other VMs needs a mapping. */
bool kvm_arch_protmem_can_hide(struct kvm *kvm)
{
	return !kvm || (kvm->arch.vm_type == KVM_X86_DEFAULT_VM &&
			!kvm->arch.legacy_sev);
}

/*
 * What a VM with protected memory can't have, because the host would read or
 * write guest memory for it by a mapping of its own, or keep the state of a
 * guest there; and, if pages can be private, by userspace's mapping.
 */
bool kvm_protmem_hides_cap(struct kvm *kvm, long cap)
{
	if (!kvm_has_protected_memory(kvm))
		return false;

	switch (cap) {
	case KVM_CAP_NESTED_STATE:
	case KVM_CAP_X86_SMM:
	case KVM_CAP_XEN_HVM:
	case KVM_CAP_HYPERV_DIRECT_TLBFLUSH:
	case KVM_CAP_HYPERV_ENLIGHTENED_VMCS:
		return true;
	case KVM_CAP_VAPIC:
	case KVM_CAP_HYPERV:
	case KVM_CAP_HYPERV_VAPIC:
	case KVM_CAP_HYPERV_SPIN:
	case KVM_CAP_HYPERV_TIME:
	case KVM_CAP_HYPERV_SYNIC:
	case KVM_CAP_HYPERV_SYNIC2:
	case KVM_CAP_HYPERV_VP_INDEX:
	case KVM_CAP_HYPERV_EVENTFD:
	case KVM_CAP_HYPERV_TLBFLUSH:
	case KVM_CAP_HYPERV_SEND_IPI:
	case KVM_CAP_HYPERV_CPUID:
	case KVM_CAP_HYPERV_ENFORCE_CPUID:
		return kvm_has_private_pages(kvm);
	}

	return false;
}

/* The same for what is not enabled by a capability, or need not be. */
bool kvm_protmem_refuses_ioctl(struct kvm *kvm, unsigned int ioctl)
{
	if (!kvm_has_protected_memory(kvm))
		return false;

	switch (ioctl) {
	case KVM_MEMORY_ENCRYPT_OP:
	case KVM_MEMORY_ENCRYPT_REG_REGION:
	case KVM_MEMORY_ENCRYPT_UNREG_REGION:
	case KVM_GET_NESTED_STATE:
	case KVM_SET_NESTED_STATE:
	case KVM_SMI:
	case KVM_XEN_HVM_CONFIG:
	case KVM_XEN_HVM_GET_ATTR:
	case KVM_XEN_HVM_SET_ATTR:
	case KVM_XEN_HVM_EVTCHN_SEND:
	case KVM_XEN_VCPU_GET_ATTR:
	case KVM_XEN_VCPU_SET_ATTR:
		return true;
	case KVM_HYPERV_EVENTFD:
		return kvm_has_private_pages(kvm);
	}

	return false;
}

/*
 * Called once, with kvm->protmem.caps set and kvm->lock held.  What is refused
 * from now on must not be there already.  Return: 0 or -EINVAL.
 */
int kvm_arch_protmem_enable(struct kvm *kvm)
{
	lockdep_assert_held(&kvm->lock);

	if (kvm->arch.legacy_sev)
		return -EINVAL;

#ifdef CONFIG_KVM_XEN
	/* Pairs with kvm_xen_hvm_config(). */
	scoped_guard(mutex, &kvm->arch.xen.xen_lock) {
		if (kvm_xen_msr_enabled(kvm) || kvm_xen_hypercall_enabled(kvm))
			return -EINVAL;
	}
#endif

	if (!kvm_has_private_pages(kvm))
		return 0;

	/* KVM doesn't write to the guest's code: the guest knows its vendor. */
	WRITE_ONCE(kvm->arch.disabled_quirks, kvm->arch.disabled_quirks |
		   KVM_X86_QUIRK_FIX_HYPERCALL_INSN);
	return 0;
}

void kvm_arch_protmem_reset_vcpu(struct kvm_vcpu *vcpu)
{
	struct x86_emulate_ctxt *ctxt = vcpu->arch.emulate_ctxt;

	lockdep_assert_held(&vcpu->mutex);

	/* What userspace would complete with the next KVM_RUN. */
	vcpu->arch.complete_userspace_io = NULL;
	vcpu->arch.pio.count = 0;
	vcpu->mmio_needed = 0;
	vcpu->mmio_read_completed = 0;
	vcpu->mmio_cur_fragment = 0;
	vcpu->mmio_nr_fragments = 0;
	vcpu->arch.emulate_regs_need_sync_from_vcpu = false;
	vcpu->arch.emulate_regs_need_sync_to_vcpu = false;
	vcpu_clear_mmio_info(vcpu, MMIO_GVA_ANY);

	/* And what it has read of the guest. */
	memzero_explicit(vcpu->mmio_fragments, sizeof(vcpu->mmio_fragments));
	if (vcpu->arch.pio_data)
		memzero_explicit(vcpu->arch.pio_data, PAGE_SIZE);
	memzero_explicit(&ctxt->fetch, sizeof(ctxt->fetch));
	memzero_explicit(&ctxt->io_read, sizeof(ctxt->io_read));
	memzero_explicit(&ctxt->mem_read, sizeof(ctxt->mem_read));
}

/*
 * Hyper-V's overlay pages are written and read by the host.  Called with the
 * new entries in place, which kvm_set_cpuid() takes back on error.
 */
int kvm_protmem_check_cpuid(struct kvm_vcpu *vcpu)
{
#ifdef CONFIG_KVM_HYPERV
	struct kvm_cpuid_entry2 *best;

	best = kvm_find_cpuid_entry(vcpu, HYPERV_CPUID_INTERFACE);
	if (best && best->eax == HYPERV_CPUID_SIGNATURE_EAX)
		return -EINVAL;
#endif
	return 0;
}

/**
 * kvm_protmem_write_pvclock - update a guest's clock by userspace's mapping
 * @vcpu: the vCPU, in KVM_RUN, with kvm->srcu held.
 * @gpa: where the guest has its clock; may be INVALID_GPA.
 * @hv_clock: the new values; the version is made up here.
 *
 * For memory that the kernel has no mapping of, and can't get one, but may
 * access as userspace does.  Private pages and others that can't be mapped are
 * left alone.  May sleep.
 */
void kvm_protmem_write_pvclock(struct kvm_vcpu *vcpu, gpa_t gpa,
			       struct pvclock_vcpu_time_info *hv_clock)
{
	const unsigned int rest = offsetof(struct pvclock_vcpu_time_info,
					   tsc_timestamp);
	struct pvclock_vcpu_time_info old;
	struct kvm *kvm = vcpu->kvm;
	struct kvm_memory_slot *slot;

	BUILD_BUG_ON(offsetof(struct pvclock_vcpu_time_info, version));

	if (kvm_is_error_gpa(gpa))
		return;
	/* Like the cache that failed, not by the address space of an SMI handler. */
	slot = gfn_to_memslot(kvm, gpa_to_gfn(gpa));
	if (!slot || kvm_slot_is_protected(slot) || !kvm_memslot_is_gmem_only(slot))
		return;
	if (kvm_read_guest(kvm, gpa, &old, sizeof(old)))
		return;

	/* As in kvm_setup_guest_pvclock(): odd while other vCPUs may look. */
	hv_clock->version = (old.version + 1) | 1;
	hv_clock->flags |= old.flags & PVCLOCK_GUEST_STOPPED;
	if (kvm_write_guest(kvm, gpa, &hv_clock->version,
			    sizeof(hv_clock->version)))
		return;
	smp_wmb();
	/* If this fails the guest has an old clock, but does not wait for it. */
	kvm_write_guest(kvm, gpa + rest, (void *)hv_clock + rest,
			sizeof(*hv_clock) - rest);
	smp_wmb();
	++hv_clock->version;
	kvm_write_guest(kvm, gpa, &hv_clock->version, sizeof(hv_clock->version));

	trace_kvm_pvclock_update(vcpu->vcpu_id, hv_clock);
}

/**
 * kvm_protmem_emulate_hypercall - KVM_HC_MAP_GPA_RANGE of a protected VM
 * @vcpu: the vCPU, in KVM_RUN.
 *
 * The conversion is done here, and userspace is not asked.  When it has to be
 * interrupted, the guest executes the same instruction again and what is done
 * already is skipped, so that no state needs to be kept, and none is lost if
 * the vCPU never runs again.
 *
 * Return: as for any exit handler.
 */
int kvm_protmem_emulate_hypercall(struct kvm_vcpu *vcpu)
{
	bool long_mode = is_64_bit_hypercall(vcpu), private;
	u64 gpa, npages, attrs;
	gfn_t start, gfn, end;
	long ret = 0;
	int r;

	++vcpu->stat.hypercalls;

	if (long_mode) {
		gpa = kvm_rbx_read_raw(vcpu);
		npages = kvm_rcx_read_raw(vcpu);
		attrs = kvm_rdx_read_raw(vcpu);
	} else {
		gpa = kvm_ebx_read(vcpu);
		npages = kvm_ecx_read(vcpu);
		attrs = kvm_edx_read(vcpu);
	}
	trace_kvm_hypercall(KVM_HC_MAP_GPA_RANGE, gpa, npages, attrs, 0);

	start = gpa_to_gfn(gpa);
	gfn = start;
	end = start + npages;
	private = attrs & KVM_MAP_GPA_RANGE_ENCRYPTED;

	if (kvm_x86_call(get_cpl)(vcpu)) {
		ret = -KVM_EPERM;
		goto out;
	}
	if (!PAGE_ALIGNED(gpa) || end <= start ||
	    end > gpa_to_gfn(~0ULL) + 1) {
		ret = -KVM_EINVAL;
		goto out;
	}

	while (gfn < end) {
		r = kvm_protmem_convert_gfns(vcpu->kvm, &gfn, end, private);
		if (r == -EINVAL) {
			ret = -KVM_EINVAL;
			break;
		}
		/* The memslot update waits for this vCPU to drop kvm->srcu. */
		if (r == -EAGAIN)
			return 1;
		if (r)
			return r;
		if (gfn == end)
			break;

		if (signal_pending(current)) {
			vcpu->run->exit_reason = KVM_EXIT_INTR;
			++vcpu->stat.signal_exits;
			return -EINTR;
		}
		if (kvm_request_pending(vcpu))
			return 1;
		/* A long range must not keep memslot updates waiting. */
		kvm_vcpu_srcu_read_unlock(vcpu);
		cond_resched();
		kvm_vcpu_srcu_read_lock(vcpu);
	}

out:
	if (!long_mode)
		ret = (u32)ret;
	kvm_rax_write_raw(vcpu, ret);
	r = kvm_skip_emulated_instruction(vcpu);

	/* If it failed, userspace is told of the part that has been done. */
	if (r > 0 && gfn > start &&
	    (vcpu->kvm->protmem.exit_flags & KVM_PROTMEM_EXIT_CONVERT)) {
		vcpu->run->exit_reason = KVM_EXIT_PROTECTED_MEMORY;
		vcpu->run->protected_memory.gpa = gpa;
		vcpu->run->protected_memory.size = (gfn - start) << PAGE_SHIFT;
		vcpu->run->protected_memory.attributes =
			private ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0;
		vcpu->run->protected_memory.flags = 0;
		r = 0;
	}

	return r;
}
