/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * KVM protected memory: guest pages that the host has no mapping of.
 *
 * Everything the rest of KVM needs to know about it.  The state lives in
 * virt/kvm/protected_memory.c, the accesses on behalf of a guest instruction
 * in virt/kvm/protected_memory_access.c, what depends on the architecture in
 * arch/.../kvm/protected_memory.c.
 * See Documentation/virt/kvm/protected-memory.rst.
 */
#ifndef __KVM_PROTECTED_MEMORY_H
#define __KVM_PROTECTED_MEMORY_H

#include <linux/list.h>
#include <linux/types.h>

struct file;
struct inode;
struct kvm;
struct kvm_enable_cap;
struct kvm_memory_slot;
struct kvm_vcpu;
struct page;
struct vm_fault;

/**
 * struct kvm_protmem - protected memory, the part that belongs to a VM
 * @caps: the KVM_PROTMEM_* bits this VM enabled, 0 for every other VM.
 *	Written once under kvm->lock and slots_lock, before the first vCPU and
 *	the first memslot.
 * @exit_flags: KVM_PROTMEM_EXIT_* bits, fixed together with @caps.
 * @hides: a guest_memfd with GUEST_MEMFD_FLAG_NO_DIRECT_MAP has been created,
 *	for which @caps may be 0.  Set under kvm->lock.
 * @latched: the guest has made a page private.  Set under the exclusive
 *	invalidate_lock of the inode that holds the page, cleared only by
 *	wipe-and-reset, with all vCPUs locked out.
 * @inodes: the guest_memfd inodes with protected memory of this VM, by
 *	kvm_protmem_inode.entry; protected by slots_lock.
 */
struct kvm_protmem {
	u64 caps;
	u64 exit_flags;
	bool hides;
	bool latched;
	struct list_head inodes;
};

#ifdef CONFIG_KVM_PROTECTED_MEMORY

/* virt/kvm/protected_memory.c */
void kvm_protmem_init_vm(struct kvm *kvm);
u64 kvm_protmem_supported_caps(struct kvm *kvm);
u64 kvm_protmem_supported_attributes(struct kvm *kvm);
bool kvm_protmem_supports_no_direct_map(struct kvm *kvm);
u32 kvm_protmem_valid_slot_flags(struct kvm *kvm, u32 flags);
int kvm_protmem_enable_cap(struct kvm *kvm, const struct kvm_enable_cap *cap);
int kvm_protmem_reset(struct kvm *kvm);
int kvm_protmem_slot_leave(struct kvm *kvm, struct kvm_memory_slot *slot);
void kvm_protmem_slot_stay(struct kvm *kvm, struct kvm_memory_slot *slot);
int kvm_protmem_convert_gfns(struct kvm *kvm, gfn_t *gfn, gfn_t end,
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

/* arch/.../kvm/protected_memory.c */
u64 kvm_arch_protmem_supported_caps(struct kvm *kvm);
bool kvm_arch_protmem_can_hide(struct kvm *kvm);
int kvm_arch_protmem_enable(struct kvm *kvm);
void kvm_arch_protmem_reset_vcpu(struct kvm_vcpu *vcpu);

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
