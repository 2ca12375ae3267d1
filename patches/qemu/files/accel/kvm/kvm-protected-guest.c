/*
 * Guests whose memory KVM protects from the host: architecture-independent part
 *
 * KVM keeps the private pages of such a guest in a guest_memfd, off the direct
 * map of the host kernel and out of the page tables of QEMU.  All pages start
 * shared; the guest converts them with hypercalls that KVM handles by itself.
 *
 * In mode hidden all memory is off the direct map, and QEMU has access to it.
 * There are no private pages then, and nothing to convert.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/ioctl.h>
#include <linux/kvm.h>

#include "qemu/error-report.h"
#include "qapi/error.h"
#include "qom/object_interfaces.h"
#include "block/block-global-state.h"
#include "exec/memory.h"
#include "exec/ramblock.h"
#include "hw/boards.h"
#include "hw/qdev-core.h"
#include "migration/blocker.h"
#include "system/confidential-guest-support.h"
#include "system/convertible-ram.h"
#include "system/kvm.h"
#include "system/kvm_int.h"
#include "system/kvm-protected-guest.h"
#include "system/runstate.h"
#include "system/system.h"

static KvmProtectedGuestMode kvm_protected_guest_mode;
/* A hypervisor has the guest's memory, or is to have it; and it has some. */
static bool kvm_protected_guest_in_hypervisor;
static bool kvm_protected_guest_memory_given;
static Error *kvm_protected_guest_mig_blocker;
/* There is one class of this kind in a QEMU. */
static const KvmProtectedGuestOps *kvm_protected_guest_ops;

unsigned long kvm_protected_guest_vm_type(void)
{
    ConfidentialGuestSupport *cgs = MACHINE(qdev_get_machine())->cgs;
    KvmProtectedGuestState *state;
    unsigned long type;

    if (!cgs || !object_dynamic_cast(OBJECT(cgs), TYPE_KVM_PROTECTED_GUEST) ||
        !kvm_protected_guest_ops->vm_type) {
        return 0;
    }
    state = kvm_protected_guest_ops->get_state(OBJECT(cgs));
    if (state->mode == KVM_PROTECTED_GUEST_MODE_HIDDEN) {
        return 0;
    }
    type = kvm_protected_guest_ops->vm_type(state);
    kvm_protected_guest_in_hypervisor = type;
    return type;
}

bool kvm_protected_guest_host_kernel(void)
{
    return kvm_protected_guest_in_hypervisor;
}

bool kvm_protected_guest_is_resettable(void)
{
    return !kvm_protected_guest_memory_given;
}

int kvm_protected_guest_init(KvmProtectedGuestMode mode, Error **errp)
{
    ERRP_GUARD();
    const bool hidden = mode == KVM_PROTECTED_GUEST_MODE_HIDDEN;
    const char *kind = hidden ? "hidden" : "protected";
    uint64_t wanted = KVM_PROTMEM_DIRECT_MAP;
    uint64_t memfd_flags = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED;
    uint64_t supported;
    int ret;

    if (hidden) {
        wanted |= KVM_PROTMEM_HIDE_ONLY;
        memfd_flags |= GUEST_MEMFD_FLAG_NO_DIRECT_MAP;
    } else {
        wanted |= KVM_PROTMEM_USER | KVM_PROTMEM_GUEST_CONVERT;
        if (kvm_protected_guest_in_hypervisor) {
            wanted |= KVM_PROTMEM_HOST_KERNEL;
        }
    }

    ret = kvm_vm_check_extension(kvm_state, KVM_CAP_PROTECTED_MEMORY);
    supported = MAX(ret, 0);
    if (!supported) {
        error_setg(errp, "KVM on this host cannot protect guest memory");
        error_append_hint(errp, "The host kernel needs "
                          "CONFIG_KVM_PROTECTED_MEMORY; if it has that, its "
                          "log says what else is missing.\n");
        return -ENOTSUP;
    }
    if ((supported & wanted) != wanted) {
        error_setg(errp, "KVM on this host cannot protect guest memory in mode "
                   "%s: 0x%" PRIx64 " is needed, 0x%" PRIx64 " is supported",
                   KvmProtectedGuestMode_str(mode), wanted, supported);
        error_append_hint(errp, "Update the host's kernel, or use another "
                          "mode.\n");
        return -ENOTSUP;
    }
    ret = kvm_vm_check_extension(kvm_state, KVM_CAP_GUEST_MEMFD_FLAGS);
    if (ret < 0 || (ret & memfd_flags) != memfd_flags) {
        error_setg(errp, "KVM on this host cannot protect guest memory: "
                   "guest_memfd cannot be %s",
                   hidden ? "hidden from the kernel" : "mapped");
        error_append_hint(errp, "Update the host's kernel.\n");
        return -ENOTSUP;
    }

    if (kvm_state->kvm_dirty_ring_size) {
        error_setg(errp, "dirty-ring-size is not supported with %s "
                   "guest memory: KVM does not log writes to it; leave it out",
                   kind);
        return -ENOTSUP;
    }

    if (should_mlock(mlock_state)) {
        error_setg(errp, "-overcommit mem-lock is not supported with %s guest "
                   "memory: %s; use mem-lock=off", kind,
                   hidden ? "mlock() does not apply to it; it is never swapped "
                            "out, and prealloc=on populates it" :
                            "it is populated when the guest accesses it");
        return -ENOTSUP;
    }

    if (!bdrv_forbid_mapping(hidden ?
                             "memory that is hidden from the host's kernel "
                             "cannot be pinned for a device, and is not given "
                             "to other processes" :
                             "the guest can make its memory private, so that "
                             "it cannot be mapped for a device or given to "
                             "another process", errp)) {
        return -ENOTSUP;
    }
    if ((hidden || kvm_protected_guest_in_hypervisor) &&
        !bdrv_forbid_direct_io("memory that is hidden from the host's kernel "
                               "cannot be pinned", errp)) {
        return -ENOTSUP;
    }

    ret = kvm_vm_enable_cap(kvm_state, KVM_CAP_PROTECTED_MEMORY, 0, wanted);
    if (ret < 0) {
        error_setg_errno(errp, -ret, "KVM failed to enable the protection of "
                         "guest memory");
        return ret;
    }

    /*
     * Nobody but the guest decides what happens to a page.  With hidden memory
     * there is just nobody who would discard it: no balloon, no memory device.
     */
    ret = ram_block_discard_disable(true);
    if (ret < 0) {
        error_setg_errno(errp, -ret, "%s guest memory cannot be discarded",
                         kind);
        return ret;
    }

    error_setg(&kvm_protected_guest_mig_blocker, "kvm-protected-guest: %s",
               hidden ? "KVM does not log writes to hidden guest memory" :
                        "private guest memory cannot be read or written by "
                        "QEMU");
    ret = migrate_add_blocker(&kvm_protected_guest_mig_blocker, errp);
    if (ret < 0) {
        return ret;
    }

    kvm_protected_guest_mode = mode;
    return 0;
}

void kvm_protected_guest_wipe(void)
{
    int ret = kvm_vm_ioctl(kvm_state, KVM_RESET_PROTECTED_MEMORY);

    if (ret < 0) {
        error_report("KVM failed to erase protected guest memory, which a "
                     "reset of the machine needs: %s", strerror(-ret));
        exit(1);
    }
    convertible_ram_reset();
}

static int kvm_protected_guest_make_block_private(RAMBlock *rb, void *opaque)
{
    struct kvm_memory_attributes2 attrs = {
        .size = qemu_ram_get_used_length(rb),
        .attributes = KVM_MEMORY_ATTRIBUTE_PRIVATE,
        .flags = KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE,
    };

    /* Nor has the guest what is not, or not yet, in its address space. */
    if (!(rb->flags & RAM_CONVERTIBLE) || !memory_region_is_mapped(rb->mr)) {
        return 0;
    }

    while (ioctl(qemu_ram_get_fd(rb), KVM_SET_MEMORY_ATTRIBUTES2, &attrs) < 0) {
        if (errno != EINTR) {
            return -errno;
        }
        /* A part of it is done. */
        attrs.size -= attrs.error_offset - attrs.offset;
        attrs.offset = attrs.error_offset;
        if (!attrs.size) {
            break;
        }
    }
    return 0;
}

void kvm_protected_guest_make_private(void)
{
    int ret = qemu_ram_foreach_block(kvm_protected_guest_make_block_private,
                                     NULL);

    if (ret < 0) {
        error_report("KVM failed to make the memory of the guest private, as "
                     "which the guest is to find it: %s", strerror(-ret));
        exit(1);
    }
    kvm_protected_guest_memory_given = kvm_protected_guest_in_hypervisor;
}

static bool kvm_protected_guest_read(int fd, void *buf, size_t len, off_t pos,
                                     Error **errp)
{
    ssize_t ret = RETRY_ON_EINTR(pread(fd, buf, len, pos));

    if (ret != len) {
        error_setg_errno(errp, ret < 0 ? errno : EIO,
                         "failed to read KVM statistics");
        return false;
    }
    return true;
}

KvmProtectedGuestInfo *kvm_protected_guest_query(Error **errp)
{
    /* The stats are architecture-independent and not in QEMU's own list. */
    enum { LATCHED, PRIVATE, SHARED, BLOCK, REFUSED, NUM_STATS };
    static const char *const names[NUM_STATS] = {
        [LATCHED] = "protmem_latched",
        [PRIVATE] = "protmem_private_bytes",
        [SHARED] = "protmem_shared_bytes",
        [BLOCK] = "protmem_block_bytes",
        [REFUSED] = "protmem_refused",
    };
    static int fd = -1;
    g_autofree uint8_t *descs = NULL;
    KvmProtectedGuestInfo *info;
    struct kvm_stats_header header;
    uint64_t value[NUM_STATS];
    bool found[NUM_STATS] = {};
    size_t desc_size;
    int i, j;

    if (!kvm_enabled() || (!machine_has_convertible_ram(current_machine) &&
                           !machine_has_hidden_ram(current_machine))) {
        error_setg(errp, "the memory of this guest is not protected by KVM");
        return NULL;
    }

    if (fd < 0) {
        fd = kvm_vm_ioctl(kvm_state, KVM_GET_STATS_FD, NULL);
        if (fd < 0) {
            error_setg_errno(errp, -fd, "failed to get KVM statistics");
            return NULL;
        }
    }
    if (!kvm_protected_guest_read(fd, &header, sizeof(header), 0, errp)) {
        return NULL;
    }
    desc_size = sizeof(struct kvm_stats_desc) + header.name_size;
    descs = g_malloc0_n(header.num_desc, desc_size);
    if (!kvm_protected_guest_read(fd, descs, desc_size * header.num_desc,
                                  header.desc_offset, errp)) {
        return NULL;
    }

    for (i = 0; i < header.num_desc; i++) {
        struct kvm_stats_desc *desc = (void *)(descs + i * desc_size);

        for (j = 0; j < NUM_STATS; j++) {
            if (desc->size == 1 &&
                !strncmp(desc->name, names[j], header.name_size)) {
                if (!kvm_protected_guest_read(fd, &value[j], sizeof(value[j]),
                                              header.data_offset +
                                              desc->offset, errp)) {
                    return NULL;
                }
                found[j] = true;
            }
        }
    }
    for (j = 0; j < NUM_STATS; j++) {
        if (!found[j]) {
            error_setg(errp, "KVM has no statistics named '%s'", names[j]);
            return NULL;
        }
    }

    info = g_new0(KvmProtectedGuestInfo, 1);
    info->mode = kvm_protected_guest_mode;
    info->host_kernel = kvm_protected_guest_in_hypervisor;
    info->latched = value[LATCHED] != 0;
    info->private_bytes = value[PRIVATE];
    info->shared_bytes = value[SHARED];
    info->block_bytes = value[BLOCK];
    info->refused_accesses = value[REFUSED];
    return info;
}

static void kvm_protected_guest_machine_done(Notifier *n, void *unused)
{
    KvmProtectedGuestState *state = container_of(n, KvmProtectedGuestState,
                                                 machine_done);
    const char *id = object_get_canonical_path_component(state->obj);
    const bool hidden = state->mode == KVM_PROTECTED_GUEST_MODE_HIDDEN;

    if (current_machine->cgs != CONFIDENTIAL_GUEST_SUPPORT(state->obj)) {
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

    kvm_protected_guest_ops->check_machine(state);
}

static void kvm_protected_guest_complete(UserCreatable *uc, Error **errp)
{
    KvmProtectedGuestState *state =
        kvm_protected_guest_ops->get_state(OBJECT(uc));

    if (phase_check(PHASE_MACHINE_READY)) {
        error_setg(errp, "kvm-protected-guest must be created together with "
                   "the machine: use -object");
        return;
    }
    /* All RAM is of the kind that was asked for first. */
    state->complete = true;
    state->obj = OBJECT(uc);

    /* A guest never runs without the protection that somebody asked for. */
    state->machine_done.notify = kvm_protected_guest_machine_done;
    qemu_add_machine_init_done_notifier(&state->machine_done);
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
    KvmProtectedGuestState *state = kvm_protected_guest_ops->get_state(obj);

    switch (type) {
    case RESET_TYPE_COLD:
        /* The first reset is part of creating the machine. */
        if (state->ran && state->mode != KVM_PROTECTED_GUEST_MODE_HIDDEN) {
            kvm_protected_guest_wipe();
        }
        state->ran = true;
        break;
    default:
        break;
    }
}

static ResettableState *kvm_protected_guest_reset_state(Object *obj)
{
    return &kvm_protected_guest_ops->get_state(obj)->reset_state;
}

static int kvm_protected_guest_get_mode(Object *obj, Error **errp)
{
    return kvm_protected_guest_ops->get_state(obj)->mode;
}

static void kvm_protected_guest_set_mode(Object *obj, int value, Error **errp)
{
    ConfidentialGuestSupport *cgs = CONFIDENTIAL_GUEST_SUPPORT(obj);
    KvmProtectedGuestState *state = kvm_protected_guest_ops->get_state(obj);

    if (state->complete) {
        error_setg(errp, "the mode cannot be changed any more: set it when "
                   "the object is created");
        return;
    }
    state->mode = value;
    cgs->hidden_ram = value == KVM_PROTECTED_GUEST_MODE_HIDDEN;
    cgs->convertible_ram = !cgs->hidden_ram;
}

void kvm_protected_guest_instance_init(Object *obj)
{
    /* As KVM_PROTECTED_GUEST_MODE_PROTECTED_MEMORY, the default, has it. */
    CONFIDENTIAL_GUEST_SUPPORT(obj)->convertible_ram = true;
}

void kvm_protected_guest_class_init(ObjectClass *oc,
                                    const KvmProtectedGuestOps *ops)
{
    UserCreatableClass *ucc = USER_CREATABLE_CLASS(oc);
    ResettableClass *rc = RESETTABLE_CLASS(oc);

    kvm_protected_guest_ops = ops;
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
