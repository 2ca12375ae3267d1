/*
 * Guest RAM that can be taken away from QEMU
 *
 * RAM_CONVERTIBLE blocks are mmap-ed guest_memfds in which the guest decides,
 * page by page and at any time, whether QEMU may access a page.  An access to
 * a page that is private raises SIGBUS (BUS_ADRERR) in the thread that made
 * it, and fails with EFAULT in a system call.
 *
 * Three things keep QEMU alive:
 *
 *  - Accesses through the address_space_*() functions use
 *    convertible_ram_copy() and return MEMTX_ERROR.
 *
 *  - address_space_map() and friends refuse to map what is private, with
 *    convertible_ram_accessible(), so that the device model reports an error
 *    as it does for an address without memory behind it.
 *
 *  - What was shared when it was mapped can turn private while a device uses
 *    the mapping; a well-behaved guest never does that.  The access is let
 *    through to a scratch page that the guest never sees, and the machine is
 *    stopped.  A reset of the machine drops the scratch pages.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef SYSTEM_CONVERTIBLE_RAM_H
#define SYSTEM_CONVERTIBLE_RAM_H

#ifdef CONFIG_LINUX

#include <signal.h>

/**
 * convertible_ram_add: start handling refused accesses to a RAM block
 * @rb: RAM block with %RAM_CONVERTIBLE, mapped from its file descriptor
 * @errp: pointer to an error
 *
 * Called with the BQL held, before the guest can use the block.
 *
 * Returns: %false and sets @errp if there are too many such blocks.
 */
bool convertible_ram_add(RAMBlock *rb, Error **errp);

/**
 * convertible_ram_remove: the opposite of convertible_ram_add()
 * @rb: RAM block
 */
void convertible_ram_remove(RAMBlock *rb);

/**
 * convertible_ram_copy: copy to or from convertible RAM
 * @dst: destination
 * @src: source
 * @len: number of bytes
 *
 * At most one of @dst and @src is in convertible RAM.  A copy of 1, 2, 4 or 8
 * bytes is a single access.
 *
 * Returns: %false if private memory was hit.  Bytes in front of it may have
 * been copied.
 */
bool convertible_ram_copy(void *dst, const void *src, size_t len);

/**
 * convertible_ram_accessible: find out how much of a range is shared
 * @host: address in convertible RAM
 * @len: length of the range
 *
 * Shared pages that have not been touched yet are populated.
 *
 * Returns: the number of bytes from @host on that are not private, at most
 * @len.  The guest can change that at any time.
 */
size_t convertible_ram_accessible(const void *host, size_t len);

/**
 * convertible_ram_sigbus: handle a SIGBUS
 * @info: what the signal handler got
 *
 * Async-signal-safe.  Does not return if it interrupted
 * convertible_ram_copy() or convertible_ram_accessible().
 *
 * Returns: %true if the access was made to convertible RAM and can be
 * restarted.
 */
bool convertible_ram_sigbus(const siginfo_t *info);

/**
 * convertible_ram_in_use: is there any convertible RAM?
 *
 * Async-signal-safe.
 */
bool convertible_ram_in_use(void);

/**
 * convertible_ram_reset: undo what refused accesses did to QEMU's mappings
 *
 * Called with the BQL held and all vCPUs stopped, after the memory has become
 * shared.
 */
void convertible_ram_reset(void);

#else /* !CONFIG_LINUX: no RAM block has RAM_CONVERTIBLE */

static inline bool convertible_ram_add(RAMBlock *rb, Error **errp)
{
    g_assert_not_reached();
}

static inline void convertible_ram_remove(RAMBlock *rb)
{
    g_assert_not_reached();
}

static inline bool convertible_ram_copy(void *dst, const void *src, size_t len)
{
    g_assert_not_reached();
}

static inline size_t convertible_ram_accessible(const void *host, size_t len)
{
    g_assert_not_reached();
}

#endif /* CONFIG_LINUX */

#endif
