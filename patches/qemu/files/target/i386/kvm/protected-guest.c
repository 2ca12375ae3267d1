/*
 * Guests whose memory KVM protects from the host: x86 part
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <linux/kvm.h>

#include "qemu/error-report.h"
#include "qemu/notify.h"
#include "qapi/error.h"
#include "qapi/qapi-types-common.h"
#include "qom/object_interfaces.h"
#include "hw/acpi/acpi.h"
#include "hw/acpi/ich9.h"
#include "hw/acpi/piix4.h"
#include "hw/boards.h"
#include "hw/i386/apic_internal.h"
#include "hw/i386/pc.h"
#include "hw/qdev-core.h"
#include "hw/resettable.h"
#include "hw/southbridge/ich9.h"
#include "system/kvm_int.h"
#include "system/kvm-protected-guest.h"
#include "system/reset.h"
#include "system/runstate.h"
#include "system/system.h"
#include "../confidential-guest.h"
#include "kvm_i386.h"
#include "protected-guest.h"

struct KVMProtectedGuest {
    X86ConfidentialGuest parent_obj;

    KvmProtectedGuestMode mode;
    ResettableState reset_state;
    Notifier machine_done;
    bool complete;
    bool ran;
};

OBJECT_DECLARE_SIMPLE_TYPE(KVMProtectedGuest, KVM_PROTECTED_GUEST)

/* KVM can give a VM of the default type protected memory, and no other. */
static int kvm_protected_guest_kvm_type(X86ConfidentialGuest *cg)
{
    return KVM_X86_DEFAULT_VM;
}

static uint32_t
kvm_protected_guest_mask_cpuid_features(X86ConfidentialGuest *cg,
                                        uint32_t function, uint32_t index,
                                        int reg, uint32_t value)
{
    KVMProtectedGuest *guest = KVM_PROTECTED_GUEST(cg);

    /* KVM does not emulate nested virtualization on protected memory. */
    if (function == 1 && reg == R_ECX) {
        value &= ~CPUID_EXT_VMX;
    } else if (function == 0x80000001 && reg == R_ECX) {
        value &= ~CPUID_EXT3_SVM;
    } else if (function == 0x8000000A) {
        value = 0;
    } else if (function == KVM_CPUID_FEATURES && reg == R_EAX &&
               guest->mode != KVM_PROTECTED_GUEST_MODE_HIDDEN) {
        value |= CPUID_KVM_HC_MAP_GPA_RANGE | CPUID_KVM_PROTECTED_MEMORY;
    }
    return value;
}

bool kvm_protected_guest_check_cpu(X86CPU *cpu, Error **errp)
{
    const uint32_t needed = CPUID_KVM_HC_MAP_GPA_RANGE |
                            CPUID_KVM_PROTECTED_MEMORY;

    if (!cpu->expose_kvm || (cpu->env.features[FEAT_KVM] & needed) != needed) {
        error_setg(errp, "kvm-protected-guest: the guest could not find out "
                   "that its memory can be protected: CPU properties 'kvm', "
                   "'kvm-hc-map-gpa-range' and 'kvm-protected-memory' must be "
                   "on");
        return false;
    }
    if (cpu->hyperv_features || cpu->hyperv_passthrough ||
        cpu->hyperv_spinlock_attempts != HYPERV_SPINLOCK_NEVER_NOTIFY) {
        error_setg(errp, "kvm-protected-guest: Hyper-V enlightenments (CPU "
                   "properties 'hv-*') are not supported: KVM cannot access "
                   "private memory for them; leave them out, or use "
                   "mode=hidden");
        return false;
    }
    return true;
}

static int kvm_protected_guest_kvm_init(ConfidentialGuestSupport *cgs,
                                        Error **errp)
{
    KVMProtectedGuest *guest = KVM_PROTECTED_GUEST(cgs);
    const bool hidden = guest->mode == KVM_PROTECTED_GUEST_MODE_HIDDEN;
    MachineState *ms = MACHINE(qdev_get_machine());
    X86MachineState *x86ms;
    int ret;

    /* isapc is derived from it, too. */
    if (!object_dynamic_cast(OBJECT(ms), TYPE_PC_MACHINE) ||
        !PC_MACHINE_GET_CLASS(ms)->pci_enabled) {
        error_setg(errp, "kvm-protected-guest: machine type '%s' is not "
                   "supported, use q35 or pc", MACHINE_GET_CLASS(ms)->name);
        return -ENOTSUP;
    }

    /* System management mode is a second address space that sees all RAM. */
    x86ms = X86_MACHINE(ms);
    if (x86ms->smm == ON_OFF_AUTO_ON) {
        error_setg(errp, "kvm-protected-guest: system management mode is not "
                   "supported, use smm=off");
        return -ENOTSUP;
    }
    x86ms->smm = ON_OFF_AUTO_OFF;

    if (kvm_state->xen_version) {
        error_setg(errp, "kvm-protected-guest: emulation of Xen is not "
                   "supported: KVM cannot access %s memory for it; leave "
                   "xen-version out",
                   hidden ? "hidden" : "private");
        return -ENOTSUP;
    }

    if (!hidden) {
        /*
         * The option ROM of the vAPIC patches the guest, and
         * KVM_SET_VAPIC_ADDR takes guest memory that may be private.
         */
        object_register_sugar_prop(TYPE_APIC_COMMON, "vapic", "off", true);

        /*
         * After S3, the firmware finds private memory that it does not expect.
         * Checked again when the machine is complete.
         */
        object_register_sugar_prop(TYPE_ICH9_LPC_DEVICE,
                                   ACPI_PM_PROP_S3_DISABLED, "1", true);
        object_register_sugar_prop(TYPE_PIIX4_PM,
                                   ACPI_PM_PROP_S3_DISABLED, "1", true);
    }

    ret = kvm_protected_guest_init(guest->mode, errp);
    if (ret < 0) {
        return ret;
    }

    qemu_register_resettable(OBJECT(guest));
    cgs->ready = true;
    return 0;
}

static void kvm_protected_guest_machine_done(Notifier *n, void *unused)
{
    KVMProtectedGuest *guest = container_of(n, KVMProtectedGuest,
                                            machine_done);
    const char *id = object_get_canonical_path_component(OBJECT(guest));
    const bool hidden = guest->mode == KVM_PROTECTED_GUEST_MODE_HIDDEN;
    MachineState *ms = MACHINE(qdev_get_machine());
    Object *pm;

    if (ms->cgs != CONFIDENTIAL_GUEST_SUPPORT(guest)) {
        error_report("kvm-protected-guest object '%s' protects nothing: "
                     "-machine confidential-guest-support=%s is missing",
                     id, id);
        exit(1);
    }

    if (runstate_check(RUN_STATE_INMIGRATE)) {
        error_report("kvm-protected-guest: incoming migration is not "
                     "supported: %s; leave -incoming out",
                     hidden ? "KVM does not log writes to hidden guest memory, "
                              "so that there is no source for it" :
                              "private guest memory cannot be read or written "
                              "by QEMU");
        exit(1);
    }

    if (hidden) {
        return;
    }
    pm = object_resolve_type_unambiguous(TYPE_ICH9_LPC_DEVICE, NULL) ?:
         object_resolve_type_unambiguous(TYPE_PIIX4_PM, NULL);
    if (pm && !object_property_get_uint(pm, ACPI_PM_PROP_S3_DISABLED,
                                        &error_abort)) {
        error_report("kvm-protected-guest: suspend to RAM is not supported, "
                     "%s." ACPI_PM_PROP_S3_DISABLED " must be 1",
                     object_get_typename(pm));
        exit(1);
    }
}

static void kvm_protected_guest_complete(UserCreatable *uc, Error **errp)
{
    KVMProtectedGuest *guest = KVM_PROTECTED_GUEST(uc);

    if (phase_check(PHASE_MACHINE_READY)) {
        error_setg(errp, "kvm-protected-guest must be created together with "
                   "the machine: use -object");
        return;
    }
    /* All RAM is of the kind that was asked for first. */
    guest->complete = true;

    /* A guest never runs without the protection that somebody asked for. */
    guest->machine_done.notify = kvm_protected_guest_machine_done;
    qemu_add_machine_init_done_notifier(&guest->machine_done);
}

static bool kvm_protected_guest_can_be_deleted(UserCreatable *uc)
{
    return false;
}

/*
 * All objects enter reset before any of them is reset: when firmware and ROMs
 * are loaded, and devices write to RAM, the memory is shared again.  Hidden
 * memory has no other state, and keeps its contents as ordinary memory does.
 */
static void kvm_protected_guest_reset_enter(Object *obj, ResetType type)
{
    KVMProtectedGuest *guest = KVM_PROTECTED_GUEST(obj);

    switch (type) {
    case RESET_TYPE_COLD:
        /* The first reset is part of creating the machine. */
        if (guest->ran && guest->mode != KVM_PROTECTED_GUEST_MODE_HIDDEN) {
            kvm_protected_guest_wipe();
        }
        guest->ran = true;
        break;
    default:
        break;
    }
}

static ResettableState *kvm_protected_guest_reset_state(Object *obj)
{
    return &KVM_PROTECTED_GUEST(obj)->reset_state;
}

static int kvm_protected_guest_get_mode(Object *obj, Error **errp)
{
    return KVM_PROTECTED_GUEST(obj)->mode;
}

static void kvm_protected_guest_set_mode(Object *obj, int value, Error **errp)
{
    ConfidentialGuestSupport *cgs = CONFIDENTIAL_GUEST_SUPPORT(obj);
    KVMProtectedGuest *guest = KVM_PROTECTED_GUEST(obj);

    if (guest->complete) {
        error_setg(errp, "the mode cannot be changed any more: set it when "
                   "the object is created");
        return;
    }
    guest->mode = value;
    cgs->hidden_ram = value == KVM_PROTECTED_GUEST_MODE_HIDDEN;
    cgs->convertible_ram = !cgs->hidden_ram;
}

static void kvm_protected_guest_instance_init(Object *obj)
{
    /* As KVM_PROTECTED_GUEST_MODE_PROTECTED_MEMORY, the default, has it. */
    CONFIDENTIAL_GUEST_SUPPORT(obj)->convertible_ram = true;
}

static void kvm_protected_guest_class_init(ObjectClass *oc, void *data)
{
    ConfidentialGuestSupportClass *klass = CONFIDENTIAL_GUEST_SUPPORT_CLASS(oc);
    X86ConfidentialGuestClass *x86_klass = X86_CONFIDENTIAL_GUEST_CLASS(oc);
    UserCreatableClass *ucc = USER_CREATABLE_CLASS(oc);
    ResettableClass *rc = RESETTABLE_CLASS(oc);

    klass->kvm_init = kvm_protected_guest_kvm_init;
    x86_klass->kvm_type = kvm_protected_guest_kvm_type;
    x86_klass->mask_cpuid_features = kvm_protected_guest_mask_cpuid_features;
    ucc->complete = kvm_protected_guest_complete;
    ucc->can_be_deleted = kvm_protected_guest_can_be_deleted;
    rc->get_state = kvm_protected_guest_reset_state;
    rc->phases.enter = kvm_protected_guest_reset_enter;

    object_class_property_add_enum(oc, "mode", "KvmProtectedGuestMode",
                                   &KvmProtectedGuestMode_lookup,
                                   kvm_protected_guest_get_mode,
                                   kvm_protected_guest_set_mode);
    object_class_property_set_description(oc, "mode",
        "How the memory of the guest is protected");
}

static const TypeInfo kvm_protected_guest_info = {
    .name = TYPE_KVM_PROTECTED_GUEST,
    .parent = TYPE_X86_CONFIDENTIAL_GUEST,
    .instance_size = sizeof(KVMProtectedGuest),
    .instance_init = kvm_protected_guest_instance_init,
    .class_init = kvm_protected_guest_class_init,
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
