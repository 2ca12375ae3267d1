// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM protected memory on a hypervisor that keeps this kernel out of private pages:
 * pages change their state where they are.
 *
 * All pages of such an inode are of the pool, so that this kernel has no mapping of
 * them which it could use by mistake; what it makes a mapping of on purpose, the
 * hypervisor takes away.  Userspace maps shared pages like hidden ones, without
 * references or pins, so that a page can be unshared at any time.
 *
 * The hypervisor gets a page when the guest first touches it, and keeps it until the
 * VM is torn down.  It is the authority on who may access it; the state here says what
 * userspace may map, and follows it.  Under the exclusive invalidate_lock, and only
 * then, both of them change, so that for those who hold the lock
 *
 *  - a page that the hypervisor keeps for the guest alone is private here;
 *  - a page that is shared here is shared there, or the hypervisor does not have it.
 *
 * Otherwise an access of userspace's to its own mapping would make the hypervisor
 * take the page from the guest.
 *
 * What the guest touches is its own.  If it is still shared then it turns private, with
 * what userspace has put there.
 */
#include <linux/kvm_host.h>
#include <linux/pagemap.h>
#include <linux/unmapped_pool.h>

#include "protected_memory.h"

/* What is made private under one hold of the lock, in pages. */
#define PROTMEM_IN_PLACE_SPAN	(SZ_64M >> PAGE_SHIFT)

static int protmem_store_in_place(struct kvm_protmem_inode *pi, pgoff_t start,
				  pgoff_t end, bool private)
{
	int r;

	/* Faults of userspace's hold the lock until their entry is there. */
	if (private)
		unmap_mapping_pages(pi->inode->i_mapping, start, end - start, false);

	r = kvm_protmem_store_state(pi, start, end, private);
	if (!r)
		kvm_protmem_converted(pi, start, end, 0, private);
	return r;
}

static int protmem_give(struct kvm_vcpu *vcpu, struct kvm_protmem_inode *pi,
			pgoff_t index, gfn_t gfn)
{
	struct page *page = kvm_protmem_pool_page(pi, index);

	if (IS_ERR(page))
		return PTR_ERR(page);

	return kvm_arch_protmem_give(vcpu, gfn, page_to_pfn(page), pi->inode);
}

/*
 * The guest of the vCPU that runs has asked for @index to be shared.  What it has not
 * touched yet the hypervisor gets now, before it can be asked; userspace's entry, if
 * there is one, is made again afterwards.
 */
static int protmem_complete_share(struct kvm_protmem_inode *pi, pgoff_t index)
{
	bool private = kvm_protmem_all_private(pi, index, index);
	gfn_t gfn = kvm_protmem_gfn(pi, index);
	struct kvm *kvm = pi->kvm;
	bool given;
	int r;

	given = kvm_arch_protmem_given(kvm, gfn);
	if (!given) {
		if (!private)
			unmap_mapping_pages(pi->inode->i_mapping, index, 1, false);
		r = protmem_give(kvm_get_running_vcpu(), pi, index, gfn);
		if (r)
			return r;
	}

	r = kvm_arch_protmem_complete(kvm);
	if (!r)
		return private ? protmem_store_in_place(pi, index, index + 1, false) : 0;

	/* It is the guest's alone. */
	if (!given && !private && protmem_store_in_place(pi, index, index + 1, true))
		kvm_vm_dead(kvm);
	return r;
}

/* The same for a page that is to be private again. */
static int protmem_complete_unshare(struct kvm_protmem_inode *pi, pgoff_t index)
{
	int r = 0;

	if (!kvm_protmem_all_private(pi, index, index))
		r = protmem_store_in_place(pi, index, index + 1, true);

	return r ?: kvm_arch_protmem_complete(pi->kvm);
}

/**
 * kvm_protmem_convert_in_place - change the state of pages without moving them
 * @pi: the inode, which is @in_place.
 * @pos: the first page, moved to where it ended.
 * @end: the end of the range, exclusive.
 * @make_private: the new state.
 * @slot: the slot a guest asked by; NULL for userspace.
 *
 * A guest asks for one page.  An error leaves what it can do again.  May sleep.
 *
 * Return: 0, perhaps after a part; -EAGAIN if @slot is just being deleted; -EPERM if
 * the latch is closed; -EINVAL if the hypervisor refuses; or -ENOMEM.
 */
int kvm_protmem_convert_in_place(struct kvm_protmem_inode *pi, pgoff_t *pos,
				 pgoff_t end, bool make_private,
				 struct kvm_memory_slot *slot)
{
	pgoff_t start = *pos;
	bool private;
	int r;

	guard(rwsem_write)(&pi->inode->i_mapping->invalidate_lock);

	if (slot) {
		if (slot->gmem.leaving)
			return -EAGAIN;

		r = make_private ? protmem_complete_unshare(pi, start) :
				   protmem_complete_share(pi, start);
		if (!r)
			*pos = start + 1;
		return r;
	}

	end = kvm_protmem_run_end(pi, start, end, &private);
	if (private != make_private) {
		if (make_private)
			end = min(end, start + PROTMEM_IN_PLACE_SPAN);
		r = make_private ? 0 : kvm_protmem_may_drop(pi, start, end, &start);
		if (!r)
			r = protmem_store_in_place(pi, start, end, make_private);
		if (r)
			return r;
	}
	*pos = end;
	return 0;
}

/*
 * May userspace drop what is in [@start, *@end)?  Not once the guest has run: the
 * hypervisor may have the pages, the shared ones, too.  The caller holds the
 * invalidate_lock exclusive.  Returns 0, with *@end moved to the first page that is
 * there; or -EBUSY if that is @start.
 */
int kvm_protmem_may_free_in_place(struct kvm_protmem_inode *pi, pgoff_t start,
				  pgoff_t *end)
{
	unsigned long at = start;

	if (!READ_ONCE(pi->kvm->protmem.latched) || start >= *end ||
	    !xa_find(&pi->pages, &at, *end - 1, XA_PRESENT))
		return 0;
	if (at == start)
		return -EBUSY;

	*end = at;
	return 0;
}

/**
 * kvm_protmem_map_in_place - the hypervisor needs a page for a gfn
 * @vcpu: the vCPU that runs, the guest of which has touched @gfn, or asks to share it.
 * @slot: the slot of @gfn, with private pages.
 * @gfn: the gfn.
 *
 * The caller holds kvm->srcu, and the latch is closed.  May sleep.
 *
 * Return: 0, also if there is a page already; -EFAULT or -EIO if @slot has no
 * backing any more; -ENOMEM; -EHWPOISON; or an error of the hypervisor's.
 */
int kvm_protmem_map_in_place(struct kvm_vcpu *vcpu, struct kvm_memory_slot *slot,
			     gfn_t gfn)
{
	pgoff_t index = kvm_gmem_get_index(slot, gfn);
	struct kvm_protmem_inode *pi;
	int r;

	CLASS(gmem_get_file, file)(slot);
	if (!file)
		return -EFAULT;

	pi = kvm_protmem(file_inode(file));

	scoped_guard(rwsem_read, &pi->inode->i_mapping->invalidate_lock) {
		r = kvm_protmem_check_slot(file, slot, index);
		if (r)
			return r;
		if (kvm_protmem_all_private(pi, index, index))
			return protmem_give(vcpu, pi, index, gfn);
	}

	guard(rwsem_write)(&pi->inode->i_mapping->invalidate_lock);

	r = kvm_protmem_check_slot(file, slot, index);
	if (r)
		return r;
	if (!kvm_protmem_all_private(pi, index, index)) {
		/* Another vCPU was faster, and has shared it. */
		if (kvm_arch_protmem_given(vcpu->kvm, gfn))
			return 0;
		r = protmem_store_in_place(pi, index, index + 1, true);
		if (r)
			return r;
	}
	return protmem_give(vcpu, pi, index, gfn);
}
