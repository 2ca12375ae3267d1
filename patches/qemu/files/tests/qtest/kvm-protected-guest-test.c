/*
 * QTest testcase for kvm-protected-guest: configurations that are refused
 *
 * A guest must never run without the protection that was asked for, so each of
 * these has to make QEMU exit with a message that names the reason.  None of
 * them needs a host that can protect memory.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "libqtest.h"

#define PROTECTED " -object kvm-protected-guest,id=prot0"
#define HIDDEN PROTECTED ",mode=hidden"
#define MACHINE(m) " -machine " m ",confidential-guest-support=prot0"

typedef struct RefusedConfig {
    const char *name;
    const char *args;
    const char *message;
} RefusedConfig;

static const RefusedConfig refused[] = {
    {
        "tcg",
        "-accel tcg" PROTECTED MACHINE("q35"),
        "kvm-protected-guest requires -accel kvm",
    }, {
        "tcg-pc",
        "-accel tcg" PROTECTED MACHINE("pc"),
        "kvm-protected-guest requires -accel kvm",
    }, {
        "no-ram",
        "-accel qtest" PROTECTED MACHINE("none"),
        "accelerator does not support confidential guest kvm-protected-guest",
    }, {
        "unused",
        "-accel qtest -machine none" PROTECTED,
        "'prot0' protects nothing: "
        "-machine confidential-guest-support=prot0 is missing",
    }, {
        "mode",
        "-accel qtest -machine none" PROTECTED ",mode=none",
        "Parameter 'mode' does not accept value 'none'",
    }, {
        "memory-backend-file",
        "-accel qtest" PROTECTED MACHINE("q35,memory-backend=ram0")
        " -m 64 -object memory-backend-file,id=ram0,size=64M,mem-path=/tmp",
        "memory-backend-file cannot provide memory that the guest can make "
        "private",
    }, {
        "memory-backend-memfd",
        "-accel qtest" PROTECTED MACHINE("q35,memory-backend=ram0")
        " -m 64 -object memory-backend-memfd,id=ram0,size=64M",
        "memory-backend-memfd cannot provide memory that the guest can make "
        "private",
    }, {
        "mem-path",
        "-accel qtest" PROTECTED MACHINE("q35") " -mem-path /tmp",
        "memory-backend-file cannot provide memory that the guest can make "
        "private",
    }, {
        "prealloc",
        "-accel qtest" PROTECTED MACHINE("q35,memory-backend=ram0")
        " -m 64 -object memory-backend-ram,id=ram0,size=64M,prealloc=on",
        "cannot be preallocated",
    }, {
        "mem-prealloc",
        "-accel qtest" PROTECTED MACHINE("q35") " -mem-prealloc",
        "cannot be preallocated",
    }, {
        "merge",
        "-accel qtest" PROTECTED MACHINE("q35,memory-backend=ram0")
        " -m 64 -object memory-backend-ram,id=ram0,size=64M,merge=on",
        "merge=on is not supported",
    }, {
        "dump",
        "-accel qtest" PROTECTED MACHINE("q35,memory-backend=ram0")
        " -m 64 -object memory-backend-ram,id=ram0,size=64M,dump=on",
        "dump=on is not supported",
    }, {
        "hidden/tcg",
        "-accel tcg" HIDDEN MACHINE("q35"),
        "kvm-protected-guest requires -accel kvm",
    }, {
        "hidden/unused",
        "-accel qtest -machine none" HIDDEN,
        "'prot0' protects nothing: "
        "-machine confidential-guest-support=prot0 is missing",
    }, {
        "hidden/memory-backend-file",
        "-accel qtest" HIDDEN MACHINE("q35,memory-backend=ram0")
        " -m 64 -object memory-backend-file,id=ram0,size=64M,mem-path=/tmp",
        "memory-backend-file cannot provide memory that is hidden from the "
        "host's kernel",
    }, {
        "hidden/memory-backend-memfd",
        "-accel qtest" HIDDEN MACHINE("q35,memory-backend=ram0")
        " -m 64 -object memory-backend-memfd,id=ram0,size=64M",
        "memory-backend-memfd cannot provide memory that is hidden from the "
        "host's kernel",
    }, {
        "hidden/mem-path",
        "-accel qtest" HIDDEN MACHINE("q35") " -mem-path /tmp",
        "memory-backend-file cannot provide memory that is hidden from the "
        "host's kernel",
    }, {
        "hidden/merge",
        "-accel qtest" HIDDEN MACHINE("q35,memory-backend=ram0")
        " -m 64 -object memory-backend-ram,id=ram0,size=64M,merge=on",
        "merge=on is not supported",
    }, {
        "hidden/dump",
        "-accel qtest" HIDDEN MACHINE("q35,memory-backend=ram0")
        " -m 64 -object memory-backend-ram,id=ram0,size=64M,dump=on",
        "dump=on is not supported",
    }, {
        /* Not refused for what it says, but for the accelerator. */
        "hidden/prealloc",
        "-accel qtest" HIDDEN MACHINE("q35,memory-backend=ram0")
        " -m 64 -object memory-backend-ram,id=ram0,size=64M,prealloc=on",
        "kvm-protected-guest requires -accel kvm",
    },
};

static void test_refused(const void *opaque)
{
    const RefusedConfig *config = opaque;
    g_autofree char *cmd = NULL, *err = NULL;
    GError *gerr = NULL;
    int status;

    cmd = g_strdup_printf("%s -display none -nodefaults -S %s",
                          g_getenv("QTEST_QEMU_BINARY"), config->args);
    g_assert(g_spawn_command_line_sync(cmd, NULL, &err, &status, &gerr));
    g_assert_no_error(gerr);

    g_test_message("%s: %s", cmd, err);
    g_assert(WIFEXITED(status));
    g_assert_cmpint(WEXITSTATUS(status), ==, 1);
    g_assert_nonnull(strstr(err, config->message));
}

int main(int argc, char **argv)
{
    int i;

    g_test_init(&argc, &argv, NULL);

    for (i = 0; i < ARRAY_SIZE(refused); i++) {
        g_autofree char *path = NULL;

        path = g_strdup_printf("kvm-protected-guest/refused/%s",
                               refused[i].name);

        if (strstr(refused[i].args, "-accel tcg") && !qtest_has_accel("tcg")) {
            continue;
        }
        qtest_add_data_func(path, &refused[i], test_refused);
    }

    return g_test_run();
}
