// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM protected memory: KVM's own access to guest memory, on behalf of the
 * instruction that a guest is executing.
 *
 * A memslot's userspace_addr says where userspace would like the memory to be,
 * and nothing ties it to the guest_memfd, so that it is not used here: an
 * access goes from gfn to index to page, and then to a shared page directly and
 * to a private one through the window, see unmapped_page_read().  There is no
 * way to get a pointer to guest memory out of this file.
 *
 * Private pages are for the vCPU that runs, for as long as KVM_RUN has taken
 * over its registers.  An ioctl that looks at guest memory with registers which
 * userspace has made up meets an error instead.
 */
#include <linux/kvm_host.h>
#include <linux/pagemap.h>
#include <linux/unmapped_pool.h>

#include "protected_memory.h"

struct protmem_access {
	enum { PROTMEM_READ, PROTMEM_WRITE, PROTMEM_CMPXCHG } op;
	unsigned int offset;
	unsigned int len;
	void *data;		/* READ: to, CMPXCHG: old value in and out */
	const void *from;	/* WRITE, CMPXCHG */
};

static bool protmem_access_allowed(struct kvm_vcpu *vcpu)
{
	return vcpu->protmem_in_run && vcpu == kvm_get_running_vcpu();
}

static int protmem_access_pool(struct page *page,
			       const struct protmem_access *a)
{
	switch (a->op) {
	case PROTMEM_READ:
		return unmapped_page_read(page, a->offset, a->data, a->len);
	case PROTMEM_WRITE:
		return unmapped_page_write(page, a->offset, a->from, a->len);
	case PROTMEM_CMPXCHG:
		return unmapped_page_cmpxchg(page, a->offset, a->data, a->from,
					     a->len);
	}
	return -EINVAL;
}

#define protmem_cmpxchg_mapped(type, ptr, a)				\
({									\
	const struct protmem_access *__a = (a);				\
	type __old = *(type *)__a->data;				\
	int __r = 0;							\
									\
	if (!try_cmpxchg((type *)(ptr), &__old, *(type *)__a->from)) {	\
		*(type *)__a->data = __old;				\
		__r = 1;						\
	}								\
	__r;								\
})

static int protmem_access_shared(struct page *page,
				 const struct protmem_access *a)
{
	void *addr = page_address(page) + a->offset;

	switch (a->op) {
	case PROTMEM_READ:
		/*
		 * By the window, too: it reads guest page table entries in one
		 * piece, and survives a memory error.
		 */
		return unmapped_page_read(page, a->offset, a->data, a->len);
	case PROTMEM_WRITE:
		memcpy(addr, a->from, a->len);
		return 0;
	case PROTMEM_CMPXCHG:
		switch (a->len) {
		case 1:
			return protmem_cmpxchg_mapped(u8, addr, a);
		case 2:
			return protmem_cmpxchg_mapped(u16, addr, a);
		case 4:
			return protmem_cmpxchg_mapped(u32, addr, a);
		case 8:
			return protmem_cmpxchg_mapped(u64, addr, a);
		}
	}
	return -EINVAL;
}

static int protmem_access(struct kvm_vcpu *vcpu, struct kvm_memory_slot *slot,
			  gfn_t gfn, const struct protmem_access *a)
{
	struct kvm_protmem_inode *pi;
	struct folio *folio;
	struct page *page;
	pgoff_t index;
	int r;

	if (WARN_ON_ONCE(a->offset + a->len > PAGE_SIZE))
		return -EFAULT;
	if (slot->flags & KVM_MEMSLOT_INVALID)
		return -EAGAIN;

	CLASS(gmem_get_file, file)(slot);
	if (!file)
		return -EFAULT;

	pi = kvm_protmem(file_inode(file));
	index = kvm_gmem_get_index(slot, gfn);

	/* What is read stays what it is until the access is over. */
	guard(rwsem_read)(&file_inode(file)->i_mapping->invalidate_lock);

	if (kvm_protmem_in_pool(pi, index)) {
		/* Private, it is out of this kernel's reach, and would be lost. */
		if (pi->in_place || !protmem_access_allowed(vcpu))
			return -EACCES;

		page = kvm_protmem_pool_page(pi, index);
		if (IS_ERR(page))
			return PTR_ERR(page);

		return protmem_access_pool(page, a);
	}

	kvm_protmem_fill_shared(pi, index, 0, ULONG_MAX);
	folio = kvm_protmem_shared_folio(pi, index);
	if (IS_ERR(folio))
		return PTR_ERR(folio);

	r = protmem_access_shared(folio_file_page(folio, index), a);
	folio_unlock(folio);
	folio_put(folio);

	return r;
}

/**
 * kvm_protmem_read - read from a slot with private pages for an instruction
 * @vcpu: the vCPU.
 * @slot: a slot with private pages that contains @gfn; kvm->srcu is held.
 * @gfn: the page.
 * @data: where to, kernel memory.
 * @offset: in bytes from the start of the page.
 * @len: in bytes, not beyond the end of the page.
 *
 * May sleep.
 *
 * Return: 0; -EAGAIN if the slot is being deleted; -EACCES if the page is
 * private and @vcpu is not in KVM_RUN; -EFAULT if the guest_memfd is gone;
 * -ENOMEM; -EHWPOISON.
 */
int kvm_protmem_read(struct kvm_vcpu *vcpu, struct kvm_memory_slot *slot,
		     gfn_t gfn, void *data, unsigned int offset,
		     unsigned int len)
{
	struct protmem_access a = {
		.op = PROTMEM_READ,
		.offset = offset,
		.len = len,
		.data = data,
	};

	return protmem_access(vcpu, slot, gfn, &a);
}

/**
 * kvm_protmem_write - write to a slot with private pages for an instruction
 * @vcpu: as for kvm_protmem_read().
 * @slot: likewise.
 * @gfn: likewise.
 * @data: what to write, kernel memory.
 * @offset: in bytes from the start of the page.
 * @len: in bytes, not beyond the end of the page.
 *
 * May sleep.
 *
 * Return: as for kvm_protmem_read(); after -EHWPOISON a part may be written.
 */
int kvm_protmem_write(struct kvm_vcpu *vcpu, struct kvm_memory_slot *slot,
		      gfn_t gfn, const void *data, unsigned int offset,
		      unsigned int len)
{
	struct protmem_access a = {
		.op = PROTMEM_WRITE,
		.offset = offset,
		.len = len,
		.from = data,
	};

	return protmem_access(vcpu, slot, gfn, &a);
}

/**
 * kvm_protmem_cmpxchg - compare and exchange in a slot with private pages
 * @vcpu: as for kvm_protmem_read().
 * @slot: likewise.
 * @gfn: likewise.
 * @offset: in bytes from the start of the page.  The operand is within the page
 *	and, if the CPU detects split locks, within a cache line.
 * @old: the value to compare with; what was found instead on a mismatch.
 * @new: the value to store.
 * @len: 1, 2, 4 or 8 bytes.
 *
 * Return: 0 if @new was stored, 1 if not because of a mismatch, or an error of
 * kvm_protmem_read().
 */
int kvm_protmem_cmpxchg(struct kvm_vcpu *vcpu, struct kvm_memory_slot *slot,
			gfn_t gfn, unsigned int offset, void *old,
			const void *new, unsigned int len)
{
	struct protmem_access a = {
		.op = PROTMEM_CMPXCHG,
		.offset = offset,
		.len = len,
		.data = old,
		.from = new,
	};

	return protmem_access(vcpu, slot, gfn, &a);
}
