/*
 * Unit tests for RAM that can be taken away from QEMU
 *
 * A mapping behind the end of its file behaves like one of private memory:
 * accesses raise SIGBUS with BUS_ADRERR.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/mman.h>
#include "qemu/main-loop.h"
#include "qemu/memfd.h"
#include "qapi/error.h"
#include "exec/memory.h"
#include "exec/ramblock.h"
#include "system/convertible-ram.h"
#include "system/numa.h"
#include "system/runstate.h"

#define NUM_PAGES 16

static RAMBlock rb;
static size_t page_size;
static int num_stops;

int vm_stop(RunState state)
{
    g_assert_cmpint(state, ==, RUN_STATE_INTERNAL_ERROR);
    num_stops++;
    return 0;
}

const char *memory_region_name(const MemoryRegion *mr)
{
    return "ram0";
}

static void sigbus_handler(int sig, siginfo_t *info, void *ctx)
{
    if (!convertible_ram_sigbus(info)) {
        _exit(1);
    }
}

static void set_shared_pages(unsigned int num)
{
    g_assert_cmpint(ftruncate(rb.fd, num * page_size), ==, 0);
}

static void test_setup(void)
{
    convertible_ram_reset();
    num_stops = 0;
    set_shared_pages(0);
    set_shared_pages(NUM_PAGES);
    memset(rb.host, 0x5a, rb.max_length);
}

static void test_copy(void)
{
    g_autofree uint8_t *buf = g_malloc0(rb.max_length);
    uint64_t val = 0;
    size_t len;
    int i;

    test_setup();
    g_assert_true(convertible_ram_copy(buf, rb.host, rb.max_length));
    g_assert_cmpint(buf[rb.max_length - 1], ==, 0x5a);

    set_shared_pages(2);
    /* Many times: neither stack nor signal mask may leak. */
    for (i = 0; i < 1000; i++) {
        for (len = 1; len <= 16; len++) {
            uint8_t *shared = rb.host + 2 * page_size - len;
            uint8_t *private = rb.host + 2 * page_size;

            g_assert_true(convertible_ram_copy(buf, shared, len));
            g_assert_true(convertible_ram_copy(shared, buf, len));
            g_assert_false(convertible_ram_copy(buf, private, len));
            g_assert_false(convertible_ram_copy(private, buf, len));
        }
        g_assert_false(convertible_ram_copy(buf, rb.host, rb.max_length));
    }

    /* Also after a failure */
    g_assert_true(convertible_ram_copy(&val, rb.host, sizeof(val)));
    g_assert_cmphex(val, ==, 0x5a5a5a5a5a5a5a5a);
    g_assert_cmpint(num_stops, ==, 0);
}

static void test_accessible(void)
{
    uint8_t *end = rb.host + 2 * page_size;

    test_setup();
    g_assert_cmpint(convertible_ram_accessible(rb.host, rb.max_length), ==,
                    rb.max_length);
    g_assert_cmpint(convertible_ram_accessible(rb.host + 10, 0), ==, 0);

    set_shared_pages(2);
    g_assert_cmpint(convertible_ram_accessible(rb.host, rb.max_length), ==,
                    2 * page_size);
    g_assert_cmpint(convertible_ram_accessible(rb.host + 10, page_size), ==,
                    page_size);
    g_assert_cmpint(convertible_ram_accessible(rb.host + 10, 2 * page_size), ==,
                    2 * page_size - 10);
    g_assert_cmpint(convertible_ram_accessible(end - 1, 1), ==, 1);
    g_assert_cmpint(convertible_ram_accessible(end - 1, 2), ==, 1);
    g_assert_cmpint(convertible_ram_accessible(end, 1), ==, 0);
}

static void *unguarded_write(void *opaque)
{
    /* volatile: the access must happen */
    *(volatile uint8_t *)opaque = 7;
    return NULL;
}

static void test_unguarded(void)
{
    /* volatile: the accesses must happen */
    volatile uint8_t *ram = rb.host;
    QemuThread thread;
    uint8_t val;

    test_setup();
    set_shared_pages(2);

    qemu_thread_create(&thread, "write", unguarded_write,
                       rb.host + 3 * page_size + 5, QEMU_THREAD_JOINABLE);
    qemu_thread_join(&thread);
    g_assert_cmpint(ram[3 * page_size + 5], ==, 7);
    g_assert_cmpint(ram[4 * page_size], ==, 0);

    /* The machine is stopped in the main loop, once. */
    g_assert_cmpint(num_stops, ==, 0);
    main_loop_wait(true);
    g_assert_cmpint(num_stops, ==, 1);
    main_loop_wait(true);
    g_assert_cmpint(num_stops, ==, 1);

    /* Nothing of that remains after a reset... */
    set_shared_pages(NUM_PAGES);
    convertible_ram_reset();
    g_assert_cmpint(ram[3 * page_size + 5], ==, 0);
    g_assert_cmpint(ram[0], ==, 0x5a);
    ram[3 * page_size] = 1;
    g_assert_cmpint(pread(rb.fd, &val, 1, 3 * page_size), ==, 1);
    g_assert_cmpint(val, ==, 1);

    /* ... and it can happen again. */
    set_shared_pages(2);
    ram[3 * page_size] = 2;
    main_loop_wait(true);
    g_assert_cmpint(num_stops, ==, 2);
    set_shared_pages(NUM_PAGES);
    convertible_ram_reset();
    g_assert_cmpint(ram[3 * page_size], ==, 0);

    /* A reset in the same turn of the main loop: nothing to stop any more. */
    set_shared_pages(2);
    ram[3 * page_size] = 3;
    set_shared_pages(NUM_PAGES);
    convertible_ram_reset();
    main_loop_wait(true);
    g_assert_cmpint(num_stops, ==, 2);
}

static void test_too_many(void)
{
    /* Never accessed; the address of the block itself will do. */
    static RAMBlock blocks[2 * MAX_NODES];
    Error *err = NULL;
    int i, num = 0;

    while (num < ARRAY_SIZE(blocks)) {
        blocks[num].flags = RAM_CONVERTIBLE;
        blocks[num].host = (uint8_t *)&blocks[num];
        blocks[num].max_length = 1;
        if (!convertible_ram_add(&blocks[num], &err)) {
            break;
        }
        num++;
    }
    error_free_or_abort(&err);
    /* One of them is that of the other tests. */
    g_assert_cmpint(num, ==, MAX_NODES - 1);

    convertible_ram_remove(&blocks[5]);
    g_assert_true(convertible_ram_add(&blocks[num], &error_abort));
    for (i = 0; i <= num; i++) {
        convertible_ram_remove(&blocks[i]);
    }
}

int main(int argc, char **argv)
{
    struct sigaction action = {
        .sa_sigaction = sigbus_handler,
        .sa_flags = SA_SIGINFO,
    };

    g_test_init(&argc, &argv, NULL);
    qemu_init_main_loop(&error_abort);
    sigaction(SIGBUS, &action, NULL);

    page_size = qemu_real_host_page_size();
    rb.flags = RAM_CONVERTIBLE;
    rb.max_length = NUM_PAGES * page_size;
    rb.fd = qemu_memfd_create("ram0", rb.max_length, false, 0, 0, &error_abort);
    rb.host = mmap(NULL, rb.max_length, PROT_READ | PROT_WRITE, MAP_SHARED,
                   rb.fd, 0);
    g_assert(rb.host != MAP_FAILED);
    convertible_ram_add(&rb, &error_abort);

    g_test_add_func("/convertible-ram/copy", test_copy);
    g_test_add_func("/convertible-ram/accessible", test_accessible);
    g_test_add_func("/convertible-ram/unguarded", test_unguarded);
    g_test_add_func("/convertible-ram/too-many", test_too_many);

    return g_test_run();
}
