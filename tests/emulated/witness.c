// SPDX-License-Identifier: GPL-2.0
/*
 * witness DUMP SYSTEM.MAP MARKERS ordinary|protected|hidden alive|dead
 *
 * Looks from outside at the emulated host: DUMP is its physical memory from 0
 * on (pmemsave), taken while it stood still.  Finds every word of the markers
 * that a guest has written (MARKERS: what markers.c printed), and walks all
 * page tables of the host, so that what the host's code says of itself does not
 * matter.  SYSTEM.MAP tells where the host's own page table is; it must have
 * been booted with nokaslr and without a separate user page table (pti=off).
 * Prints TAP.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "markers.h"

#define PRESENT 1ull
#define LARGE (1ull << 7)
#define ADDRESS 0x000ffffffffff000ull
#define NOTHING UINT64_MAX
#define KERNEL_TEXT 0xffffffff80000000ull

static const uint64_t *memory;	/* the dump */
static uint64_t npages;
static int levels;
static uint64_t seed, gfn[MARKED];
static uint64_t root;		/* of init_mm */

/* Where page k of the markers was found (the first place), and what maps that. */
static uint64_t pfn[MARKED];
static unsigned int by_kernel[MARKED], by_user[MARKED];
static int16_t *marked_page;	/* by pfn: k + 1 */

static int points, failed;

static void point(bool ok, const char *name)
{
	printf("%sok %d - %s\n", ok ? "" : "not ", ++points, name);
	failed |= !ok;
}

static void die(const char *what)
{
	printf("not ok %d - witness: %s%s%s\n", points + 1, what, errno ? ": " : "",
	       errno ? strerror(errno) : "");
	exit(1);
}

/* ---------------------------------------------------------------- markers */

static struct { uint64_t word; int k; } *table;
#define TABLE (1 << 18)
static uint64_t filter[1 << 16];

static unsigned int hash(uint64_t x, int bits)
{
	return (x * 0x9e3779b97f4a7c15ull) >> (64 - bits);
}

static unsigned int words_of(int k)
{
	return k < HEAP + CACHE ? WORDS : POLLFDS;
}

static void know_markers(void)
{
	table = calloc(TABLE, sizeof(*table));
	if (!table)
		die("memory");
	for (int k = 0; k < MARKED; k++) {
		for (unsigned int j = 0; j < words_of(k); j++) {
			uint64_t word = marker_word(seed, k, j);
			unsigned int h = hash(word, 18), f = hash(word, 22);

			while (table[h].word)
				h = (h + 1) % TABLE;
			table[h].word = word;
			table[h].k = k;
			filter[f / 64] |= 1ull << f % 64;
		}
	}
}

static int marker_of(uint64_t word)
{
	unsigned int h = hash(word, 18), f = hash(word, 22);

	if (!(filter[f / 64] >> f % 64 & 1))
		return -1;
	for (; table[h].word; h = (h + 1) % TABLE)
		if (table[h].word == word)
			return table[h].k;
	return -1;
}

/*
 * Every word of physical memory, aligned as a struct pollfd is, to 4 bytes.
 * Returns how many are a marker's.
 */
static uint64_t find_markers(unsigned int *whole, unsigned int *stray)
{
	uint64_t hits = 0;

	for (uint64_t p = 0; p < npages; p++) {
		unsigned int count[MARKED], n = 0;

		for (int at = 0; at <= PAGE - 8; at += 4) {
			uint64_t word;
			int k;

			memcpy(&word, (const char *)(memory + p * WORDS) + at, 8);
			k = marker_of(word);
			if (k < 0)
				continue;
			if (!n++)
				memset(count, 0, sizeof(count));
			count[k]++;
		}
		hits += n;
		for (int k = 0; n && k < MARKED; k++) {
			if (!count[k])
				continue;
			if (count[k] == words_of(k) && pfn[k] == NOTHING) {
				pfn[k] = p;
				++*whole;
				marked_page[p] = k + 1;
			} else {
				++*stray;
				printf("# %u of the %u words of page %d stand in pfn 0x%llx, too\n",
				       count[k], words_of(k), k, (unsigned long long)p);
			}
		}
	}
	return hits;
}

/* ---------------------------------------------------------------- page tables */

static const uint64_t *table_at(uint64_t entry)
{
	uint64_t p = (entry & ADDRESS) / PAGE;

	return p < npages ? memory + p * WORDS : NULL;
}

/* Where @address is mapped, in pages; NOTHING if it is not. */
static uint64_t walk(uint64_t from, int depth, uint64_t address)
{
	uint64_t entry = from;

	for (int level = depth; level; level--) {
		const uint64_t *t = table_at(entry);
		int shift = 12 + 9 * (level - 1);

		if (!t)
			return NOTHING;
		entry = t[address >> shift & 511];
		if (!(entry & PRESENT))
			return NOTHING;
		if (level == 1 || (level <= 3 && entry & LARGE))
			return ((entry & ADDRESS) >> shift << (shift - 12)) +
				(address >> 12 & ((1ull << (shift - 12)) - 1));
	}
	return NOTHING;
}

typedef void (*leaf_fn)(uint64_t address, uint64_t pfn, uint64_t count, void *arg);

/* All that is mapped below @entry, a table of @level. */
static void walk_all(uint64_t entry, int level, int from, int to, uint64_t base,
		     leaf_fn fn, void *arg)
{
	const uint64_t *t = table_at(entry);
	int shift = 12 + 9 * (level - 1);

	for (int i = from; t && i < to; i++) {
		uint64_t address = base + ((uint64_t)i << shift);

		if (!(t[i] & PRESENT))
			continue;
		if (level == 1 || (level <= 3 && t[i] & LARGE))
			fn(address, (t[i] & ADDRESS) >> shift << (shift - 12),
			   1ull << (shift - 12), arg);
		else
			walk_all(t[i], level - 1, 0, 512, address, fn, arg);
	}
}

static uint64_t kernel_leaves, user_leaves;

static void host_leaf(uint64_t address, uint64_t first, uint64_t count, void *arg)
{
	unsigned int *by = arg;

	/* The trampoline of secondary CPUs has the direct map's tables at 0, too. */
	if (address == first * PAGE)
		by = by_kernel;
	++*(by == by_kernel ? &kernel_leaves : &user_leaves);
	for (uint64_t p = first; p < first + count && p < npages; p++) {
		int k = marked_page[p] - 1;

		if (k < 0)
			continue;
		if (!by[k]++ && k == 0) {
			uint64_t at = address + (p - first) * PAGE;

			if (at >> (levels * 9 + 11))
				at |= -1ull << (levels * 9 + 12);
			printf("# page 0 of the markers, pfn 0x%llx: mapped by %s at 0x%llx\n",
			       (unsigned long long)p, by == by_kernel ? "the kernel" : "a process",
			       (unsigned long long)at);
		}
	}
}

/* Whether the page is a root of page tables: its upper half is the kernel's. */
static bool is_root(uint64_t p)
{
	const uint64_t *t = memory + p * WORDS, *kernel = table_at(root);

	/* Accessed and dirty are the CPU's. */
	for (int i = 256; i < 512; i++)
		if ((t[i] ^ kernel[i]) & ~0x60ull)
			return false;
	return true;
}

static unsigned int walk_host(void)
{
	unsigned int roots = 0;

	walk_all(root, levels, 256, 512, 0, host_leaf, by_kernel);
	for (uint64_t p = 0; p < npages; p++) {
		if (!is_root(p))
			continue;
		roots++;
		walk_all(p * PAGE, levels, 0, 256, 0, host_leaf, by_user);
	}
	return roots;
}

/* ---------------------------------------------------------------- second stage */

static void stack_leaf(uint64_t address, uint64_t first, uint64_t count, void *arg)
{
	for (uint64_t p = first; p < first + count && p < npages; p++) {
		int k = marked_page[p] - 1;

		if (k >= HEAP + CACHE)
			gfn[k] = address / PAGE + (p - first);
	}
}

/*
 * A second-stage table is one that leads from the gfns the guest has told to
 * the pages found; none of the host's own does.
 */
static unsigned int find_second_stage(void)
{
	unsigned int best = 0;
	uint64_t table_root = 0;
	int depth = 0;

	for (uint64_t p = 0; p < npages; p++) {
		if (is_root(p))
			continue;
		for (int d = 4; d <= 5; d++) {
			unsigned int n = 0;

			for (int k = 0; k < HEAP + CACHE; k++) {
				n += pfn[k] != NOTHING && walk(p * PAGE, d, gfn[k] * PAGE) == pfn[k];
				if (!n)
					break;
			}
			if (n > best) {
				best = n;
				table_root = p;
				depth = d;
			}
		}
	}
	if (best)
		walk_all(table_root * PAGE, depth, 0, 512, 0, stack_leaf, NULL);
	printf("# second-stage table of %d levels at pfn 0x%llx\n", depth, (unsigned long long)table_root);
	return best;
}

/* ---------------------------------------------------------------- the rest */

static uint64_t symbol(const char *map, const char *name)
{
	char line[512], got[256], type;
	unsigned long long address;
	FILE *f = fopen(map, "r");

	if (!f)
		die(map);
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%llx %c %255s", &address, &type, got) == 3 && !strcmp(got, name)) {
			fclose(f);
			return address;
		}
	}
	errno = 0;
	die(name);
	return 0;
}

static void read_markers(const char *path)
{
	unsigned long long x;
	unsigned int known = 0;
	char line[256];
	FILE *f = fopen(path, "r");
	int k;

	if (!f)
		die(path);
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "seed %llx", &x) == 1)
			seed = x;
		else if (sscanf(line, "gfn %d %llx", &k, &x) == 2 && k >= 0 && k < HEAP + CACHE)
			gfn[k] = x, known++;
	}
	fclose(f);
	errno = 0;
	if (!seed || known != HEAP + CACHE)
		die("the guest has not said where its markers are");
}

static unsigned int count(const unsigned int *by, int from, int to)
{
	unsigned int n = 0;

	for (int k = from; k < to; k++)
		n += !!by[k];
	return n;
}

int main(int argc, char **argv)
{
	unsigned int whole = 0, stray = 0, roots, second, ok = 0;
	bool ordinary, protected, dead, often = false;
	uint64_t hits, text;
	char name[256];
	struct stat st;
	int fd;

	if (argc != 6) {
		fprintf(stderr, "usage: witness DUMP SYSTEM.MAP MARKERS ordinary|protected|hidden alive|dead\n");
		return 2;
	}
	ordinary = !strcmp(argv[4], "ordinary");
	protected = !strcmp(argv[4], "protected");
	dead = !strcmp(argv[5], "dead");
	fd = open(argv[1], O_RDONLY);
	if (fd < 0 || fstat(fd, &st))
		die(argv[1]);
	npages = st.st_size / PAGE;
	memory = mmap(NULL, npages * PAGE, PROT_READ, MAP_PRIVATE, fd, 0);
	marked_page = calloc(npages, sizeof(*marked_page));
	if (memory == MAP_FAILED || !marked_page)
		die("memory");
	for (int k = 0; k < MARKED; k++)
		pfn[k] = gfn[k] = NOTHING;
	read_markers(argv[3]);
	know_markers();

	/* The tool itself first: where the kernel's text is, is known. */
	root = symbol(argv[2], "init_top_pgt") - KERNEL_TEXT;
	text = symbol(argv[2], "_text");
	for (levels = 5; levels >= 4; levels--)
		if (walk(root, levels, text) == (text - KERNEL_TEXT) / PAGE)
			break;
	snprintf(name, sizeof(name), "the walk of the host's page tables, %d levels, finds its kernel", levels);
	point(levels >= 4, name);
	if (levels < 4)
		return 1;

	hits = find_markers(&whole, &stray);
	if (dead) {
		snprintf(name, sizeof(name), "none of the %s guest's words is left after its end, %llu found",
			 argv[4], (unsigned long long)hits);
		if (!ordinary)
			point(!hits, name);
		else
			printf("# the ordinary guest has left %llu of its words in the host's memory\n",
			       (unsigned long long)hits);
		return failed;
	}
	snprintf(name, sizeof(name), "%u of %d marked pages of the %s guest are in the host's memory, %u more than once",
		 whole, MARKED, argv[4], stray);
	point(whole == MARKED && !stray, name);

	second = find_second_stage();
	for (int k = HEAP + CACHE; k < MARKED; k++)
		ok += gfn[k] != NOTHING;
	snprintf(name, sizeof(name), "second-stage tables map %u of %d where the guest says, and %u of %d kernel stacks",
		 second, HEAP + CACHE, ok, STACKS);
	point(second == HEAP + CACHE && ok == STACKS, name);

	roots = walk_host();
	printf("# walked %u page tables: %llu entries of the kernel, %llu of processes\n", roots,
	       (unsigned long long)kernel_leaves, (unsigned long long)user_leaves);
	/* More than init's must be there, or the walk has missed the processes. */
	snprintf(name, sizeof(name), "%u page tables were walked", roots);
	point(roots > 2 && user_leaves > 1000 && kernel_leaves > 100, name);

	snprintf(name, sizeof(name), "the kernel maps %u heap, %u page cache and %u stack pages of the %s guest",
		 count(by_kernel, 0, HEAP), count(by_kernel, HEAP, HEAP + CACHE),
		 count(by_kernel, HEAP + CACHE, MARKED), argv[4]);
	point(count(by_kernel, 0, MARKED) == (ordinary ? MARKED : 0), name);
	snprintf(name, sizeof(name), "processes map %u heap, %u page cache and %u stack pages of the %s guest",
		 count(by_user, 0, HEAP), count(by_user, HEAP, HEAP + CACHE),
		 count(by_user, HEAP + CACHE, MARKED), argv[4]);
	/* The VMM may map hidden memory, where it has touched it; nobody else. */
	for (int k = 0; k < MARKED; k++)
		often |= by_user[k] > 1;
	if (ordinary || protected)
		point(count(by_user, 0, MARKED) == (protected ? 0 : MARKED), name);
	else
		point(!often, name);
	return failed;
}
