/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The tests of KVM_CAP_PROTECTED_MEMORY: what they have on x86 alone.
 */
#ifndef SELFTEST_KVM_PROTMEM_ARCH_H
#define SELFTEST_KVM_PROTMEM_ARCH_H

#include <linux/kvm_para.h>

#include "processor.h"

/* Attributes of KVM_HC_MAP_GPA_RANGE. */
#define PROTMEM_TO_PRIVATE	KVM_MAP_GPA_RANGE_ENCRYPTED
#define PROTMEM_TO_SHARED	KVM_MAP_GPA_RANGE_DECRYPTED

#define PROTMEM_DONE_PORT	0xe4
#define PROTMEM_STRING_PORT	0x2000

#define X86_FEATURE_KVM_PROTECTED_MEMORY	\
	KVM_X86_CPU_FEATURE(0x40000001, 0, EAX, KVM_FEATURE_PROTECTED_MEMORY)

/* Does the latch close when the guest first runs? */
#define PROTMEM_RUN_LATCHES	0

struct protmem_vcpu_state {
	struct kvm_regs regs;
	struct kvm_sregs sregs;
};

/* For the guest. */
u64 guest_wrmsr(u64 msr, u64 val, u64 c, u64 d);
/* Input of @n bytes from PROTMEM_STRING_PORT; the address after the last one. */
u64 guest_ins(u64 gpa, u64 n, u64 c, u64 d);

#endif /* SELFTEST_KVM_PROTMEM_ARCH_H */
