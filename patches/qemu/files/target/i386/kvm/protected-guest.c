/*
 * Guests whose memory KVM protects from the host: x86 part
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <linux/kvm.h>

#include "qemu/error-report.h"
#include "qapi/error.h"
#include "qom/object_interfaces.h"
#include "hw/acpi/acpi.h"
#include "hw/acpi/ich9.h"
#include "hw/acpi/piix4.h"
#include "hw/boards.h"
#include "hw/i386/apic_internal.h"
#include "hw/i386/pc.h"
#include "hw/southbridge/ich9.h"
#include "system/kvm_int.h"
#include "system/kvm-protected-guest.h"
#include "system/reset.h"
#include "../confidential-guest.h"
#include "kvm_i386.h"
#include "protected-guest.h"

struct KVMProtectedGuest {
    X86ConfidentialGuest parent_obj;

    KvmProtectedGuestState state;
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
               guest->state.mode != KVM_PROTECTED_GUEST_MODE_HIDDEN) {
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
    const bool hidden = guest->state.mode == KVM_PROTECTED_GUEST_MODE_HIDDEN;
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

    ret = kvm_protected_guest_init(guest->state.mode, errp);
    if (ret < 0) {
        return ret;
    }

    qemu_register_resettable(OBJECT(guest));
    cgs->ready = true;
    return 0;
}

static KvmProtectedGuestState *kvm_protected_guest_x86_state(Object *obj)
{
    return &KVM_PROTECTED_GUEST(obj)->state;
}

static void kvm_protected_guest_check_machine(KvmProtectedGuestState *state)
{
    Object *pm;

    if (state->mode == KVM_PROTECTED_GUEST_MODE_HIDDEN) {
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

static const KvmProtectedGuestOps kvm_protected_guest_x86_ops = {
    .get_state = kvm_protected_guest_x86_state,
    .check_machine = kvm_protected_guest_check_machine,
};

static void kvm_protected_guest_x86_class_init(ObjectClass *oc, void *data)
{
    ConfidentialGuestSupportClass *klass = CONFIDENTIAL_GUEST_SUPPORT_CLASS(oc);
    X86ConfidentialGuestClass *x86_klass = X86_CONFIDENTIAL_GUEST_CLASS(oc);

    klass->kvm_init = kvm_protected_guest_kvm_init;
    x86_klass->kvm_type = kvm_protected_guest_kvm_type;
    x86_klass->mask_cpuid_features = kvm_protected_guest_mask_cpuid_features;
    kvm_protected_guest_class_init(oc, &kvm_protected_guest_x86_ops);
}

static const TypeInfo kvm_protected_guest_info = {
    .name = TYPE_KVM_PROTECTED_GUEST,
    .parent = TYPE_X86_CONFIDENTIAL_GUEST,
    .instance_size = sizeof(KVMProtectedGuest),
    .instance_init = kvm_protected_guest_instance_init,
    .class_init = kvm_protected_guest_x86_class_init,
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
