/*
 * Guests whose memory KVM protects from the host: architecture-independent part
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef SYSTEM_KVM_PROTECTED_GUEST_H
#define SYSTEM_KVM_PROTECTED_GUEST_H

#include "hw/resettable.h"
#include "qapi/qapi-types-common.h"
#include "qapi/qapi-types-machine.h"
#include "qemu/notify.h"
#include "qom/object.h"

#define TYPE_KVM_PROTECTED_GUEST "kvm-protected-guest"

/**
 * KvmProtectedGuestState: what a kvm-protected-guest object has everywhere
 *
 * @obj: the object, once it is complete
 * @mode: how the memory of the guest is protected
 * @complete: properties cannot change any more
 * @ran: a cold reset has to erase the private memory, the first one excepted
 */
typedef struct KvmProtectedGuestState {
    Object *obj;
    KvmProtectedGuestMode mode;
    ResettableState reset_state;
    Notifier machine_done;
    bool complete;
    bool ran;
} KvmProtectedGuestState;

/**
 * KvmProtectedGuestOps: what an architecture has of its own
 *
 * @get_state: find the state in an object
 * @vm_type: the type of virtual machine that the host's hypervisor protects
 *     from the host's kernel, if it has any, otherwise 0; %NULL if there are
 *     no such hosts
 * @check_machine: called when the machine is complete, exits if there is
 *     something in it that cannot work
 */
typedef struct KvmProtectedGuestOps {
    KvmProtectedGuestState *(*get_state)(Object *obj);
    unsigned long (*vm_type)(KvmProtectedGuestState *state);
    void (*check_machine)(KvmProtectedGuestState *state);
} KvmProtectedGuestOps;

/**
 * kvm_protected_guest_class_init: set up what all architectures have
 * @oc: class of type %TYPE_KVM_PROTECTED_GUEST, which is a confidential guest,
 *     user creatable and resettable
 * @ops: the rest
 */
void kvm_protected_guest_class_init(ObjectClass *oc,
                                    const KvmProtectedGuestOps *ops);

/**
 * kvm_protected_guest_instance_init: set up an object of that class
 * @obj: object
 */
void kvm_protected_guest_instance_init(Object *obj);

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
 * kvm_protected_guest_vm_type: find out what to ask KVM for
 *
 * Called before the virtual machine is created.
 *
 * Returns: what has to be added to the type of the virtual machine.
 */
unsigned long kvm_protected_guest_vm_type(void);

/**
 * kvm_protected_guest_host_kernel: is the guest protected from the kernel, too?
 *
 * A hypervisor below KVM has the memory then, all of which is convertible, and
 * gives none of it back.
 */
bool kvm_protected_guest_host_kernel(void);

/**
 * kvm_protected_guest_is_resettable: can the memory be erased?
 *
 * Returns: false if a hypervisor has it.
 */
bool kvm_protected_guest_is_resettable(void);

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
 * kvm_protected_guest_make_private: make all RAM private that can be
 *
 * For architectures whose guests expect that when they start.  Contents are
 * kept.  Called with the BQL held and all vCPUs stopped.  Does not return if it
 * fails: the guest would take for private what is not.
 */
void kvm_protected_guest_make_private(void);

/**
 * kvm_protected_guest_query: find out about the state of the guest's memory
 * @errp: pointer to an error
 *
 * Returns: the information, to be freed by the caller, or %NULL.
 */
KvmProtectedGuestInfo *kvm_protected_guest_query(Error **errp);

#endif
