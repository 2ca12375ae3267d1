// SPDX-License-Identifier: GPL-2.0
/*
 * markers: runs in a guest, as root, statically linked.  Fills heap and page
 * cache pages with marker words and puts some on kernel stacks, says on
 * standard output which they are and where (gfn), and sleeps.  On SIGTERM it
 * says whether they still stand where they stood.
 */
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/wait.h>
#include <unistd.h>

#include "markers.h"

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static uint64_t gfn_of(int pagemap, const void *page)
{
	uint64_t entry;

	if (pread(pagemap, &entry, 8, (uintptr_t)page / PAGE * 8) != 8 || !(entry >> 63))
		die("pagemap");
	return entry & ((1ull << 55) - 1);
}

static void stop(int sig)
{
}

int main(void)
{
	uint64_t *pages, gfn[HEAP + CACHE], seed;
	int file, pagemap, intact = 1, status;
	pid_t child[STACKS];

	if (getrandom(&seed, sizeof(seed), 0) != sizeof(seed))
		die("getrandom");
	file = open("/run/markers", O_RDWR | O_CREAT, 0600);
	pagemap = open("/proc/self/pagemap", O_RDONLY);
	if (file < 0 || pagemap < 0 || ftruncate(file, CACHE * PAGE))
		die("/run/markers, pagemap");
	pages = mmap(NULL, (HEAP + CACHE) * PAGE, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (pages == MAP_FAILED ||
	    mmap(pages + HEAP * WORDS, CACHE * PAGE, PROT_READ | PROT_WRITE,
		 MAP_SHARED | MAP_FIXED, file, 0) == MAP_FAILED || mlockall(MCL_CURRENT))
		die("mmap");
	for (int k = 0; k < HEAP + CACHE; k++)
		for (int j = 0; j < WORDS; j++)
			pages[k * WORDS + j] = marker_word(seed, k, j);

	for (int i = 0; i < STACKS; i++) {
		child[i] = fork();
		if (child[i] < 0)
			die("fork");
		if (!child[i]) {
			uint64_t fds[POLLFDS];

			prctl(PR_SET_PDEATHSIG, SIGKILL);
			/* The copy out here differs from the kernel's in revents. */
			for (int j = 0; j < POLLFDS; j++)
				fds[j] = marker_word(seed, HEAP + CACHE + i, j) | 0xffff000000000000ull;
			poll((struct pollfd *)fds, POLLFDS, -1);
			_exit(1);
		}
	}
	signal(SIGTERM, stop);
	printf("seed %llx\n", (unsigned long long)seed);
	for (int k = 0; k < HEAP + CACHE; k++) {
		gfn[k] = gfn_of(pagemap, pages + k * WORDS);
		printf("gfn %d %llx\n", k, (unsigned long long)gfn[k]);
	}
	/* The children need a moment to get to sleep. */
	sleep(2);
	printf("ready\n");
	fflush(stdout);
	pause();

	for (int k = 0; k < HEAP + CACHE; k++) {
		intact &= gfn[k] == gfn_of(pagemap, pages + k * WORDS);
		for (int j = 0; j < WORDS; j++)
			intact &= pages[k * WORDS + j] == marker_word(seed, k, j);
	}
	for (int i = 0; i < STACKS; i++)
		intact &= waitpid(child[i], &status, WNOHANG) == 0;
	printf("%s\n", intact ? "intact" : "changed");
	return !intact;
}
