/*
 * Guest RAM that can be taken away from QEMU
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <setjmp.h>
#include <sys/mman.h>

#include "qemu/atomic.h"
#include "qemu/bswap.h"
#include "qemu/error-report.h"
#include "qemu/event_notifier.h"
#include "qemu/log.h"
#include "qemu/madvise.h"
#include "qemu/main-loop.h"
#include "qapi/error.h"
#include "exec/memory.h"
#include "exec/ramblock.h"
#include "system/convertible-ram.h"
#include "system/hostmem.h"
#include "system/runstate.h"
#include "trace.h"

/*
 * Where convertible RAM is.  The signal handler reads this without a lock:
 * entries are filled in before num_ranges is advanced, and an entry with size
 * zero is free.  Written with the BQL held.
 */
typedef struct ConvertibleRange {
    uint8_t *host;
    size_t size;
    int fd;
    const char *name;
    /* Scratch pages stand in for private ones; set by the signal handler. */
    bool scratch;
} ConvertibleRange;

/* Enough for one memory backend per NUMA node. */
static ConvertibleRange ranges[MAX_NODES];
static unsigned int num_ranges;

/* Where to continue when this thread's access is refused; NULL: unguarded. */
static __thread sigjmp_buf *guard;

/* The first unguarded access since the last reset, for the message. */
static EventNotifier stop_notifier;
static bool stop_pending;
static ConvertibleRange *stop_range;
static size_t stop_offset;
static int stop_tid;

static ConvertibleRange *convertible_ram_find(const void *addr)
{
    unsigned int i, n = qatomic_load_acquire(&num_ranges);

    for (i = 0; i < n; i++) {
        ConvertibleRange *r = &ranges[i];

        if ((uintptr_t)addr - (uintptr_t)r->host < qatomic_read(&r->size)) {
            return r;
        }
    }
    return NULL;
}

bool convertible_ram_in_use(void)
{
    return qatomic_read(&num_ranges) != 0;
}

/* Runs in the main loop, some time after the access. */
static void convertible_ram_stop(EventNotifier *n)
{
    if (!event_notifier_test_and_clear(n) || !stop_range) {
        return;
    }
    error_report("thread %d used memory of '%s' at offset 0x%zx for a device "
                 "while the guest made it private; stopping the machine, which "
                 "must be reset", stop_tid, stop_range->name, stop_offset);
    vm_stop(RUN_STATE_INTERNAL_ERROR);
}

bool convertible_ram_add(RAMBlock *rb, Error **errp)
{
    static bool initialized;
    ConvertibleRange *r;
    unsigned int i;

    assert(rb->flags & RAM_CONVERTIBLE);

    if (!initialized) {
        sigset_t set;

        int ret = event_notifier_init(&stop_notifier, false);

        if (ret < 0) {
            error_setg_errno(errp, -ret, "could not create an event notifier");
            return false;
        }
        event_notifier_set_handler(&stop_notifier, convertible_ram_stop);

        /*
         * The kernel kills a process that causes SIGBUS with SIGBUS blocked.
         * It is blocked nowhere but in the main thread.
         */
        sigemptyset(&set);
        sigaddset(&set, SIGBUS);
        pthread_sigmask(SIG_UNBLOCK, &set, NULL);
        initialized = true;
    }

    for (i = 0; i < num_ranges && ranges[i].size; i++) {
        ;
    }
    if (i == ARRAY_SIZE(ranges)) {
        error_setg(errp, "too many memory backends whose memory the guest can "
                   "make private, at most %zu are supported",
                   ARRAY_SIZE(ranges));
        return false;
    }
    r = &ranges[i];
    r->host = rb->host;
    r->fd = rb->fd;
    r->name = memory_region_name(rb->mr);
    r->scratch = false;
    qatomic_set(&r->size, rb->max_length);
    if (i == num_ranges) {
        qatomic_store_release(&num_ranges, i + 1);
    }
    return true;
}

void convertible_ram_remove(RAMBlock *rb)
{
    ConvertibleRange *r = convertible_ram_find(rb->host);

    if (r) {
        qatomic_set(&r->size, 0);
    }
}

bool convertible_ram_sigbus(const siginfo_t *info)
{
    ConvertibleRange *r;
    uint8_t *page;
    int saved_errno;

    /* BUS_MCEERR_AO is not about an access of this thread. */
    if (info->si_code != BUS_ADRERR && info->si_code != BUS_MCEERR_AR) {
        return false;
    }
    r = convertible_ram_find(info->si_addr);
    if (!r) {
        return false;
    }

    if (qatomic_read(&guard)) {
        sigjmp_buf *env = qatomic_read(&guard);
        sigset_t set;

        /* sigsetjmp() does not save the mask: that would be a system call. */
        sigemptyset(&set);
        sigaddset(&set, SIGBUS);
        pthread_sigmask(SIG_UNBLOCK, &set, NULL);
        siglongjmp(*env, 1);
    }

    if (info->si_code != BUS_ADRERR) {
        return false;
    }

    /*
     * A device model uses a mapping that it made when the page was shared.
     * There is no way to make an arbitrary access fail, so give it a page of
     * its own: nothing that is read comes from the guest, and nothing that is
     * written gets there, because KVM takes protected memory from the file
     * and not from this mapping.
     */
    saved_errno = errno;
    page = (void *)QEMU_ALIGN_DOWN((uintptr_t)info->si_addr,
                                   qemu_real_host_page_size());
    if (mmap(page, qemu_real_host_page_size(), PROT_READ | PROT_WRITE,
             MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED) {
        return false;
    }
    qatomic_set(&r->scratch, true);
    if (!qatomic_xchg(&stop_pending, true)) {
        stop_range = r;
        stop_offset = page - r->host;
        stop_tid = qemu_get_thread_id();
        event_notifier_set(&stop_notifier);
    }
    errno = saved_errno;
    return true;
}

/*
 * Not inlined: nothing in the caller may live in a register that siglongjmp()
 * restores to an old value.
 */
bool __attribute__((noinline))
convertible_ram_copy(void *dst, const void *src, size_t len)
{
    sigjmp_buf env;

    if (sigsetjmp(env, 0)) {
        qatomic_set(&guard, NULL);
        trace_convertible_ram_refused(dst, src, len);
        qemu_log_mask(LOG_GUEST_ERROR,
                      "access to private guest memory refused\n");
        return false;
    }

    qatomic_set(&guard, &env);
    barrier();
    switch (len) {
    case 1:
        stb_p(dst, ldub_p(src));
        break;
    case 2:
        stw_he_p(dst, lduw_he_p(src));
        break;
    case 4:
        stl_he_p(dst, ldl_he_p(src));
        break;
    case 8:
        stq_he_p(dst, ldq_he_p(src));
        break;
    default:
        memmove(dst, src, len);
        break;
    }
    barrier();
    qatomic_set(&guard, NULL);
    return true;
}

size_t __attribute__((noinline))
convertible_ram_accessible(const void *host, size_t len)
{
    const size_t page_size = qemu_real_host_page_size();
    /* volatile: the value is not used, but the access must happen */
    const volatile uint8_t *p = host;
    /* volatile: keeps its value over siglongjmp() */
    volatile size_t done = 0;
    sigjmp_buf env;

    if (sigsetjmp(env, 0)) {
        qatomic_set(&guard, NULL);
        trace_convertible_ram_not_mapped(host, len, done);
        qemu_log_mask(LOG_GUEST_ERROR,
                      "mapping of private guest memory refused\n");
        return done;
    }

    qatomic_set(&guard, &env);
    barrier();
    while (done < len) {
        size_t next = done + page_size -
                      ((uintptr_t)(p + done) & (page_size - 1));

        (void)p[done];
        done = MIN(next, len);
    }
    barrier();
    qatomic_set(&guard, NULL);
    return len;
}

void convertible_ram_reset(void)
{
    unsigned int i;

    for (i = 0; i < num_ranges; i++) {
        ConvertibleRange *r = &ranges[i];

        if (!r->size || !qatomic_xchg(&r->scratch, false)) {
            continue;
        }
        if (mmap(r->host, r->size, PROT_READ | PROT_WRITE,
                 MAP_FIXED | MAP_SHARED, r->fd, 0) == MAP_FAILED) {
            error_report("could not map guest memory '%s' again: %s",
                         r->name, strerror(errno));
            exit(1);
        }
        qemu_madvise(r->host, r->size, QEMU_MADV_DONTDUMP);
        qemu_madvise(r->host, r->size, QEMU_MADV_DONTFORK);
    }
    if (num_ranges) {
        /* An access that the main loop has not seen yet is history, too. */
        event_notifier_test_and_clear(&stop_notifier);
    }
    stop_range = NULL;
    qatomic_set(&stop_pending, false);
}
