// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM protected memory, what concerns a VM as a whole: which capabilities and memslot
 * flags it can have, the latch, wipe-and-reset, memslots that go.
 *
 * The states, the locks and the rules are described in protected_memory.c.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/file.h>
#include <linux/kvm_host.h>
#include <linux/pagemap.h>
#include <linux/sched/signal.h>
#include <linux/unmapped_pool.h>

#include "protected_memory.h"

/*
 * Which of the two memslot flags are valid, given that userspace asks for @flags.
 */
u32 kvm_protmem_valid_slot_flags(struct kvm *kvm, u32 flags)
{
	if (!(flags & KVM_MEM_GUEST_MEMFD))
		return 0;

	switch (flags & PROTMEM_SLOT_FLAGS) {
	case PROTMEM_SLOT_FLAGS:
		return kvm_has_private_pages(kvm) ? PROTMEM_SLOT_FLAGS : 0;
	case KVM_MEM_UNMAP_DIRECT:
		return kvm->protmem.caps & KVM_PROTMEM_HIDE_ONLY ?
		       KVM_MEM_UNMAP_DIRECT : 0;
	}

	return 0;
}

/**
 * kvm_protmem_slot_leave - a memslot is about to be deleted
 * @kvm: the VM; the caller holds slots_lock.
 * @slot: the slot, still active.
 *
 * Refuses if the latch is closed and the slot has a private page.  Otherwise,
 * until the slot is gone or kvm_protmem_slot_stay() says that it is not going,
 * the guest can't convert pages in it: it tries again, and then finds the
 * outcome.  So there is no moment at which a guest that has made a page
 * private meets a slot that is on its way out.
 *
 * Return: 0 or -EPERM.
 */
int kvm_protmem_slot_leave(struct kvm *kvm, struct kvm_memory_slot *slot)
{
	struct kvm_protmem_inode *pi;
	pgoff_t start, end;
	int r;

	lockdep_assert_held(&kvm->slots_lock);

	if (!kvm_slot_has_private_pages(slot))
		return 0;

	CLASS(gmem_get_file, file)(slot);
	if (!file) {
		/*
		 * Closed, but userspace can delay the release, and with it the
		 * death of the VM: see kvm_protmem_release().
		 */
		if (slot->gmem.file && READ_ONCE(kvm->protmem.latched))
			return -EPERM;
		return 0;
	}

	pi = kvm_protmem(file_inode(file));
	start = slot->gmem.pgoff;
	end = start + slot->npages;

	guard(rwsem_write)(&file_inode(file)->i_mapping->invalidate_lock);

	r = kvm_protmem_may_drop(pi, start, end, &start);
	if (!r)
		slot->gmem.leaving = true;
	return r;
}

/*
 * After kvm_protmem_slot_leave(), @slot could not be deleted and is active again.
 * The caller still holds slots_lock.
 */
void kvm_protmem_slot_stay(struct kvm *kvm, struct kvm_memory_slot *slot)
{
	lockdep_assert_held(&kvm->slots_lock);

	if (!kvm_slot_has_private_pages(slot))
		return;

	CLASS(gmem_get_file, file)(slot);
	if (!file)
		return;

	guard(rwsem_write)(&file_inode(file)->i_mapping->invalidate_lock);
	slot->gmem.leaving = false;
}

/*
 * Drops what is in one bounded span of @pi, wherever there is something left,
 * so that neither memory failure nor a fault of userspace's has to wait for all
 * of it.  True once all is empty, and then shared.
 */
static bool protmem_reset_step(struct kvm_protmem_inode *pi)
{
	struct address_space *mapping = pi->inode->i_mapping;
	unsigned long start = ULONG_MAX, index = 0;
	pgoff_t end;

	guard(rwsem_write)(&mapping->invalidate_lock);

	if (xa_find(&pi->pages, &index, ULONG_MAX, XA_PRESENT))
		start = index;
	index = 0;
	if (xa_find(&mapping->i_pages, &index, ULONG_MAX, XA_PRESENT))
		start = min(start, index);
	if (start == ULONG_MAX) {
		__mt_destroy(&pi->state);
		return true;
	}

	/* Nothing else is mapped in the second stage. */
	end = min_t(pgoff_t, start + PROTMEM_DROP_SPAN,
		    i_size_read(pi->inode) >> PAGE_SHIFT);
	kvm_gmem_invalidate_start(pi->inode, start, end);
	kvm_protmem_drop_shared(pi, start, end);
	kvm_protmem_drop_pool(pi, start, end);
	kvm_gmem_invalidate_end(pi->inode, start, end);
	return false;
}

/**
 * kvm_protmem_latch - close the latch before the guest runs
 * @kvm: the VM.
 *
 * For an architecture on which memory is private when the guest starts.  Called in
 * KVM_RUN, with a vCPU's mutex held, which keeps KVM_RESET_PROTECTED_MEMORY away, and
 * without kvm->srcu.  What userspace has begun before is over when this returns, and
 * what comes later finds the latch closed.
 *
 * Return: 0; -EINTR if the caller was killed.
 */
int kvm_protmem_latch(struct kvm *kvm)
{
	struct kvm_protmem_inode *pi;

	if (mutex_lock_killable(&kvm->slots_lock))
		return -EINTR;

	WRITE_ONCE(kvm->protmem.latched, true);
	WRITE_ONCE(kvm->stat.generic.protmem_latched, 1);
	list_for_each_entry(pi, &kvm->protmem.inodes, entry) {
		filemap_invalidate_lock(pi->inode->i_mapping);
		filemap_invalidate_unlock(pi->inode->i_mapping);
	}
	/* Not before: another vCPU that sees it does not come here. */
	smp_store_release(&kvm->protmem.may_run, true);
	mutex_unlock(&kvm->slots_lock);
	return 0;
}

/**
 * kvm_protmem_reset - wipe all protected memory and open the latch
 * @kvm: the VM.
 *
 * KVM_RESET_PROTECTED_MEMORY: the one way out of the latch.  All contents are
 * gone before the latch opens, and so are the operations that a vCPU has left
 * half done.
 *
 * Return: 0; -EINVAL if the VM can't have private pages; -EOPNOTSUPP if a hypervisor
 * has them, which gives none back while the VM lives; -EBUSY if a vCPU runs
 * or is being created; -EINTR, and the VM is dead, if the caller was killed.
 */
int kvm_protmem_reset(struct kvm *kvm)
{
	struct kvm_protmem_inode *pi;
	struct kvm_vcpu *vcpu;
	unsigned long i;
	int r = 0;

	if (!kvm_has_private_pages(kvm))
		return -EINVAL;
	if (kvm_protmem_in_place(kvm))
		return -EOPNOTSUPP;

	guard(mutex)(&kvm->lock);

	if (kvm->created_vcpus != atomic_read(&kvm->online_vcpus))
		return -EBUSY;
	if (kvm_trylock_all_vcpus(kvm))
		return -EBUSY;

	mutex_lock(&kvm->slots_lock);
	list_for_each_entry(pi, &kvm->protmem.inodes, entry) {
		if (!pi->convertible)
			continue;

		while (!protmem_reset_step(pi)) {
			if (fatal_signal_pending(current)) {
				r = -EINTR;
				break;
			}
			cond_resched();
		}
		if (r)
			break;
	}
	mutex_unlock(&kvm->slots_lock);

	if (r) {
		/* Half of the memory is gone: the guest must not run on. */
		kvm_vm_dead(kvm);
		kvm_unlock_all_vcpus(kvm);
		return r;
	}

	kvm_for_each_vcpu(i, vcpu, kvm)
		kvm_arch_protmem_reset_vcpu(vcpu);

	WRITE_ONCE(kvm->protmem.latched, false);
	WRITE_ONCE(kvm->protmem.may_run, false);
	WRITE_ONCE(kvm->stat.generic.protmem_latched, 0);

	kvm_unlock_all_vcpus(kvm);
	return 0;
}

/* For every VM, before anyone else knows it. */
void kvm_protmem_init_vm(struct kvm *kvm)
{
	INIT_LIST_HEAD(&kvm->protmem.inodes);
}

/**
 * kvm_protmem_supported_caps - what KVM_ENABLE_CAP may ask for
 * @kvm: the VM, or NULL for VMs of the default type.
 *
 * Return: a mask of KVM_PROTMEM_*; 0, with a line in the log that says why,
 * if there is no protected memory.
 */
u64 kvm_protmem_supported_caps(struct kvm *kvm)
{
	const char *why;

	if (!unmapped_pool_supported(&why)) {
		pr_info_once("no protected memory: %s\n", why);
		return 0;
	}

	return kvm_arch_protmem_supported_caps(kvm);
}

/* KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES; @kvm as above. */
u64 kvm_protmem_supported_attributes(struct kvm *kvm)
{
	if (kvm ? kvm_has_private_pages(kvm) : !!kvm_protmem_supported_caps(NULL))
		return KVM_MEMORY_ATTRIBUTE_PRIVATE;

	return 0;
}

/*
 * GUEST_MEMFD_FLAG_NO_DIRECT_MAP, which needs no KVM_ENABLE_CAP; @kvm as above.
 * kvm_protmem_create() looks again, under kvm->lock.
 */
bool kvm_protmem_supports_no_direct_map(struct kvm *kvm)
{
	const char *why;

	return unmapped_pool_supported(&why) && kvm_arch_protmem_can_hide(kvm);
}

/*
 * KVM_ENABLE_CAP(KVM_CAP_PROTECTED_MEMORY).  Takes kvm->lock and slots_lock.
 * Returns 0; -EINVAL for what can't be had, in itself or by this VM; -EBUSY if
 * it is too late, because there is a vCPU, a memslot, or the capability already.
 */
int kvm_protmem_enable_cap(struct kvm *kvm, const struct kvm_enable_cap *cap)
{
	u64 caps = cap->args[0], exits = cap->args[1];
	int r;

	if (cap->flags || cap->args[2] || cap->args[3])
		return -EINVAL;
	if (!caps || (caps & ~kvm_protmem_supported_caps(kvm)))
		return -EINVAL;
	if (!(caps & KVM_PROTMEM_DIRECT_MAP) ||
	    !(caps & (KVM_PROTMEM_USER | KVM_PROTMEM_HIDE_ONLY)))
		return -EINVAL;
	/* Only private pages can be converted. */
	if ((caps & KVM_PROTMEM_GUEST_CONVERT) && !(caps & KVM_PROTMEM_USER))
		return -EINVAL;
	if (exits & ~KVM_PROTMEM_EXIT_CONVERT)
		return -EINVAL;
	if (exits && !(caps & KVM_PROTMEM_GUEST_CONVERT))
		return -EINVAL;

	guard(mutex)(&kvm->lock);
	guard(mutex)(&kvm->slots_lock);

	if (kvm->created_vcpus || kvm_has_protected_memory(kvm) ||
	    !kvm_are_all_memslots_empty(kvm))
		return -EBUSY;

	kvm->protmem.exit_flags = exits;
	kvm->protmem.caps = caps;

	r = kvm_arch_protmem_enable(kvm);
	if (r)
		kvm->protmem.caps = 0;
	else
		kvm->protmem.unmaps = true;
	return r;
}

/*
 * Ends KVM_RUN by KVM_EXIT_PROTECTED_MEMORY: the guest has converted [@start, @end).
 */
void kvm_protmem_prepare_exit(struct kvm_vcpu *vcpu, gfn_t start, gfn_t end, bool private)
{
	struct kvm_run *run = vcpu->run;

	run->exit_reason = KVM_EXIT_PROTECTED_MEMORY;
	run->protected_memory.gpa = gfn_to_gpa(start);
	run->protected_memory.size = (end - start) << PAGE_SHIFT;
	run->protected_memory.attributes = private ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0;
	run->protected_memory.flags = 0;
}
