/*
 * Guests whose memory KVM protects from the host: architecture-independent part
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef SYSTEM_KVM_PROTECTED_GUEST_H
#define SYSTEM_KVM_PROTECTED_GUEST_H

#include "qapi/qapi-types-machine.h"

/**
 * kvm_protected_guest_init: make KVM protect the memory of the virtual machine
 * @mode: how
 * @errp: pointer to an error
 *
 * Called while the accelerator is initialized, before vCPUs and memory slots
 * are created.  Also refuses or blocks what cannot work, whatever the
 * architecture.
 *
 * Returns: 0 on success, a negative errno value otherwise.
 */
int kvm_protected_guest_init(KvmProtectedGuestMode mode, Error **errp);

/**
 * kvm_protected_guest_wipe: erase the private memory of the guest
 *
 * All memory is shared and empty afterwards.  Called with the BQL held and all
 * vCPUs stopped.  Does not return if it fails: neither the guest's secrets
 * nor a guest that expects its memory to be shared may be left to a reset
 * that goes on.
 *
 * Not for mode hidden, where no memory is private and RAM outlives a reset.
 */
void kvm_protected_guest_wipe(void);

/**
 * kvm_protected_guest_query: find out about the state of the guest's memory
 * @errp: pointer to an error
 *
 * Returns: the information, to be freed by the caller, or %NULL.
 */
KvmProtectedGuestInfo *kvm_protected_guest_query(Error **errp);

#endif
