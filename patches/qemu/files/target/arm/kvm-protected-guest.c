/*
 * Guests whose memory KVM protects from the host: Arm part
 *
 * The guest speaks to KVM as it does to pKVM, and expects what pKVM gives it:
 * all of its memory is private when it starts, and it shares page by page what
 * devices are to reach.  QEMU makes the memory private when kernel, initrd and
 * device tree are loaded and before a vCPU runs; KVM lets nobody but the guest
 * share it from then on.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <linux/kvm.h>

#include "qemu/error-report.h"
#include "qapi/error.h"
#include "qapi/visitor.h"
#include "qom/object_interfaces.h"
#include "cpu.h"
#include "hw/arm/virt.h"
#include "hw/boards.h"
#include "hw/resettable.h"
#include "hw/virtio/virtio-mmio.h"
#include "system/confidential-guest-support.h"
#include "system/kvm.h"
#include "system/kvm-protected-guest.h"
#include "system/reset.h"
#include "system/runstate.h"

struct KVMProtectedGuest {
    ConfidentialGuestSupport parent_obj;

    KvmProtectedGuestState state;
    /* It has been reset, and nothing has been made private since. */
    bool shared;
};

OBJECT_DECLARE_SIMPLE_TYPE(KVMProtectedGuest, KVM_PROTECTED_GUEST)

static void kvm_protected_guest_vm_state(void *opaque, bool running,
                                         RunState state)
{
    KVMProtectedGuest *guest = opaque;

    if (running && guest->shared) {
        kvm_protected_guest_make_private();
        guest->shared = false;
    }
}

static int kvm_protected_guest_kvm_init(ConfidentialGuestSupport *cgs,
                                        Error **errp)
{
    KVMProtectedGuest *guest = KVM_PROTECTED_GUEST(cgs);
    const bool hidden = guest->state.mode == KVM_PROTECTED_GUEST_MODE_HIDDEN;
    MachineState *ms = MACHINE(qdev_get_machine());
    int ret;

    if (!object_dynamic_cast(OBJECT(ms), TYPE_VIRT_MACHINE)) {
        error_setg(errp, "kvm-protected-guest: machine type '%s' is not "
                   "supported, use virt", MACHINE_GET_CLASS(ms)->name);
        return -ENOTSUP;
    }

    if (VIRT_MACHINE(ms)->mte) {
        error_setg(errp, "kvm-protected-guest: memory tagging is not "
                   "supported: KVM cannot access the tags of %s memory; use "
                   "mte=off", hidden ? "hidden" : "private");
        return -ENOTSUP;
    }

    ret = kvm_protected_guest_init(guest->state.mode, errp);
    if (ret < 0) {
        return ret;
    }

    if (!hidden) {
        /* Legacy drivers do not care what memory devices can reach. */
        object_register_sugar_prop(TYPE_VIRTIO_MMIO, "force-legacy", "off",
                                   true);
        qemu_add_vm_change_state_handler(kvm_protected_guest_vm_state, guest);
    }

    qemu_register_resettable(OBJECT(guest));
    cgs->ready = true;
    return 0;
}

/*
 * All objects leave reset after all of them have been reset: kernel, initrd
 * and device tree are loaded.  A machine that is stopped can still be written
 * to, by the monitor for example, until it runs.
 */
static void kvm_protected_guest_reset_exit(Object *obj, ResetType type)
{
    KVMProtectedGuest *guest = KVM_PROTECTED_GUEST(obj);

    if (type != RESET_TYPE_COLD ||
        guest->state.mode == KVM_PROTECTED_GUEST_MODE_HIDDEN) {
        return;
    }
    guest->shared = true;
    kvm_protected_guest_vm_state(guest, runstate_is_running(), runstate_get());
}

/*
 * With pKVM a hypervisor has the memory of virtual machines that are of this
 * type.  There is no way to ask but to create one.
 */
static unsigned long kvm_protected_guest_arm_vm_type(KvmProtectedGuestState *s)
{
    /* kvm_state is set when there is a virtual machine. */
    KVMState *kvm = KVM_STATE(current_machine->accelerator);
    int fd;

    do {
        fd = kvm_ioctl(kvm, KVM_CREATE_VM, KVM_VM_TYPE_ARM_PROTECTED);
    } while (fd == -EINTR);
    if (fd < 0) {
        return 0;
    }
    close(fd);
    return KVM_VM_TYPE_ARM_PROTECTED;
}

static KvmProtectedGuestState *kvm_protected_guest_arm_state(Object *obj)
{
    return &KVM_PROTECTED_GUEST(obj)->state;
}

static void kvm_protected_guest_check_machine(KvmProtectedGuestState *state)
{
    VirtMachineState *vms = VIRT_MACHINE(qdev_get_machine());

    if (state->mode == KVM_PROTECTED_GUEST_MODE_HIDDEN) {
        return;
    }

    if (vms->bootinfo.firmware_loaded) {
        error_report("kvm-protected-guest: firmware is not supported: all "
                     "memory is private when it starts, and it would not know "
                     "how to share any with devices; use -kernel, without "
                     "-bios and pflash, or mode=hidden");
        exit(1);
    }

    if (!arm_feature(&ARM_CPU(first_cpu)->env, ARM_FEATURE_AARCH64)) {
        error_report("kvm-protected-guest: aarch64=off is not supported: KVM "
                     "does not let 32-bit guests share memory; leave it out, "
                     "or use mode=hidden");
        exit(1);
    }
}

static void kvm_protected_guest_get_dma_pool_size(Object *obj, Visitor *v,
                                                  const char *name,
                                                  void *opaque, Error **errp)
{
    visit_type_size(v, name, &CONFIDENTIAL_GUEST_SUPPORT(obj)->dma_pool_size,
                    errp);
}

static void kvm_protected_guest_set_dma_pool_size(Object *obj, Visitor *v,
                                                  const char *name,
                                                  void *opaque, Error **errp)
{
    uint64_t size;

    if (!visit_type_size(v, name, &size, errp)) {
        return;
    }
    if (KVM_PROTECTED_GUEST(obj)->state.complete) {
        error_setg(errp, "the size cannot be changed any more: set it when "
                   "the object is created");
        return;
    }
    CONFIDENTIAL_GUEST_SUPPORT(obj)->dma_pool_size = size;
}

static const KvmProtectedGuestOps kvm_protected_guest_arm_ops = {
    .get_state = kvm_protected_guest_arm_state,
    .vm_type = kvm_protected_guest_arm_vm_type,
    .check_machine = kvm_protected_guest_check_machine,
};

static void kvm_protected_guest_arm_class_init(ObjectClass *oc, void *data)
{
    ConfidentialGuestSupportClass *klass = CONFIDENTIAL_GUEST_SUPPORT_CLASS(oc);
    ResettableClass *rc = RESETTABLE_CLASS(oc);

    klass->kvm_init = kvm_protected_guest_kvm_init;
    kvm_protected_guest_class_init(oc, &kvm_protected_guest_arm_ops);
    rc->phases.exit = kvm_protected_guest_reset_exit;

    object_class_property_add(oc, "dma-pool-size", "size",
                              kvm_protected_guest_get_dma_pool_size,
                              kvm_protected_guest_set_dma_pool_size,
                              NULL, NULL);
    object_class_property_set_description(oc, "dma-pool-size",
        "Size of the memory that the guest shares for DMA");
}

static const TypeInfo kvm_protected_guest_info = {
    .name = TYPE_KVM_PROTECTED_GUEST,
    .parent = TYPE_CONFIDENTIAL_GUEST_SUPPORT,
    .instance_size = sizeof(KVMProtectedGuest),
    .instance_init = kvm_protected_guest_instance_init,
    .class_init = kvm_protected_guest_arm_class_init,
    .interfaces = (InterfaceInfo[]) {
        { TYPE_USER_CREATABLE },
        { TYPE_RESETTABLE_INTERFACE },
        { }
    },
};

static void kvm_protected_guest_register_types(void)
{
    type_register_static(&kvm_protected_guest_info);
}

type_init(kvm_protected_guest_register_types)
