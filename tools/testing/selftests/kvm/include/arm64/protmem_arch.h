/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The tests of KVM_CAP_PROTECTED_MEMORY: what they have on arm64 alone.
 */
#ifndef SELFTEST_KVM_PROTMEM_ARCH_H
#define SELFTEST_KVM_PROTMEM_ARCH_H

#include <linux/arm-smccc.h>
#include <linux/sizes.h>

#include "processor.h"

/* The hypercalls of Documentation/virt/kvm/arm/hypercalls.rst. */
#define PROTMEM_HYP_CALL(nr)						\
	((u32)ARM_SMCCC_CALL_VAL(ARM_SMCCC_FAST_CALL, ARM_SMCCC_SMC_64,	\
				 ARM_SMCCC_OWNER_VENDOR_HYP, nr))
#define PROTMEM_HYP_MEMINFO	PROTMEM_HYP_CALL(2)
#define PROTMEM_TO_SHARED	PROTMEM_HYP_CALL(3)
#define PROTMEM_TO_PRIVATE	PROTMEM_HYP_CALL(4)

/* The host's; the guest's own page tables have 4 KiB. */
#ifndef PAGE_SHIFT
#define PAGE_SHIFT		12
#endif
#define PAGE_SIZE		BIT_ULL(PAGE_SHIFT)

/* In the page at PROTMEM_MMIO_GPA. */
#define PROTMEM_DONE_REG	0xff8

/* Does the latch close when the guest first runs? */
#define PROTMEM_RUN_LATCHES	1

struct protmem_vcpu_state {
	u64 pc;
	u64 sp;
	u64 x0;
};

#endif /* SELFTEST_KVM_PROTMEM_ARCH_H */
