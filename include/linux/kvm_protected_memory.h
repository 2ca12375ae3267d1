/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * KVM protected memory: guest memory which the kernel, and unless it is hidden
 * from the kernel alone also userspace, has no mapping of.
 *
 * What the rest of KVM calls, and what it calls in an architecture.  The state of pages
 * lives in virt/kvm/protected_memory.c, what changes it in protected_memory_convert.c,
 * what concerns the VM in protected_memory_vm.c, the accesses on behalf of a guest
 * instruction in protected_memory_access.c, all there; what depends on the
 * architecture in arch/.../kvm/protected_memory.c.  What has to look into struct
 * kvm or a memslot, such as kvm_has_private_pages(), is in <linux/kvm_host.h>,
 * which includes this; the statistics are there and in <linux/kvm_types.h>.
 * See Documentation/virt/kvm/protected-memory.rst.
 */
#ifndef __KVM_PROTECTED_MEMORY_H
#define __KVM_PROTECTED_MEMORY_H

#include <linux/list.h>
#include <linux/types.h>

struct inode;
struct kvm;
struct kvm_enable_cap;
struct kvm_memory_slot;
struct kvm_vcpu;

/**
 * struct kvm_protmem - protected memory, the part that belongs to a VM
 * @caps: the KVM_PROTMEM_* bits this VM enabled, 0 for every other VM.
 *	Written once under kvm->lock and slots_lock, before the first vCPU and
 *	the first memslot.
 * @exit_flags: KVM_PROTMEM_EXIT_* bits, fixed together with @caps.
 * @unmaps: memory of the VM may be off the direct map: @caps is not 0, or a
 *	guest_memfd with GUEST_MEMFD_FLAG_NO_DIRECT_MAP has been created, which
 *	needs no @caps.  Set under kvm->lock, never cleared.
 * @latched: the guest has made a page private, or, where memory is private from the
 *	start, it runs.  Set under the exclusive invalidate_lock of the inode that
 *	holds the page, or by kvm_protmem_latch(); cleared only by wipe-and-reset,
 *	with all vCPUs locked out.
 * @may_run: kvm_protmem_latch() has come to its end since the last reset.
 * @inodes: the guest_memfd inodes with protected memory of this VM, by
 *	kvm_protmem_inode.entry; protected by slots_lock.
 */
struct kvm_protmem {
	u64 caps;
	u64 exit_flags;
	bool unmaps;
	bool latched;
	bool may_run;
	struct list_head inodes;
};

#ifdef CONFIG_KVM_PROTECTED_MEMORY

/* virt/kvm/protected_memory_vm.c */
void kvm_protmem_init_vm(struct kvm *kvm);
u64 kvm_protmem_supported_caps(struct kvm *kvm);
u64 kvm_protmem_supported_attributes(struct kvm *kvm);
bool kvm_protmem_supports_no_direct_map(struct kvm *kvm);
u32 kvm_protmem_valid_slot_flags(struct kvm *kvm, u32 flags);
int kvm_protmem_enable_cap(struct kvm *kvm, const struct kvm_enable_cap *cap);
int kvm_protmem_reset(struct kvm *kvm);
int kvm_protmem_latch(struct kvm *kvm);
int kvm_protmem_slot_leave(struct kvm *kvm, struct kvm_memory_slot *slot);
void kvm_protmem_slot_stay(struct kvm *kvm, struct kvm_memory_slot *slot);
void kvm_protmem_prepare_exit(struct kvm_vcpu *vcpu, u64 start, u64 end, bool private);

/* virt/kvm/protected_memory_convert.c */
int kvm_protmem_convert_range(struct kvm_vcpu *vcpu, gfn_t *gfn, gfn_t end,
			      bool private);

/* virt/kvm/protected_memory_access.c */
int kvm_protmem_read(struct kvm_vcpu *vcpu, struct kvm_memory_slot *slot,
		     gfn_t gfn, void *data, unsigned int offset,
		     unsigned int len);
int kvm_protmem_write(struct kvm_vcpu *vcpu, struct kvm_memory_slot *slot,
		      gfn_t gfn, const void *data, unsigned int offset,
		      unsigned int len);
int kvm_protmem_cmpxchg(struct kvm_vcpu *vcpu, struct kvm_memory_slot *slot,
			gfn_t gfn, unsigned int offset, void *old,
			const void *new, unsigned int len);

/* virt/kvm/protected_memory_in_place.c */
int kvm_protmem_map_in_place(struct kvm_vcpu *vcpu, struct kvm_memory_slot *slot,
			     gfn_t gfn);

/*
 * arch/.../kvm/protected_memory.c, for an architecture that selects
 * HAVE_KVM_ARCH_PROTECTED_MEMORY.  What it has to do besides is listed in
 * Documentation/virt/kvm/protected-memory.rst, "Adding an architecture".
 */

/*
 * kvm_arch_protmem_supported_caps - what KVM_ENABLE_CAP may ask for
 *
 * @kvm is the VM, or NULL for VMs of the default type.  Called without locks.
 * Returns a mask of KVM_PROTMEM_*; 0, with a line in the log that says why, if
 * there is nothing.
 */
u64 kvm_arch_protmem_supported_caps(struct kvm *kvm);
/*
 * kvm_arch_protmem_can_hide - can the VM have memory off the direct map?
 *
 * @kvm as above.  When a guest_memfd is created kvm->lock is held, and what
 * makes the answer "no" must not come later, if it is "yes".
 */
bool kvm_arch_protmem_can_hide(struct kvm *kvm);
/*
 * kvm_arch_protmem_enable - the VM gets protected memory
 *
 * Called with kvm->lock and slots_lock held and @kvm->protmem.caps set, which
 * the caller takes back on an error.  There is no vCPU and no memslot.  Returns
 * 0, or -EINVAL if @kvm has something already that does not go with it.
 */
int kvm_arch_protmem_enable(struct kvm *kvm);
/*
 * kvm_arch_protmem_reset_vcpu - forget what @vcpu knows of the guest's memory
 *
 * Emulation that is half done, pending I/O, buffers.  Called with kvm->lock and
 * @vcpu->mutex held, after the memory has been wiped.
 */
void kvm_arch_protmem_reset_vcpu(struct kvm_vcpu *vcpu);

/*
 * kvm_arch_protmem_split - map a range by small entries of the second stage
 *
 * A page of it is about to change its state, and the guest would have to fault in
 * the others one by one.  Best effort, and nothing depends on it.  Called with
 * kvm->srcu and the invalidate_lock held, not mmu_lock; may sleep.
 */
void kvm_arch_protmem_split(struct kvm *kvm, struct kvm_memory_slot *slot,
			    gfn_t start, gfn_t end);

/*
 * For an architecture that selects HAVE_KVM_PROTECTED_MEMORY_IN_PLACE.  All of them are
 * called with the invalidate_lock of the guest_memfd inode held.
 */

/*
 * kvm_arch_protmem_give - give a page to the guest of the vCPU that runs
 *
 * If the hypervisor has a page for @gfn already nothing is done.  Otherwise it is
 * asked to take the page @pfn from this kernel, and the inode is held by ihold() until
 * the hypervisor has given it back.  Returns 0, or an error of the hypervisor's.
 */
int kvm_arch_protmem_give(struct kvm_vcpu *vcpu, gfn_t gfn, kvm_pfn_t pfn,
			  struct inode *inode);
/*
 * kvm_arch_protmem_given - does the hypervisor have a page for @gfn?
 *
 * It can't get or lose one meanwhile if the invalidate_lock is held exclusive.
 */
bool kvm_arch_protmem_given(struct kvm *kvm, gfn_t gfn);
/*
 * kvm_arch_protmem_complete - have the hypervisor do what the guest has asked for
 *
 * That is to share or unshare a page, for the vCPU that runs, which the hypervisor
 * has seen asking.  What is as wanted already, or not there, is none of its errors.
 * Returns 0, or -EINVAL if the guest can't have it.
 */
int kvm_arch_protmem_complete(struct kvm *kvm);

#else

static inline void kvm_protmem_init_vm(struct kvm *kvm)
{
}

static inline u64 kvm_protmem_supported_caps(struct kvm *kvm)
{
	return 0;
}

static inline u64 kvm_protmem_supported_attributes(struct kvm *kvm)
{
	return 0;
}

static inline bool kvm_protmem_supports_no_direct_map(struct kvm *kvm)
{
	return false;
}

static inline u32 kvm_protmem_valid_slot_flags(struct kvm *kvm, u32 flags)
{
	return 0;
}

static inline int kvm_protmem_enable_cap(struct kvm *kvm,
					 const struct kvm_enable_cap *cap)
{
	return -EINVAL;
}

static inline int kvm_protmem_reset(struct kvm *kvm)
{
	return -ENOTTY;
}

static inline int kvm_protmem_slot_leave(struct kvm *kvm,
					 struct kvm_memory_slot *slot)
{
	return 0;
}

static inline void kvm_protmem_slot_stay(struct kvm *kvm,
					 struct kvm_memory_slot *slot)
{
}

static inline int kvm_protmem_read(struct kvm_vcpu *vcpu,
				   struct kvm_memory_slot *slot, gfn_t gfn,
				   void *data, unsigned int offset,
				   unsigned int len)
{
	return -EFAULT;
}

static inline int kvm_protmem_write(struct kvm_vcpu *vcpu,
				    struct kvm_memory_slot *slot, gfn_t gfn,
				    const void *data, unsigned int offset,
				    unsigned int len)
{
	return -EFAULT;
}

static inline int kvm_protmem_cmpxchg(struct kvm_vcpu *vcpu,
				      struct kvm_memory_slot *slot, gfn_t gfn,
				      unsigned int offset, void *old,
				      const void *new, unsigned int len)
{
	return -EFAULT;
}

#endif /* CONFIG_KVM_PROTECTED_MEMORY */
#endif /* __KVM_PROTECTED_MEMORY_H */
