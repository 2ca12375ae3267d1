// SPDX-License-Identifier: GPL-2.0-only
/*
 * Linux as a guest with KVM protected memory
 *
 * This file makes the guest's RAM private and shares pages of it with the host,
 * by hypercall.  It may touch the page state that the host keeps, cc_vendor and
 * the callbacks in x86_platform.guest, and nothing else: private and shared
 * memory look the same to the CPU, so there are no page tables to change, no
 * TLBs or caches to flush and no C-bit.  A conversion keeps the contents, can be
 * repeated and skips what already is as wanted.
 *
 * What is private and what is not:
 *
 *  - All that the e820 table calls RAM is private before the first secret is in
 *    it.  It is rounded inwards to whole pages; Linux doesn't use the rest.
 *  - What the firmware keeps for itself (ACPI tables, EBDA, reserved ranges)
 *    stays as it is.  The VMM has written it, there is nothing to hide.
 *  - Shared are .bss..decrypted, the per-CPU areas that the host writes to, and
 *    what set_memory_decrypted() is called for: bounce buffers, coherent DMA.
 *
 * The host enforces it: KVM refuses to let the VMM share a page once the guest
 * has made its first page private.  The VMM still owns the registers, though.
 */

#define pr_fmt(fmt) "kvm-guest: " fmt

#include <linux/cc_platform.h>
#include <linux/init.h>
#include <linux/kexec.h>
#include <linux/kvm_para.h>
#include <linux/mem_encrypt.h>
#include <linux/memory.h>
#include <linux/mm.h>
#include <linux/notifier.h>
#include <linux/printk.h>
#include <linux/string.h>
#include <linux/suspend.h>

#include <asm/asm.h>
#include <asm/coco.h>
#include <asm/e820/api.h>
#include <asm/kvm_protected_guest.h>
#include <asm/sections.h>
#include <asm/set_memory.h>
#include <asm/x86_init.h>

static bool conversion_failed __initdata;
static bool protection_required __initdata;

/*
 * Whoever passes the parameter at all expects protection: it must not get lost
 * because its value is misspelt.
 */
static int __init parse_kvm_protected_guest(char *arg)
{
	if (!arg || strcmp(arg, "require"))
		pr_warn("kvm_protected_guest=%s taken for kvm_protected_guest=require\n",
			arg ?: "");

	protection_required = true;

	return 0;
}
early_param("kvm_protected_guest", parse_kvm_protected_guest);

/*
 * kvm_hypercall3() depends on alternatives, which are applied long after the
 * first use here.  Choose the instruction as they will do.
 *
 * The other vendor's instruction raises #UD if KVM doesn't patch it, and in
 * private memory it can't.  That happens to a guest whose CPU model is not of
 * the host's vendor: fail rather than crash.
 */
#define map_gpa_range_asm(instruction)					\
	asm volatile("1:	" instruction "\n"				\
		     "2:\n"						\
		     _ASM_EXTABLE_TYPE_REG(1b, 2b, EX_TYPE_EFAULT_REG, %[ret]) \
		     : [ret] "=a" (ret)					\
		     : "a" (KVM_HC_MAP_GPA_RANGE), "b" (gpa),		\
		       "c" (npages), "d" (attrs)			\
		     : "memory")

static long map_gpa_range_hypercall(unsigned long gpa, unsigned long npages,
				    unsigned long attrs)
{
	long ret;

	if (boot_cpu_data.x86_vendor == X86_VENDOR_AMD ||
	    boot_cpu_data.x86_vendor == X86_VENDOR_HYGON)
		map_gpa_range_asm("vmmcall");
	else
		map_gpa_range_asm("vmcall");

	return ret;
}

/*
 * Convert [@start, @end), which must be page aligned.  May be called at any
 * time, in any context and on several CPUs at once: the host serializes.
 *
 * There is nothing to retry: if the host has to stop in the middle of a range,
 * it has the vCPU execute the hypercall again, and that goes on where it
 * stopped.  An error means that it does not want to, at all.
 */
static int convert_range(phys_addr_t start, phys_addr_t end, bool private)
{
	long ret;

	if (start >= end)
		return 0;

	ret = map_gpa_range_hypercall(start, (end - start) >> PAGE_SHIFT,
				      KVM_MAP_GPA_RANGE_ENC_STAT(private) |
				      KVM_MAP_GPA_RANGE_PAGE_SZ_4K);
	if (ret) {
		phys_addr_t last = end - 1;

		pr_err("failed to make [mem %pa-%pa] %s: %ld\n", &start, &last,
		       private ? "private" : "shared", ret);
		return -EIO;
	}

	return 0;
}

/* As convert_range(), but the memory may be mapped anywhere in the kernel. */
static int convert_virt(unsigned long vaddr, unsigned long npages, bool private)
{
	unsigned long i;
	phys_addr_t pa;
	int ret;

	if (!is_vmalloc_or_module_addr((void *)vaddr)) {
		pa = __pa(vaddr);

		/* vgacon: the legacy VGA window is not RAM, never private. */
		if (pa >= ISA_START_ADDRESS && pa < ISA_END_ADDRESS)
			return 0;

		return convert_range(pa, pa + (npages << PAGE_SHIFT), private);
	}

	for (i = 0; i < npages; i++) {
		pa = slow_virt_to_phys((void *)(vaddr + (i << PAGE_SHIFT)));
		ret = convert_range(pa, pa + PAGE_SIZE, private);
		if (ret)
			return ret;
	}

	return 0;
}

/* Make all RAM private. */
static int protect_all_ram(void)
{
	int ret = 0, err, i;

	for (i = 0; i < e820_table->nr_entries; i++) {
		struct e820_entry *entry = &e820_table->entries[i];

		if (entry->type != E820_TYPE_RAM)
			continue;

		err = convert_range(PAGE_ALIGN(entry->addr),
				    PAGE_ALIGN_DOWN(entry->addr + entry->size),
				    true);
		if (!ret)
			ret = err;
	}

	/*
	 * With a table that was tinkered with on the command line, the kernel
	 * itself may not be in what is called RAM.  setup_arch() repairs that
	 * later.
	 */
	err = convert_range(__pa_symbol(_text), __pa_symbol(_end), true);

	return ret ?: err;
}

/*
 * Share what the kernel image has for the host.  The end of the section may be
 * unused, only there to fill a large page: it becomes ordinary memory and must
 * stay private.
 */
static int __init share_bss_decrypted(void)
{
	return convert_range(__pa_symbol(__start_bss_decrypted),
			     __pa_symbol(__start_bss_decrypted_unused), false);
}

/*
 * Both directions are done by set_memory_{en,de}crypted() at its end.  It
 * doesn't matter when: nothing changes for the guest's own accesses.
 */
static int enc_status_change_finish(unsigned long vaddr, int npages, bool enc)
{
	return convert_virt(vaddr, npages, enc);
}

/*
 * A new kernel, its initrd and what user space has put into that must not be
 * copied to pages that the host can see.  Which pages these are is not known
 * here, and need not be: all RAM is made private again, as at boot.
 *
 * First stop conversions that would share pages anew, while all CPUs still run
 * and can finish the one they are in.
 */
static void kexec_begin(void)
{
	/*
	 * Nothing to do for a kernel that captures a crash: it runs in memory
	 * that was reserved and so never shared, and the devices, which nobody
	 * has stopped, go on using what is shared with them.
	 */
	if (!kexec_in_progress)
		return;

	if (!set_memory_enc_stop_conversion())
		pr_warn("failed to stop shared<->private conversions\n");
}

/*
 * The last step before the jump: devices are shut down, the paravirtual areas
 * are disabled (kvm_pv_reboot_notify()) and this is the only CPU that runs.
 */
static void kexec_finish(void)
{
	if (!kexec_in_progress)
		return;

	if (protect_all_ram())
		panic("kexec: memory is still shared with the host\n");
}

/*
 * Share memory with the host for good, together with all else in its pages.
 * For early boot, before set_memory_decrypted() can be used.
 */
void __init kvm_protected_guest_share(void *ptr, size_t size)
{
	unsigned long start = (unsigned long)ptr & PAGE_MASK;
	unsigned long end = PAGE_ALIGN((unsigned long)ptr + size);

	/* Not fatal: the host refuses to use it, and has logged why here. */
	convert_virt(start, (end - start) >> PAGE_SHIFT, false);
}

#ifdef CONFIG_HIBERNATION
/*
 * A hibernated kernel is loaded over the memory of the one that resumes it.
 * The host would see the private pages of the one where the other had shared
 * pages, and vice versa the devices would lose theirs.  Refuse both directions.
 */
static int hibernation_notify(struct notifier_block *nb, unsigned long action,
			      void *unused)
{
	switch (action) {
	case PM_HIBERNATION_PREPARE:
	case PM_RESTORE_PREPARE:
		pr_warn_once("hibernation is not possible with protected memory\n");
		return notifier_from_errno(-EOPNOTSUPP);
	default:
		return NOTIFY_DONE;
	}
}

static struct notifier_block hibernation_nb = {
	.notifier_call = hibernation_notify,
};
#endif

#ifdef CONFIG_MEMORY_HOTPLUG
/* Memory that is added while the guest runs is used when private only. */
static int memory_hotplug_notify(struct notifier_block *nb,
				 unsigned long action, void *data)
{
	struct memory_notify *mem = data;

	if (action != MEM_GOING_ONLINE)
		return NOTIFY_DONE;

	return notifier_from_errno(convert_range(PFN_PHYS(mem->start_pfn),
						 PFN_PHYS(mem->start_pfn + mem->nr_pages),
						 true));
}

static struct notifier_block memory_hotplug_nb = {
	.notifier_call = memory_hotplug_notify,
};
#endif

static int __init register_notifiers(void)
{
	if (cc_vendor != CC_VENDOR_KVM)
		return 0;

#ifdef CONFIG_HIBERNATION
	register_pm_notifier(&hibernation_nb);
#endif
#ifdef CONFIG_MEMORY_HOTPLUG
	register_memory_notifier(&memory_hotplug_nb);
#endif

	return 0;
}
core_initcall(register_notifiers);

/*
 * Called when KVM was detected, with the e820 table as the kernel will use it.
 * This must be early enough that
 *  - nothing worth hiding is in memory: what the kernel has used so far came
 *    from the VMM or the boot loader,
 *  - no paravirtual feature is in use, and no device has been given memory.
 */
void __init kvm_protected_guest_init(void)
{
	int err;

	/* With hardware protection the bit means nothing, as in any such guest. */
	if (cc_platform_has(CC_ATTR_MEM_ENCRYPT))
		return;

	if (!kvm_para_has_feature(KVM_FEATURE_PROTECTED_MEMORY) ||
	    !kvm_para_has_feature(KVM_FEATURE_HC_MAP_GPA_RANGE))
		return;

	/* On failure, get as far as a console that shows the message. */
	err = protect_all_ram();
	if (share_bss_decrypted() || err)
		conversion_failed = true;

	x86_platform.guest.enc_status_change_finish = enc_status_change_finish;
	x86_platform.guest.enc_kexec_begin	    = kexec_begin;
	x86_platform.guest.enc_kexec_finish	    = kexec_finish;
	cc_vendor = CC_VENDOR_KVM;
}

/*
 * The last chance to stop: there is a console by now, but no initrd has been
 * unpacked, no device is in use and no other CPU is running.
 */
void __init kvm_protected_guest_check(void)
{
	if (conversion_failed)
		panic("KVM offers protected memory, but does not protect or share all of it\n");

	if (cc_vendor != CC_VENDOR_KVM) {
		if (protection_required)
			panic("kvm_protected_guest=require, but the host does not offer protected memory\n");
		return;
	}

	pr_info("memory is protected from the host, except pages shared for I/O; CPU registers are not protected, a compromised VMM can still steer the guest\n");
}
