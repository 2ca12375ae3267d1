// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM protected memory, what is particular to x86: when it can be had, what a VM
 * with it can't have besides, the state of a vCPU that has to go when the memory
 * does, what the emulator does where it finds no memory, the guest's clock, and the
 * guest's hypercall.
 *
 * See Documentation/virt/kvm/protected-memory.rst.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/kvm_host.h>
#include <linux/kvm_para.h>

#include <asm/pvclock.h>

#include "cpuid.h"
#include "hyperv.h"
#include "kvm_emulate.h"
#include "mmu.h"
#include "mmu/tdp_mmu.h"
#include "protected_memory.h"
#include "regs.h"
#include "trace.h"
#include "x86.h"
#include "xen.h"

/*
 * May be called without any lock.  @kvm is NULL for VMs of the default type.
 * Says in the log, once for each reason, why there is nothing.
 */
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

/*
 * What firmware or hardware does to the pages of other VMs needs a mapping.
 * @kvm is NULL for VMs of the default type.  The answer is good for as long as
 * the caller holds kvm->lock, and a hint to those who don't.
 */
bool kvm_arch_protmem_can_hide(struct kvm *kvm)
{
	return !kvm || (kvm->arch.vm_type == KVM_X86_DEFAULT_VM &&
			!kvm->arch.legacy_sev);
}

/*
 * What a VM with protected memory can't have, because the host would read or
 * write guest memory for it by a mapping of its own, or keep the state of a
 * guest there; and, if pages can be private, by userspace's mapping.
 *
 * Asked by KVM_CHECK_EXTENSION and by KVM_ENABLE_CAP, of the VM and of a vCPU,
 * as far as x86 answers these.  Not by virt/kvm/kvm_main.c: a capability that
 * kvm_vm_ioctl_check_extension_generic() or kvm_vm_ioctl_enable_cap_generic()
 * knows has to be refused there.
 *
 * What is refused elsewhere, for being a part of something else:
 *
 *	KVM_SET_CPUID2			kvm_protmem_check_cpuid()
 *	VMX, SVM, SGX in CPUID		kvm_protmem_update_cpuid()
 *	VMRUN and the like		nested_svm_check_permissions()
 *	SMIs, KVM_SMI			kvm_inject_smi()
 *	SMM by KVM_SET_VCPU_EVENTS	kvm_vcpu_ioctl_x86_set_vcpu_events()
 *	KVM_SET_VAPIC_ADDR		kvm_lapic_set_vapic_addr()
 *	PDPTRs by KVM_SET_SREGS		kvm_protmem_refuses_pdptrs()
 *	Xen, against a race		kvm_xen_hvm_config()
 *	SEV, either way round		svm/sev.c, kvm->arch.legacy_sev
 *	dirty log, read-only slots	check_memory_region_flags()
 */
bool kvm_protmem_refuses_cap(struct kvm *kvm, long cap)
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

/*
 * The same for what is not enabled by a capability, or need not be.  Asked by
 * kvm_arch_vm_ioctl() and kvm_arch_vcpu_ioctl(): an ioctl that kvm_main.c answers
 * itself (KVM_CREATE_DEVICE, KVM_IRQFD, ...) does not get here.
 */
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
 * Called once, with kvm->protmem.caps set and kvm->lock and slots_lock held.
 * What is refused from now on must not be there already.  Return: 0 or -EINVAL.
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

void kvm_arch_protmem_split(struct kvm *kvm, struct kvm_memory_slot *slot,
			    gfn_t start, gfn_t end)
{
	guard(write_lock)(&kvm->mmu_lock);
	/* There are no other tables: without the TDP MMU, or nested, there is no capability. */
	kvm_tdp_mmu_try_split_huge_pages(kvm, slot, start, end, PG_LEVEL_4K, false);
}

/*
 * Nothing that @vcpu has read of the guest, or is in the middle of, may survive
 * KVM_RESET_PROTECTED_MEMORY.  The caller holds kvm->lock and vcpu->mutex.
 */
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
	memzero_explicit(&ctxt->src, sizeof(ctxt->src));
	memzero_explicit(&ctxt->src2, sizeof(ctxt->src2));
	memzero_explicit(&ctxt->dst, sizeof(ctxt->dst));
}

/*
 * Hyper-V's overlay pages are written and read by the host.  Called with the
 * new entries in place, which kvm_set_cpuid() takes back on error.
 * Return: 0 or -EINVAL.
 */
int kvm_protmem_check_cpuid(struct kvm_vcpu *vcpu)
{
#ifdef CONFIG_KVM_HYPERV
	struct kvm_cpuid_entry2 *best;

	if (!kvm_has_private_pages(vcpu->kvm))
		return 0;

	best = kvm_find_cpuid_entry(vcpu, HYPERV_CPUID_INTERFACE);
	if (best && best->eax == HYPERV_CPUID_SIGNATURE_EAX)
		return -EINVAL;
#endif
	return 0;
}

static __always_inline void protmem_clear_feature(struct kvm_vcpu *vcpu,
						  u32 function,
						  unsigned int feature)
{
	struct kvm_cpuid_entry2 *best;

	best = kvm_find_cpuid_entry_index(vcpu, function, 0);
	if (best)
		cpuid_entry_clear(best, feature);
	guest_cpu_cap_clear(vcpu, feature);
}

/* Takes away the features of a VM with protected memory that it can't have. */
void kvm_protmem_update_cpuid(struct kvm_vcpu *vcpu)
{
	/* A nested guest's state would live in the guest's memory. */
	protmem_clear_feature(vcpu, 1, X86_FEATURE_VMX);
	protmem_clear_feature(vcpu, 0x80000001, X86_FEATURE_SVM);
	/* KVM emulates ENCLS with operands at the memslot's address. */
	protmem_clear_feature(vcpu, 7, X86_FEATURE_SGX);
}

/*
 * With PAE paging, KVM loads the PDPTRs from the guest's memory when userspace
 * sets the registers.  Are they in a page that is private to the guest?  Then
 * nothing may be set.  Other memory that can't be read is none of our business.
 */
bool kvm_protmem_refuses_pdptrs(struct kvm_vcpu *vcpu,
				const struct kvm_sregs *sregs)
{
	gpa_t gpa = sregs->cr3 & ~0x1fULL;
	u64 pdpte;

	if (!kvm_has_private_pages(vcpu->kvm))
		return false;
	if (!(sregs->cr0 & X86_CR0_PG) || !(sregs->cr4 & X86_CR4_PAE) ||
	    (sregs->efer & EFER_LMA))
		return false;

	guard(srcu)(&vcpu->kvm->srcu);
	return kvm_vcpu_read_guest_page(vcpu, gpa_to_gfn(gpa), &pdpte,
					offset_in_page(gpa),
					sizeof(pdpte)) == -EACCES;
}

/*
 * The emulator could not access @gpa.  For ordinary memory, or none, that means
 * MMIO, but not where the data would be what a guest keeps in private pages.
 * Return: X86EMUL_*, X86EMUL_CONTINUE if it is MMIO.
 */
int kvm_protmem_emulated_access_failed(struct kvm_vcpu *vcpu, gpa_t gpa)
{
	struct kvm_memory_slot *slot;

	if (!kvm_has_private_pages(vcpu->kvm))
		return X86EMUL_CONTINUE;

	slot = kvm_vcpu_gfn_to_memslot(vcpu, gpa_to_gfn(gpa));
	if (!kvm_slot_has_private_pages(slot))
		return X86EMUL_CONTINUE;

	/* Of a slot that is going, too: see kvm_protmem_retry_emulation(). */
	return X86EMUL_UNHANDLEABLE;
}

/*
 * Is a memslot on its way out or in?  Then what an instruction has not found in
 * it may be there when the instruction is executed again.  Looks at all slots,
 * as the generation's flag is off while the one that goes is only invalid.  The
 * caller is in an SRCU section from before the access: that holds up the end of
 * the change, so there is no missing it.
 */
static bool protmem_slots_change(struct kvm *kvm)
{
	struct kvm_memslots *slots = kvm_memslots(kvm);
	struct kvm_memory_slot *slot;
	int bkt;

	if (slots->generation & KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS)
		return true;
	kvm_for_each_memslot(slot, bkt, slots) {
		if (slot->flags & KVM_MEMSLOT_INVALID)
			return true;
	}
	return false;
}

/*
 * The emulator has failed, by EMULTYPE_* in @emulation_type.  Is the guest to
 * execute the instruction again?  What is in a memslot that is going may be found
 * elsewhere.
 */
bool kvm_protmem_retry_emulation(struct kvm_vcpu *vcpu, int emulation_type)
{
	struct kvm *kvm = vcpu->kvm;

	if (!kvm_has_protected_memory(kvm) || (emulation_type & EMULTYPE_SKIP) ||
	    !protmem_slots_change(kvm))
		return false;

	/* Userspace doesn't see what it has done to registers so far. */
	vcpu->arch.emulate_regs_need_sync_to_vcpu = false;
	return true;
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
	if (!slot || kvm_slot_has_private_pages(slot) || !kvm_memslot_is_gmem_only(slot))
		return;
	if (kvm_read_guest(kvm, gpa, &old, sizeof(old)))
		return;

	/* As in kvm_setup_guest_pvclock(): odd while other vCPUs may look. */
	hv_clock->version = (old.version + 1) | 1;
	hv_clock->flags |= old.flags & PVCLOCK_GUEST_STOPPED;
	if (kvm_write_guest(kvm, gpa, &hv_clock->version,
			    sizeof(hv_clock->version)))
		return;
	/* The guest doesn't believe what it reads while the version is odd. */
	smp_wmb();
	/* If this fails the guest has an old clock, but does not wait for it. */
	kvm_write_guest(kvm, gpa + rest, (void *)hv_clock + rest,
			sizeof(*hv_clock) - rest);
	/* All of it is there before the version is even again. */
	smp_wmb();
	++hv_clock->version;
	kvm_write_guest(kvm, gpa, &hv_clock->version, sizeof(hv_clock->version));

	trace_kvm_pvclock_update(vcpu->vcpu_id, hv_clock);
}

/* The exit that kvm_protmem_emulate_hypercall() had to put off. */
static int protmem_complete_single_step(struct kvm_vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;

	run->debug.arch.dr6 = DR6_BS | DR6_ACTIVE_LOW;
	run->debug.arch.pc = kvm_get_linear_rip(vcpu);
	run->debug.arch.exception = DB_VECTOR;
	run->exit_reason = KVM_EXIT_DEBUG;
	return 0;
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
	struct kvm_run *run = vcpu->run;
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

	r = kvm_protmem_convert_range(vcpu, &gfn, end, private);
	if (r == -EINVAL)
		ret = -KVM_EINVAL;
	else if (r)
		return r;
out:
	if (!long_mode)
		ret = (u32)ret;
	kvm_rax_write_raw(vcpu, ret);
	r = kvm_skip_emulated_instruction(vcpu);

	/* If it failed, userspace is told of the part that has been done. */
	if (gfn == start ||
	    !(vcpu->kvm->protmem.exit_flags & KVM_PROTMEM_EXIT_CONVERT))
		return r;

	/* There is one exit at a time, and this one must not get lost. */
	if (!r && run->exit_reason == KVM_EXIT_DEBUG)
		vcpu->arch.complete_userspace_io = protmem_complete_single_step;
	else if (r <= 0)
		return r;

	kvm_protmem_prepare_exit(vcpu, start, gfn, private);
	return 0;
}
