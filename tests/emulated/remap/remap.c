// SPDX-License-Identifier: GPL-2.0-only
/*
 * An attack on guests by the host's kernel: /proc/remap is the physical memory of the
 * host, read by a mapping that this module makes itself.  That a page is in no page
 * table of the kernel's, of which /proc/kcore shows the direct map, is no help against
 * it; a hypervisor that keeps the kernel out of a page is.
 *
 * Part of the tests; made for no other use, and of no good otherwise.
 */
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>

#define NR	256

struct remap {
	struct page *page[NR];
	u8 copy[PAGE_SIZE];
};

/* All of it, whole pages, or nothing: EFAULT if there is no memory, or it can't be read. */
static ssize_t remap_read(struct file *file, char __user *buf, size_t len, loff_t *pos)
{
	unsigned long pfn = PHYS_PFN(*pos), nr = min(len >> PAGE_SHIFT, NR), i;
	struct remap *r __free(kfree) = NULL;
	ssize_t ret = -EFAULT;
	void *va;

	if (!nr || !PAGE_ALIGNED(*pos))
		return -EINVAL;
	r = kmalloc(sizeof(*r), GFP_KERNEL);
	if (!r)
		return -ENOMEM;
	for (i = 0; i < nr; i++) {
		if (!pfn_valid(pfn + i))
			return -EFAULT;
		r->page[i] = pfn_to_page(pfn + i);
	}

	va = vmap(r->page, nr, VM_MAP, PAGE_KERNEL);
	if (!va)
		return -ENOMEM;
	for (i = 0; i < nr; i++) {
		if (copy_from_kernel_nofault(r->copy, va + i * PAGE_SIZE, PAGE_SIZE) ||
		    copy_to_user(buf + i * PAGE_SIZE, r->copy, PAGE_SIZE))
			goto out;
	}
	ret = nr * PAGE_SIZE;
	*pos += ret;
out:
	vunmap(va);
	return ret;
}

static const struct proc_ops remap_ops = {
	.proc_read	= remap_read,
	.proc_lseek	= default_llseek,
};

static int __init remap_init(void)
{
	return proc_create("remap", 0400, NULL, &remap_ops) ? 0 : -ENOMEM;
}

static void __exit remap_exit(void)
{
	remove_proc_entry("remap", NULL);
}

module_init(remap_init);
module_exit(remap_exit);
MODULE_DESCRIPTION("Read physical memory by a mapping of its own");
MODULE_LICENSE("GPL");
