/*
 * Guests whose memory KVM protects from the host: x86 part
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef TARGET_I386_KVM_PROTECTED_GUEST_H
#define TARGET_I386_KVM_PROTECTED_GUEST_H

#include "cpu.h"

/**
 * kvm_protected_guest_check_cpu: check the features of a vCPU
 * @cpu: vCPU of a machine with a kvm-protected-guest, features expanded
 * @errp: pointer to an error
 *
 * Returns: %false if the vCPU has features that KVM does not provide together
 * with protected memory, or hides from the guest that it can protect itself.
 */
bool kvm_protected_guest_check_cpu(X86CPU *cpu, Error **errp);

#endif
