/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What stands in the marked memory of a guest: known to the program that
 * writes it there (markers.c) and to the one that looks for it (witness.c).
 */
#ifndef MARKERS_H
#define MARKERS_H

#include <stdint.h>

#define PAGE 4096
#define WORDS (PAGE / 8)

/*
 * Heap pages, page cache pages, and processes that sleep in poll(2) with an
 * array of POLLFDS entries: as many as the kernel keeps on its stack.
 */
enum { HEAP = 64, CACHE = 64, STACKS = 8, MARKED = HEAP + CACHE + STACKS };
enum { POLLFDS = 30 };

/* Word @j of the marked page @k.  Nothing else has it, in memory or in a file. */
static inline uint64_t marker_word(uint64_t seed, unsigned int k, unsigned int j)
{
	uint64_t x = seed + (k * WORDS + j + 1) * 0x9e3779b97f4a7c15ull;

	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
	x ^= x >> 31;
	/* A struct pollfd that poll(2) passes over: fd < 0, revents = 0. */
	return k < HEAP + CACHE ? x : (x & 0xffffffffffffull) | 0x80000000;
}

#endif
