/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Protected memory, what guest_memfd and the files virt/kvm/protected_memory*.c share.
 * Nothing else may include this.
 */
#ifndef __KVM_PROTECTED_MEMORY_INTERNAL_H
#define __KVM_PROTECTED_MEMORY_INTERNAL_H

#include <linux/kvm_host.h>
#include <linux/maple_tree.h>
#include <linux/mutex.h>
#include <linux/sizes.h>
#include <linux/spinlock.h>
#include <linux/unmapped_pool.h>
#include <linux/xarray.h>

#include "guest_memfd.h"

/**
 * struct kvm_protmem_inode - protected memory, the part of a guest_memfd inode
 * @inode: the guest_memfd inode, which owns this.
 * @kvm: the one VM this inode belongs to, NULL once its file is released.
 * @pool: where the private pages come from.
 * @state: ranges of indices that are private; what is not in it is shared.
 * @pages: the pages of @pool by index: what is private, or with @hidden
 *	everything, whatever @state says.  An index that is to be in it but is
 *	not is empty.  The page cache holds the shared folios and nothing else.
 * @shared_at: by gfn >> UNMAPPED_BLOCK_ORDER, when a populated page of the block was
 *	last shared while others stayed private, in jiffies.  A hint: an entry may be
 *	missing, and one that is old goes when the block is next faulted in.
 * @gfns: ranges of indices that have ever been bound, with the distance of
 *	their gfns: kvm_protmem_gfn().  Ranges are added and never removed.
 * @bound: a slot has been bound, @slot_flags are fixed.
 * @slot_flags: which of KVM_MEM_UNMAP_DIRECT and KVM_MEM_UNMAP_USER its slots
 *	have.
 * @convertible: both; pages have a state.
 * @hidden: KVM_MEM_UNMAP_DIRECT alone, or GUEST_MEMFD_FLAG_NO_DIRECT_MAP: no
 *	page has a kernel alias, but userspace maps them.
 * @may_hide: may be, or become, @hidden; fixed when the inode is made.
 * @in_place: @hidden, but what is private userspace can't map: a hypervisor below
 *	KVM knows the states, too, and pages stay where they are when theirs changes
 *	(protected_memory_in_place.c); fixed when the inode is made.
 * @nr_pool: how many pages @pages has.
 * @fill_lock: held by who populates a block as a whole, one of 2^n by its gfn;
 *	nothing is protected by it, but none is to fill what another one does.
 * @acct_lock: protects @acct_bytes, innermost.
 * @acct_bytes: what of @pool the statistics of @kvm contain.
 * @entry: in kvm_protmem.inodes, protected by slots_lock.
 *
 * The inode's invalidate_lock is held shared to read @state and @gfns and to add
 * to @pages, exclusive to change anything else.  Without it: @inode, @pool, @may_hide
 * and @in_place don't change, @kvm doesn't as long as the file is held, @shared_at is a
 * hint with its own lock, @nr_pool is atomic, @acct_bytes and @entry have locks of
 * their own, and @convertible is read by those who can live with the past.
 */
struct kvm_protmem_inode {
	struct inode *inode;
	struct kvm *kvm;
	struct unmapped_pool *pool;
	struct maple_tree state;
	struct xarray pages;
	struct xarray shared_at;
	struct maple_tree gfns;
	u32 slot_flags;
	bool bound;
	bool convertible;
	bool hidden;
	bool may_hide;
	bool in_place;
	struct mutex fill_lock[16];
	atomic_long_t nr_pool;
	spinlock_t acct_lock;	/* acct_bytes */
	u64 acct_bytes;
	struct list_head entry;
};

#ifdef CONFIG_KVM_PROTECTED_MEMORY

/* The gfns for which the pool can set a block aside. */
#define PROTMEM_BLOCK_PAGES	((pgoff_t)UNMAPPED_BLOCK_PAGES)

/*
 * What is dropped under one hold of the lock, in pages of address space; only
 * populated pages cost anything.
 */
#define PROTMEM_DROP_SPAN	(SZ_64M >> PAGE_SHIFT)

#define PROTMEM_SLOT_FLAGS	(KVM_MEM_UNMAP_DIRECT | KVM_MEM_UNMAP_USER)

/*
 * Is @index backed by @pages, and not by the page cache, because it is private
 * or because all is hidden?  The caller holds the invalidate_lock.
 */
static inline bool kvm_protmem_in_pool(struct kvm_protmem_inode *pi,
					  pgoff_t index)
{
	MA_STATE(mas, &pi->state, index, index);

	lockdep_assert_held(&pi->inode->i_mapping->invalidate_lock);

	return pi->hidden || mas_walk(&mas);
}

/* protected_memory.c, for guest_memfd */
int kvm_protmem_create(struct inode *inode, struct kvm *kvm);
void kvm_protmem_attach(struct inode *inode);
void kvm_protmem_release(struct inode *inode);
void kvm_protmem_destroy(struct inode *inode);
int kvm_protmem_check_bind(struct inode *inode, struct kvm_memory_slot *slot);
int kvm_protmem_bind(struct inode *inode, struct kvm_memory_slot *slot);
int kvm_protmem_get_pfn(struct file *file, struct kvm_memory_slot *slot,
			gfn_t gfn, kvm_pfn_t *pfn, struct page **page,
			int *max_order);
void kvm_protmem_mmap(struct inode *inode, struct vm_area_struct *vma);
vm_fault_t kvm_protmem_fault_user_mapping(struct vm_fault *vmf);

/* protected_memory.c, for the other files; the comments are there */
bool kvm_protmem_all_private(struct kvm_protmem_inode *pi, pgoff_t first,
			     pgoff_t last);
int kvm_protmem_check_slot(struct file *file, struct kvm_memory_slot *slot, pgoff_t index);
struct page *kvm_protmem_pool_page(struct kvm_protmem_inode *pi,
				      pgoff_t index);
bool kvm_protmem_consecutive(struct xarray *xa, pgoff_t first, struct page *page);
void kvm_protmem_fill_shared(struct kvm_protmem_inode *pi, pgoff_t index,
			     pgoff_t start, pgoff_t end);
struct folio *kvm_protmem_shared_folio(struct kvm_protmem_inode *pi,
				       pgoff_t index);
int kvm_protmem_may_drop(struct kvm_protmem_inode *pi, pgoff_t start,
			 pgoff_t end, pgoff_t *first);
pgoff_t kvm_protmem_run_end(struct kvm_protmem_inode *pi, pgoff_t start,
			    pgoff_t end, bool *private);
gfn_t kvm_protmem_gfn(struct kvm_protmem_inode *pi, pgoff_t index);
bool kvm_protmem_block_uniform(struct kvm_protmem_inode *pi, pgoff_t index,
			       gfn_t gfn, pgoff_t start, pgoff_t end);
struct page *kvm_protmem_alloc_page(struct kvm_protmem_inode *pi,
				    pgoff_t index, gfn_t gfn, bool uniform);
int kvm_protmem_store_state(struct kvm_protmem_inode *pi, pgoff_t start,
			    pgoff_t end, bool private);
void kvm_protmem_drop_shared(struct kvm_protmem_inode *pi, pgoff_t start,
			     pgoff_t end);
void kvm_protmem_drop_pool(struct kvm_protmem_inode *pi, pgoff_t start,
			   pgoff_t end);
void kvm_protmem_account_blocks(struct kvm_protmem_inode *pi);
void kvm_protmem_account_pool(struct kvm_protmem_inode *pi, long nr);
void kvm_protmem_account_shared(struct kvm_protmem_inode *pi, long nr);

/* protected_memory_convert.c, for protected_memory_in_place.c */
void kvm_protmem_converted(struct kvm_protmem_inode *pi, pgoff_t start,
			   pgoff_t end, long copied, bool private);

/* protected_memory_in_place.c; the comments are there */
int kvm_protmem_convert_in_place(struct kvm_protmem_inode *pi, pgoff_t *pos,
				 pgoff_t end, bool make_private,
				 struct kvm_memory_slot *slot);
int kvm_protmem_may_free_in_place(struct kvm_protmem_inode *pi, pgoff_t start,
				  pgoff_t *end);

/* Without what calls them the two are never linked. */
static inline bool kvm_protmem_converts_in_place(struct kvm_protmem_inode *pi)
{
	return IS_ENABLED(CONFIG_HAVE_KVM_PROTECTED_MEMORY_IN_PLACE) && pi->in_place;
}

/* protected_memory_convert.c, for guest_memfd */
long kvm_protmem_punch_hole(struct inode *inode, pgoff_t start, pgoff_t end);
long kvm_protmem_allocate(struct inode *inode, pgoff_t start, pgoff_t end);
long kvm_protmem_ioctl(struct file *file, unsigned int ioctl,
		       unsigned long arg);

static inline struct kvm_protmem_inode *kvm_protmem(struct inode *inode)
{
	return GMEM_I(inode)->protmem;
}

#else

/* For struct file_operations. */
#define kvm_protmem_ioctl	NULL

static inline int kvm_protmem_create(struct inode *inode, struct kvm *kvm)
{
	return 0;
}

static inline void kvm_protmem_attach(struct inode *inode) { }
static inline void kvm_protmem_release(struct inode *inode) { }
static inline void kvm_protmem_destroy(struct inode *inode) { }

static inline int kvm_protmem_check_bind(struct inode *inode,
					 struct kvm_memory_slot *slot)
{
	return 0;
}

static inline int kvm_protmem_bind(struct inode *inode,
				   struct kvm_memory_slot *slot)
{
	return 0;
}

static inline int kvm_protmem_get_pfn(struct file *file,
				      struct kvm_memory_slot *slot, gfn_t gfn,
				      kvm_pfn_t *pfn, struct page **page,
				      int *max_order)
{
	return -EIO;
}

static inline void kvm_protmem_mmap(struct inode *inode,
				    struct vm_area_struct *vma)
{
}

static inline vm_fault_t kvm_protmem_fault_user_mapping(struct vm_fault *vmf)
{
	return VM_FAULT_SIGBUS;
}

static inline long kvm_protmem_punch_hole(struct inode *inode, pgoff_t start,
					  pgoff_t end)
{
	return -EIO;
}

static inline long kvm_protmem_allocate(struct inode *inode, pgoff_t start,
					pgoff_t end)
{
	return -EIO;
}

static inline struct kvm_protmem_inode *kvm_protmem(struct inode *inode)
{
	return NULL;
}

#endif /* CONFIG_KVM_PROTECTED_MEMORY */
#endif /* __KVM_PROTECTED_MEMORY_INTERNAL_H */
