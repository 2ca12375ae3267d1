// SPDX-License-Identifier: GPL-2.0-only
/*
 * Which addresses copy_from_kernel_nofault() may read.
 */
#include <linux/bits.h>
#include <linux/uaccess.h>

/* What TTBR0 translates is nobody's: user memory, or the window of unmapped pools. */
bool copy_from_kernel_nofault_allowed(const void *src, size_t size)
{
	unsigned long addr = (unsigned long)src;

	return (addr & BIT(55)) && ((addr + size - 1) & BIT(55));
}
