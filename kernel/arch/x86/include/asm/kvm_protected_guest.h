/* SPDX-License-Identifier: GPL-2.0-only */
/* Linux as a guest with KVM protected memory, see arch/x86/coco/kvm_protected_guest.c. */
#ifndef _ASM_X86_KVM_PROTECTED_GUEST_H
#define _ASM_X86_KVM_PROTECTED_GUEST_H

#include <linux/init.h>
#include <linux/types.h>

#ifdef CONFIG_KVM_PROTECTED_GUEST
void __init kvm_protected_guest_init(void);
void __init kvm_protected_guest_check(void);
void __init kvm_protected_guest_share(void *ptr, size_t size);
#else
static inline void kvm_protected_guest_init(void) { }
static inline void kvm_protected_guest_check(void) { }
static inline void kvm_protected_guest_share(void *ptr, size_t size) { }
#endif

#endif /* _ASM_X86_KVM_PROTECTED_GUEST_H */
