// SPDX-License-Identifier: GPL-2.0-only
/*
 * Ways for a VMM to reach the memory of its guest, by family of system calls.
 *
 * Each of them is one function, which is called with the same arguments three
 * times: on an ordinary VM, where it has to work; on a shared page of a
 * protected VM, where it has to work as well; and on private pages, where it
 * must be refused in the way that is stated for it, be counted, and leave the
 * guest's memory alone.
 */
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <sys/wait.h>

#include <arpa/inet.h>
#include <linux/aio_abi.h>
#include <linux/futex.h>
#include <netinet/in.h>

#include "kselftest_harness.h"
#include "kvm_syscalls.h"
#include "protmem.h"

#define GPA		PROTMEM_GPA
#define LEN		64
#define ALIAS_GPA	(GPA + SZ_1G)
#define ALIAS_SLOT	30

/* What an attempt returns besides LEN and -errno. */
#define GOT_SIGBUS	-10000		/* minus si_code */
#define CANNOT_TRY	-20000

#ifndef SO_ZEROCOPY
#define SO_ZEROCOPY	60
#endif
#ifndef MSG_ZEROCOPY
#define MSG_ZEROCOPY	0x4000000
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ	22
#define MADV_POPULATE_WRITE	23
#endif

struct attempt {
	struct protmem_vm *p;
	u64 gpa;
	u8 *addr;		/* the VMM's view of @gpa */
	u64 expect[LEN / 8];	/* what is there, if that is asked only */
	u8 buf[PAGE_SIZE] __aligned(PAGE_SIZE);
	const char *why;	/* of CANNOT_TRY */
};

/* Static, since the stack of a thread is no place for a page-aligned page. */
static struct attempt the_attempt;

static long sigbus(int code)
{
	return GOT_SIGBUS - code;
}

static long load(const u8 *addr, u8 *buf)
{
	int i, r;
	u64 val;

	for (i = 0; i < LEN; i += 8) {
		r = protmem_try_read(addr + i, &val);
		if (r)
			return sigbus(r);
		memcpy(buf + i, &val, 8);
	}
	return LEN;
}

static long store(u8 *addr, const u8 *buf)
{
	int i, r;
	u64 val;

	for (i = 0; i < LEN; i += 8) {
		memcpy(&val, buf + i, 8);
		r = protmem_try_write(addr + i, val);
		if (r)
			return sigbus(r);
	}
	return LEN;
}

/* Out of the guest's memory. */

static long try_load(struct attempt *a)
{
	return load(a->addr, a->buf);
}

static long try_process_vm_readv(struct attempt *a)
{
	struct iovec local = { a->buf, LEN }, remote = { a->addr, LEN };
	long r = process_vm_readv(getpid(), &local, 1, &remote, 1, 0);

	return r < 0 ? -errno : r;
}

static long in_child(struct attempt *a, long (*fn)(struct attempt *a, void *arg),
		     void *arg)
{
	struct { long r; u8 buf[LEN]; } msg = { .r = -EPIPE };
	int fds[2], status;
	pid_t pid;

	if (pipe(fds))
		return -errno;
	pid = fork();
	if (!pid) {
		msg.r = fn(a, arg);
		memcpy(msg.buf, a->buf, LEN);
		if (write(fds[1], &msg, sizeof(msg)) != sizeof(msg))
			_exit(1);
		_exit(0);
	}
	close(fds[1]);
	if (read(fds[0], &msg, sizeof(msg)) != sizeof(msg))
		msg.r = -EPIPE;
	close(fds[0]);
	waitpid(pid, &status, 0);
	memcpy(a->buf, msg.buf, LEN);
	return msg.r;
}

static long child_process_vm_readv(struct attempt *a, void *arg)
{
	struct iovec local = { a->buf, LEN }, remote = { a->addr, LEN };
	long r = process_vm_readv(getppid(), &local, 1, &remote, 1, 0);

	return r < 0 ? -errno : r;
}

static long try_process_vm_readv_other(struct attempt *a)
{
	prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
	return in_child(a, child_process_vm_readv, NULL);
}

static long proc_mem(struct attempt *a, const char *pid, bool write_it)
{
	char path[64];
	long r;
	int fd;

	snprintf(path, sizeof(path), "/proc/%s/mem", pid);
	fd = open(path, O_RDWR);
	if (fd < 0)
		return -errno;
	r = write_it ? pwrite(fd, a->buf, LEN, (off_t)(unsigned long)a->addr) :
		       pread(fd, a->buf, LEN, (off_t)(unsigned long)a->addr);
	if (r < 0)
		r = -errno;
	close(fd);
	return r;
}

static long try_proc_self_mem(struct attempt *a)
{
	return proc_mem(a, "self", false);
}

static long child_proc_mem(struct attempt *a, void *arg)
{
	char pid[16];

	snprintf(pid, sizeof(pid), "%d", getppid());
	return proc_mem(a, pid, false);
}

static long try_proc_pid_mem(struct attempt *a)
{
	prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
	return in_child(a, child_proc_mem, NULL);
}

/* The tracee has inherited the mapping. */
static long do_ptrace(struct attempt *a, bool poke)
{
	int status, i;
	long r = LEN, word;
	pid_t pid = fork();

	if (!pid) {
		ptrace(PTRACE_TRACEME, 0, NULL, NULL);
		raise(SIGSTOP);
		_exit(0);
	}
	waitpid(pid, &status, 0);
	for (i = 0; i < LEN; i += 8) {
		errno = 0;
		if (poke) {
			memcpy(&word, a->buf + i, 8);
			ptrace(PTRACE_POKEDATA, pid, a->addr + i, word);
		} else {
			word = ptrace(PTRACE_PEEKDATA, pid, a->addr + i, NULL);
			memcpy(a->buf + i, &word, 8);
		}
		if (errno) {
			r = -errno;
			break;
		}
	}
	kill(pid, SIGKILL);
	waitpid(pid, &status, 0);
	return r;
}

static long try_ptrace_peek(struct attempt *a)
{
	return do_ptrace(a, false);
}

static long try_write_pipe(struct attempt *a)
{
	int fds[2];
	long r;

	if (pipe(fds))
		return -errno;
	r = write(fds[1], a->addr, LEN);
	if (r < 0)
		r = -errno;
	else
		r = read(fds[0], a->buf, LEN);
	close(fds[0]);
	close(fds[1]);
	return r;
}

static long try_writev_file(struct attempt *a)
{
	struct iovec iov[2] = { { a->addr, LEN / 2 }, { a->addr + LEN / 2, LEN / 2 } };
	int fd = memfd_create("protmem", 0);
	long r = writev(fd, iov, 2);

	if (r < 0)
		r = -errno;
	else
		r = pread(fd, a->buf, LEN, 0);
	close(fd);
	return r;
}

static long try_vmsplice(struct attempt *a)
{
	struct iovec iov = { a->addr, LEN };
	int fds[2];
	long r;

	if (pipe(fds))
		return -errno;
	r = vmsplice(fds[1], &iov, 1, 0);
	if (r < 0)
		r = -errno;
	else
		r = read(fds[0], a->buf, LEN);
	close(fds[0]);
	close(fds[1]);
	return r;
}

static long do_send(struct attempt *a, int type)
{
	int fds[2];
	long r;

	if (socketpair(AF_UNIX, type, 0, fds)) {
		a->why = "no AF_UNIX sockets";
		return CANNOT_TRY;
	}
	r = send(fds[1], a->addr, LEN, 0);
	if (r < 0)
		r = -errno;
	else
		r = recv(fds[0], a->buf, LEN, 0);
	close(fds[0]);
	close(fds[1]);
	return r;
}

static long try_send_stream(struct attempt *a)
{
	return do_send(a, SOCK_STREAM);
}

static long try_send_dgram(struct attempt *a)
{
	return do_send(a, SOCK_DGRAM);
}

static long try_tcp_zerocopy(struct attempt *a)
{
	struct sockaddr_in sin = {
		.sin_family = AF_INET,
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK),
	};
	socklen_t len = sizeof(sin);
	int one = 1, l, c, s = -1;
	long r = CANNOT_TRY;

	l = socket(AF_INET, SOCK_STREAM, 0);
	c = socket(AF_INET, SOCK_STREAM, 0);
	if (l < 0 || c < 0 || bind(l, (void *)&sin, sizeof(sin)) ||
	    listen(l, 1) || getsockname(l, (void *)&sin, &len) ||
	    connect(c, (void *)&sin, sizeof(sin))) {
		a->why = "no TCP over the loopback device";
		goto out;
	}
	s = accept(l, NULL, NULL);
	if (setsockopt(c, SOL_SOCKET, SO_ZEROCOPY, &one, sizeof(one))) {
		a->why = "no SO_ZEROCOPY";
		goto out;
	}
	/* Pinned, not copied. */
	r = send(c, a->addr, LEN, MSG_ZEROCOPY);
	if (r < 0)
		r = -errno;
	else
		r = recv(s, a->buf, LEN, MSG_WAITALL);
out:
	close(s);
	close(c);
	close(l);
	return r;
}

/* Page-sized, into a file on something that really does direct I/O. */
static long do_direct(struct attempt *a, bool write_it)
{
	const char *dir = getenv("PROTMEM_DIRECT_DIR") ?: ".";
	struct statfs fs;
	char path[256];
	long r;
	int fd;

	if (statfs(dir, &fs) || fs.f_type == 0x01021994 /* tmpfs */ ||
	    fs.f_type == (typeof(fs.f_type))0x858458f6 /* ramfs */) {
		a->why = "PROTMEM_DIRECT_DIR or the current directory is not on a disk file system";
		return CANNOT_TRY;
	}
	snprintf(path, sizeof(path), "%s/protmem.%d", dir, getpid());
	fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_DIRECT, 0600);
	if (fd < 0) {
		a->why = "no O_DIRECT files in PROTMEM_DIRECT_DIR or the current directory";
		return CANNOT_TRY;
	}
	unlink(path);
	if (write_it) {
		/* From the disk to the guest. */
		r = pwrite(fd, a->buf, PAGE_SIZE, 0);
		if (r == PAGE_SIZE)
			r = pread(fd, a->addr, PAGE_SIZE, 0);
	} else {
		r = pwrite(fd, a->addr, PAGE_SIZE, 0);
		if (r == PAGE_SIZE)
			r = pread(fd, a->buf, PAGE_SIZE, 0);
	}
	r = r < 0 ? -errno : r == PAGE_SIZE ? LEN : -EIO;
	close(fd);
	return r;
}

static long try_direct_write(struct attempt *a)
{
	return do_direct(a, false);
}

static long do_io_uring(struct attempt *a, bool write_it, bool fixed)
{
	struct iovec iov = { a->addr, PAGE_SIZE };
	struct protmem_ring ring;
	int fds[2], op;
	long r;

	r = protmem_ring_open(&ring);
	if (r) {
		a->why = "no io_uring";
		return CANNOT_TRY;
	}
	if (pipe(fds))
		return -errno;

	if (fixed) {
		r = syscall(__NR_io_uring_register, ring.fd,
			    IORING_REGISTER_BUFFERS, &iov, 1);
		if (r < 0) {
			r = -errno;
			goto out;
		}
	}
	if (write_it && write(fds[1], a->buf, LEN) != LEN)
		return -errno;
	op = write_it ? (fixed ? IORING_OP_READ_FIXED : IORING_OP_READ) :
			(fixed ? IORING_OP_WRITE_FIXED : IORING_OP_WRITE);
	r = protmem_ring_submit(&ring, op, write_it ? fds[0] : fds[1], a->addr,
				LEN, fixed ? 0 : -1);
	r = r < 0 ? -errno : protmem_ring_wait(&ring);
	if (r == LEN && !write_it)
		r = read(fds[0], a->buf, LEN);
out:
	close(fds[0]);
	close(fds[1]);
	protmem_ring_close(&ring);
	return r;
}

static long try_io_uring_write(struct attempt *a)
{
	return do_io_uring(a, false, false);
}

static long try_io_uring_fixed(struct attempt *a)
{
	return do_io_uring(a, false, true);
}

static long try_aio_write(struct attempt *a)
{
	int fd = memfd_create("protmem", 0);
	struct iocb cb = {
		.aio_lio_opcode = IOCB_CMD_PWRITE,
		.aio_fildes = fd,
		.aio_buf = (unsigned long)a->addr,
		.aio_nbytes = LEN,
	}, *cbs = &cb;
	struct io_event ev = {};
	aio_context_t ctx = 0;
	long r;

	if (syscall(__NR_io_setup, 1, &ctx)) {
		a->why = "no AIO";
		close(fd);
		return CANNOT_TRY;
	}
	if (syscall(__NR_io_submit, ctx, 1, &cbs) != 1)
		r = -errno;
	else if (syscall(__NR_io_getevents, ctx, 1, 1, &ev, NULL) != 1)
		r = -errno;
	else
		r = ev.res;
	if (r == LEN)
		r = pread(fd, a->buf, LEN, 0);
	syscall(__NR_io_destroy, ctx);
	close(fd);
	return r;
}

/* An oracle: the kernel compares with what is there. */
static long do_futex(struct attempt *a, int flag)
{
	struct timespec ts = { .tv_nsec = 1000000 };
	u32 val = (u32)a->expect[0];

	if (!syscall(__NR_futex, a->addr, FUTEX_WAIT | flag, val, &ts, NULL, 0))
		return -EINTR;
	if (errno != ETIMEDOUT)
		return -errno;
	memcpy(a->buf, a->expect, LEN);
	return LEN;
}

static long try_futex_private(struct attempt *a)
{
	return do_futex(a, FUTEX_PRIVATE_FLAG);
}

static long try_futex_shared(struct attempt *a)
{
	return do_futex(a, 0);
}

/* A string that the kernel copies and tells. */
static long try_prctl_name(struct attempt *a)
{
	char name[16] = {}, old[16] = {};
	long r = LEN;

	prctl(PR_GET_NAME, old);
	if (prctl(PR_SET_NAME, a->addr))
		r = -errno;
	prctl(PR_GET_NAME, name);
	prctl(PR_SET_NAME, old);
	if (r == LEN) {
		if (strncmp(name, (char *)a->expect, 15))
			return -EILSEQ;
		memcpy(a->buf, a->expect, LEN);
	}
	return r;
}

static long try_populate_read(struct attempt *a)
{
	if (madvise(a->addr, PAGE_SIZE, MADV_POPULATE_READ))
		return -errno;
	return load(a->addr, a->buf);
}

static long try_dontneed_load(struct attempt *a)
{
	if (madvise(a->addr, PAGE_SIZE, MADV_DONTNEED))
		return -errno;
	return load(a->addr, a->buf);
}

static long try_willneed_load(struct attempt *a)
{
	/* An answer either way, what counts is that it maps nothing. */
	madvise(a->addr, PAGE_SIZE, MADV_WILLNEED);
	return load(a->addr, a->buf);
}

static long try_mlock_load(struct attempt *a)
{
	mlock(a->addr, PAGE_SIZE);
	return load(a->addr, a->buf);
}

static long try_mprotect_load(struct attempt *a)
{
	mprotect(a->addr, PAGE_SIZE, PROT_NONE);
	mprotect(a->addr, PAGE_SIZE, PROT_READ | PROT_WRITE);
	return load(a->addr, a->buf);
}

static long child_load(struct attempt *a, void *arg)
{
	return load(a->addr, a->buf);
}

static long try_fork(struct attempt *a)
{
	return in_child(a, child_load, NULL);
}

static long map_again(struct attempt *a, int flags, bool move, bool write_it)
{
	u8 *m = mmap(NULL, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | flags,
		     a->p->gmem, a->gpa - GPA), *n;
	long r;

	if (m == MAP_FAILED)
		return -errno;
	if (move) {
		n = kvm_mmap(PAGE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
		m = mremap(m, PAGE_SIZE, PAGE_SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, n);
		if (m == MAP_FAILED)
			return -errno;
	}
	r = write_it ? store(m, a->buf) : load(m, a->buf);
	munmap(m, PAGE_SIZE);
	return r;
}

static long try_second_mapping(struct attempt *a)
{
	return map_again(a, 0, false, false);
}

static long try_populated_mapping(struct attempt *a)
{
	return map_again(a, MAP_POPULATE, false, false);
}

static long try_moved_mapping(struct attempt *a)
{
	return map_again(a, MAP_POPULATE, true, false);
}

static u64 guest_copy(u64 dst, u64 src, u64 c, u64 d)
{
	int i;

	for (i = 0; i < LEN / 8; i++)
		WRITE_ONCE(((u64 *)dst)[i], READ_ONCE(((u64 *)src)[i]));
	return 0;
}

/* Run guest_copy() in @p; it gets stuck if KVM has to refuse. */
static long run_copy(struct protmem_vm *p, u64 dst, u64 src)
{
	long r = LEN;

	protmem_prepare(p, 0, guest_copy, dst, src, 0, 0);
	if (_vcpu_run(p->vcpu[0])) {
		r = -errno;
		protmem_vcpu_reset(p, 0);
	} else if (!protmem_done(p, 0)) {
		r = -EPROTO;
		protmem_vcpu_reset(p, 0);
	}
	return r;
}

static gva_t cmd_data(struct protmem_vm *p)
{
	return p->cmd_gva[0] + offsetof(struct protmem_cmd, data);
}

/* Another VM that gets the VMM's mapping as its ordinary memory. */
static long do_second_vm(struct attempt *a, bool write_it)
{
	struct protmem_opts opts = { .no_slot = true, .no_interrupts = true };
	static struct protmem_vm q;
	long r;

	protmem_vm_create(&q, &opts);
	vm_set_user_memory_region(q.vm, ALIAS_SLOT, 0, GPA, PAGE_SIZE, a->addr);
	if (write_it) {
		memcpy(q.cmd[0]->data, a->buf, LEN);
		r = run_copy(&q, GPA, cmd_data(&q));
	} else {
		r = run_copy(&q, cmd_data(&q), GPA);
		memcpy(a->buf, q.cmd[0]->data, LEN);
	}
	protmem_vm_free(&q);
	return r;
}

static long try_second_vm(struct attempt *a)
{
	return do_second_vm(a, false);
}

/* An ordinary slot of the same VM on top of the same mapping. */
static long do_alias_slot(struct attempt *a, bool write_it)
{
	struct protmem_vm *p = a->p;
	long r;

	vm_set_user_memory_region(p->vm, ALIAS_SLOT, 0, ALIAS_GPA, PAGE_SIZE,
				  a->addr);
	if (!sparsebit_is_set(p->vm->vpages_mapped, ALIAS_GPA >> PAGE_SHIFT))
		virt_map(p->vm, ALIAS_GPA, ALIAS_GPA, 1);
	/* Of an attempt that worked. */
	memset(p->cmd[0]->data, 0, sizeof(p->cmd[0]->data));
	if (write_it) {
		memcpy(p->cmd[0]->data, a->buf, LEN);
		r = run_copy(p, ALIAS_GPA, cmd_data(p));
	} else {
		r = run_copy(p, cmd_data(p), ALIAS_GPA);
		memcpy(a->buf, p->cmd[0]->data, LEN);
	}
	vm_set_user_memory_region(p->vm, ALIAS_SLOT, 0, ALIAS_GPA, 0, NULL);
	return r;
}

static long try_alias_slot(struct attempt *a)
{
	return do_alias_slot(a, false);
}

/* Into the guest's memory. */

static long try_store(struct attempt *a)
{
	return store(a->addr, a->buf);
}

static long try_process_vm_writev(struct attempt *a)
{
	struct iovec local = { a->buf, LEN }, remote = { a->addr, LEN };
	long r = process_vm_writev(getpid(), &local, 1, &remote, 1, 0);

	return r < 0 ? -errno : r;
}

static long try_write_proc_self_mem(struct attempt *a)
{
	return proc_mem(a, "self", true);
}

static long try_ptrace_poke(struct attempt *a)
{
	return do_ptrace(a, true);
}

static long try_read_pipe(struct attempt *a)
{
	int fds[2];
	long r;

	if (pipe(fds) || write(fds[1], a->buf, LEN) != LEN)
		return -errno;
	r = read(fds[0], a->addr, LEN);
	if (r < 0)
		r = -errno;
	close(fds[0]);
	close(fds[1]);
	return r;
}

static long try_readv_file(struct attempt *a)
{
	struct iovec iov[2] = { { a->addr, LEN / 2 }, { a->addr + LEN / 2, LEN / 2 } };
	int fd = memfd_create("protmem", 0);
	long r;

	if (pwrite(fd, a->buf, LEN, 0) != LEN)
		return -errno;
	r = readv(fd, iov, 2);
	if (r < 0)
		r = -errno;
	close(fd);
	return r;
}

static long try_recv(struct attempt *a)
{
	int fds[2];
	long r;

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, fds)) {
		a->why = "no AF_UNIX sockets";
		return CANNOT_TRY;
	}
	if (send(fds[1], a->buf, LEN, 0) != LEN)
		return -errno;
	r = recv(fds[0], a->addr, LEN, 0);
	if (r < 0)
		r = -errno;
	close(fds[0]);
	close(fds[1]);
	return r;
}

static long try_direct_read(struct attempt *a)
{
	return do_direct(a, true);
}

static long try_io_uring_read(struct attempt *a)
{
	return do_io_uring(a, true, false);
}

static long try_io_uring_read_fixed(struct attempt *a)
{
	return do_io_uring(a, true, true);
}

/* The kernel writes what nobody can foresee: take it from the memory. */
static long try_getrandom(struct attempt *a)
{
	long r = syscall(__NR_getrandom, a->addr, LEN, GRND_NONBLOCK | GRND_INSECURE);

	if (r < 0)
		return -errno;
	memcpy(a->buf, a->addr, LEN);
	return r;
}

static long try_futex_wake_op(struct attempt *a)
{
	u32 dummy = 0, val;

	/* *addr ^= 1 */
	if (syscall(__NR_futex, &dummy, FUTEX_WAKE_OP | FUTEX_PRIVATE_FLAG, 1,
		    (void *)1, a->addr,
		    FUTEX_OP(FUTEX_OP_XOR, 1, FUTEX_OP_CMP_EQ, 0)) < 0)
		return -errno;
	memcpy(&val, a->addr, sizeof(val));
	if (val != ((u32)a->expect[0] ^ 1))
		return -EILSEQ;
	memcpy(a->buf, a->addr, LEN);
	return LEN;
}

static long try_populate_write(struct attempt *a)
{
	if (madvise(a->addr, PAGE_SIZE, MADV_POPULATE_WRITE))
		return -errno;
	return store(a->addr, a->buf);
}

static long try_store_second_mapping(struct attempt *a)
{
	return map_again(a, 0, false, true);
}

static long child_store(struct attempt *a, void *arg)
{
	return store(a->addr, a->buf);
}

static long try_fork_store(struct attempt *a)
{
	return in_child(a, child_store, NULL);
}

static long try_second_vm_write(struct attempt *a)
{
	return do_second_vm(a, true);
}

static long try_alias_slot_write(struct attempt *a)
{
	return do_alias_slot(a, true);
}

FIXTURE(family) {
	struct protmem_vm p;
};

FIXTURE_VARIANT(family) {
	long (*fn)(struct attempt *a);
	bool write;
	/* How it is refused: another result is a failure, whatever it leaks. */
	long refused, refused_too;
	/* Refused on shared pages as well, and there without a fault. */
	bool longterm;
	/* Wants the page itself: refused on hidden memory, too. */
	bool pins;
};

#define SIGBUS_ADRERR	(GOT_SIGBUS - BUS_ADRERR)

/* Name, function, and how it is refused, then what else is true of it. */
#define FAMILY(name, how, result, ...)					\
	FIXTURE_VARIANT_ADD(family, name) {				\
		.fn = how, .refused = result, ##__VA_ARGS__		\
	}
#define OR(result)	.refused_too = result
#define WRITES		.write = true
#define LONGTERM	.longterm = true
#define PINS		.pins = true

FAMILY(load, try_load, SIGBUS_ADRERR);
FAMILY(process_vm_readv, try_process_vm_readv, -EFAULT, PINS);
FAMILY(process_vm_readv_other, try_process_vm_readv_other, -EFAULT, PINS);
FAMILY(proc_self_mem, try_proc_self_mem, -EIO, OR(-EFAULT), PINS);
FAMILY(proc_pid_mem, try_proc_pid_mem, -EIO, OR(-EFAULT), PINS);
FAMILY(ptrace_peek, try_ptrace_peek, -EIO, OR(-EFAULT), PINS);
FAMILY(write_pipe, try_write_pipe, -EFAULT);
FAMILY(writev_file, try_writev_file, -EFAULT);
FAMILY(vmsplice, try_vmsplice, -EFAULT, PINS);
FAMILY(send_stream, try_send_stream, -EFAULT);
FAMILY(send_dgram, try_send_dgram, -EFAULT);
FAMILY(tcp_zerocopy, try_tcp_zerocopy, -EFAULT, PINS);
FAMILY(direct_write, try_direct_write, -EFAULT, PINS);
FAMILY(io_uring_write, try_io_uring_write, -EFAULT);
FAMILY(io_uring_fixed, try_io_uring_fixed, -EFAULT,
	OR(-EOPNOTSUPP), LONGTERM, PINS);
FAMILY(aio_write, try_aio_write, -EFAULT);
FAMILY(futex_private, try_futex_private, -EFAULT);
FAMILY(futex_shared, try_futex_shared, -EFAULT, PINS);
FAMILY(prctl_name, try_prctl_name, -EFAULT);
FAMILY(madvise_populate_read, try_populate_read, -EFAULT);
FAMILY(madvise_dontneed, try_dontneed_load, SIGBUS_ADRERR);
FAMILY(madvise_willneed, try_willneed_load, SIGBUS_ADRERR);
FAMILY(mlock, try_mlock_load, SIGBUS_ADRERR);
FAMILY(mprotect, try_mprotect_load, SIGBUS_ADRERR);
FAMILY(fork, try_fork, SIGBUS_ADRERR);
FAMILY(second_mapping, try_second_mapping, SIGBUS_ADRERR);
FAMILY(populated_mapping, try_populated_mapping, SIGBUS_ADRERR);
FAMILY(moved_mapping, try_moved_mapping, SIGBUS_ADRERR);
FAMILY(second_vm, try_second_vm, -EFAULT, PINS);
FAMILY(alias_slot, try_alias_slot, -EFAULT, PINS);
FAMILY(store, try_store, SIGBUS_ADRERR, WRITES);
FAMILY(process_vm_writev, try_process_vm_writev, -EFAULT, WRITES, PINS);
FAMILY(write_proc_self_mem, try_write_proc_self_mem, -EIO,
	OR(-EFAULT), WRITES, PINS);
FAMILY(ptrace_poke, try_ptrace_poke, -EIO, OR(-EFAULT), WRITES, PINS);
FAMILY(read_pipe, try_read_pipe, -EFAULT, WRITES);
FAMILY(readv_file, try_readv_file, -EFAULT, WRITES);
FAMILY(recv, try_recv, -EFAULT, WRITES);
FAMILY(direct_read, try_direct_read, -EFAULT, WRITES, PINS);
FAMILY(io_uring_read, try_io_uring_read, -EFAULT, WRITES);
FAMILY(io_uring_read_fixed, try_io_uring_read_fixed, -EFAULT,
	OR(-EOPNOTSUPP), WRITES, LONGTERM, PINS);
FAMILY(getrandom, try_getrandom, -EFAULT, WRITES);
FAMILY(futex_wake_op, try_futex_wake_op, -EFAULT, WRITES);
FAMILY(madvise_populate_write, try_populate_write, -EFAULT, WRITES);
FAMILY(store_second_mapping, try_store_second_mapping, SIGBUS_ADRERR, WRITES);
FAMILY(fork_store, try_fork_store, SIGBUS_ADRERR, WRITES);
FAMILY(second_vm_write, try_second_vm_write, -EFAULT, WRITES, PINS);
FAMILY(alias_slot_write, try_alias_slot_write, -EFAULT, WRITES, PINS);

/* Of the whole system. */
#define TRACE_EVENT	"kvm/kvm_protmem_refused"

static int trace_refused(void)
{
	char line[512];
	int count = 0;
	FILE *f = fopen(PROTMEM_TRACE, "r");

	if (!f)
		return -1;
	while (fgets(line, sizeof(line), f)) {
		if (line[0] != '#' && strstr(line, "kvm_protmem_refused:"))
			count++;
	}
	fclose(f);
	return count;
}

FIXTURE_SETUP(family)
{
}

FIXTURE_TEARDOWN(family)
{
}

/* The guest writes what is in no file, page by page: the marker. */
static long attempt(struct protmem_vm *p, const FIXTURE_VARIANT(family) *v,
		    u64 gpa, u64 seed)
{
	struct attempt *a = &the_attempt;
	int i;

	protmem_call(p, 0, guest_fill, gpa, PAGE_SIZE, seed);

	memset(a, 0, sizeof(*a));
	a->p = p;
	a->gpa = gpa;
	a->addr = protmem_hva(p, gpa);
	for (i = 0; i < LEN / 8; i++)
		a->expect[i] = protmem_word(seed, gpa + i * 8);
	if (v->write) {
		for (i = 0; i < PAGE_SIZE / 8; i++) {
			u64 w = protmem_word(~seed, gpa + i * 8);

			memcpy(a->buf + i * 8, &w, 8);
		}
	}
	return v->fn(a);
}

/* Whether a successful attempt really did it. */
static bool did_it(struct protmem_vm *p, const FIXTURE_VARIANT(family) *v,
		   u64 gpa, u64 seed)
{
	u64 want;
	int i;

	if (!v->write)
		return protmem_mismatch(the_attempt.buf, gpa, LEN, seed) == LEN;

	for (i = 0; i < LEN / 8; i++) {
		memcpy(&want, the_attempt.buf + i * 8, 8);
		if (protmem_call(p, 0, guest_read64, gpa + i * 8) != want)
			return false;
	}
	return true;
}

static bool is_refused(const FIXTURE_VARIANT(family) *v, long r)
{
	return r == v->refused || (v->refused_too && r == v->refused_too);
}

TEST_F(family, refused)
{
	struct protmem_opts opts = { .caps = PROTMEM_CAPS_ORDINARY, .no_interrupts = true };
	u64 seed = 0x5eed0000 + getpid(), gpa;
	struct protmem_vm *p = &self->p;
	int trace = 0, traced, i;
	u64 stat, counted;
	bool tracing;
	long r;

	/* 1. The ordinary VM. */
	protmem_vm_create(p, &opts);
	r = attempt(p, variant, GPA, seed);
	if (r == CANNOT_TRY) {
		protmem_vm_free(p);
		SKIP(return, "%s", the_attempt.why);
	}
	ASSERT_EQ(LEN, r) {
		TH_LOG("on an ordinary VM: %ld", r);
	}
	ASSERT_TRUE(did_it(p, variant, GPA, seed));
	protmem_vm_free(p);

	/* 2. A shared page of a protected VM. */
	opts.caps = PROTMEM_CAPS;
	protmem_vm_create(p, &opts);
	/* It is protected, i.e. has other pages that are private. */
	ASSERT_EQ(0, protmem_make_private(p, GPA + SZ_1M, SZ_1M));
	r = attempt(p, variant, GPA, seed);
	if (variant->longterm) {
		ASSERT_TRUE(is_refused(variant, r)) {
			TH_LOG("a long-term pin of a shared page: %ld", r);
		}
	} else {
		ASSERT_EQ(LEN, r) {
			TH_LOG("on a shared page: %ld", r);
		}
		ASSERT_TRUE(did_it(p, variant, GPA, seed));
	}
	stat = vm_get_stat(p->vm, protmem_refused);

	/*
	 * 3. Private pages: one that the VMM never had, and the one that it
	 * just had, so that whatever was left of that is tried, too.
	 */
	for (i = 0; i < 2; i++) {
		gpa = i ? GPA : GPA + SZ_1M + 5 * PAGE_SIZE;
		ASSERT_EQ(0, protmem_make_private(p, gpa, PAGE_SIZE));
		stat = vm_get_stat(p->vm, protmem_refused);
		tracing = !protmem_trace_start(TRACE_EVENT);

		r = attempt(p, variant, gpa, seed);
		traced = tracing ? trace_refused() : 0;
		if (tracing)
			protmem_trace_stop(TRACE_EVENT);
		EXPECT_TRUE(is_refused(variant, r)) {
			TH_LOG("on private page %d: %ld", i, r);
		}
		/* Nothing got out even so, nor in. */
		if (!variant->write)
			EXPECT_NE(LEN, protmem_mismatch(the_attempt.buf, gpa,
							LEN, seed));
		EXPECT_EQ(0, protmem_call(p, 0, guest_check, gpa, PAGE_SIZE, seed));

		counted = vm_get_stat(p->vm, protmem_refused) - stat;
		if (!variant->longterm)
			EXPECT_LT(0, counted);
		if (tracing)
			EXPECT_EQ(counted, traced);
		trace += traced;
	}

	/* 4. The guest may change its mind. */
	ASSERT_EQ(0, protmem_make_shared(p, GPA, PAGE_SIZE));
	stat = vm_get_stat(p->vm, protmem_refused);
	r = attempt(p, variant, GPA, seed + 1);
	if (!variant->longterm) {
		ASSERT_EQ(LEN, r);
		ASSERT_TRUE(did_it(p, variant, GPA, seed + 1));
		EXPECT_EQ(stat, vm_get_stat(p->vm, protmem_refused));
	}
	protmem_vm_free(p);
}

/* Memory that is hidden from the kernel alone: what copies works. */
TEST_F(family, hidden)
{
	struct protmem_opts opts = { .caps = PROTMEM_CAPS_HIDE, .no_interrupts = true };
	u64 seed = 0x41de0000 + getpid();
	struct protmem_vm *p = &self->p;
	long r;

	if (!(kvm_check_cap(KVM_CAP_PROTECTED_MEMORY) & KVM_PROTMEM_HIDE_ONLY))
		SKIP(return, "no KVM_PROTMEM_HIDE_ONLY");

	protmem_vm_create(p, &opts);
	r = attempt(p, variant, GPA, seed);
	if (r == CANNOT_TRY) {
		protmem_vm_free(p);
		SKIP(return, "%s", the_attempt.why);
	}
	if (variant->pins) {
		EXPECT_TRUE(is_refused(variant, r)) {
			TH_LOG("%ld", r);
		}
		if (!variant->write)
			EXPECT_NE(LEN, protmem_mismatch(the_attempt.buf, GPA,
							LEN, seed));
		EXPECT_EQ(0, protmem_call(p, 0, guest_check, GPA, PAGE_SIZE, seed));
	} else {
		ASSERT_EQ(LEN, r);
		EXPECT_TRUE(did_it(p, variant, GPA, seed));
	}
	protmem_vm_free(p);
}

TEST(tracepoint)
{
	struct protmem_opts opts = { .caps = PROTMEM_CAPS, .no_interrupts = true };
	struct protmem_vm p;
	u64 val, stat;
	int i;

	if (protmem_trace_start(TRACE_EVENT))
		SKIP(return, "no tracefs at /sys/kernel/tracing with kvm:kvm_protmem_refused");

	protmem_vm_create(&p, &opts);
	ASSERT_EQ(0, protmem_make_private(&p, GPA, 256 * PAGE_SIZE));
	protmem_trace_start(TRACE_EVENT);
	stat = vm_get_stat(p.vm, protmem_refused);
	for (i = 0; i < 17; i++)
		EXPECT_EQ(BUS_ADRERR, protmem_try_read(p.mem + i * PAGE_SIZE, &val));
	EXPECT_EQ(17, trace_refused());
	EXPECT_EQ(stat + 17, vm_get_stat(p.vm, protmem_refused));
	/* What is permitted is no event. */
	EXPECT_EQ(0, protmem_try_read(p.mem + 256 * PAGE_SIZE, &val));
	EXPECT_EQ(17, trace_refused());
	protmem_trace_stop(TRACE_EVENT);
	protmem_vm_free(&p);
}

/* The file itself gives nothing, either. */
TEST(file_io)
{
	struct protmem_opts opts = { .caps = PROTMEM_CAPS, .no_interrupts = true };
	char buf[LEN] = {};
	struct protmem_vm p;
	int fds[2];
	loff_t off = 0;
	void *m;

	protmem_vm_create(&p, &opts);
	ASSERT_EQ(0, protmem_make_private(&p, GPA, PAGE_SIZE));
	protmem_call(&p, 0, guest_fill, GPA, PAGE_SIZE, 1);
	ASSERT_EQ(0, pipe(fds));
	EXPECT_EQ(-1, pread(p.gmem, buf, LEN, 0));
	EXPECT_EQ(-1, pwrite(p.gmem, buf, LEN, 0));
	EXPECT_EQ(-1, splice(p.gmem, &off, fds[1], NULL, LEN, 0));
	EXPECT_EQ(-1, copy_file_range(p.gmem, &off, fds[1], NULL, LEN, 0));
	m = mmap(NULL, PAGE_SIZE, PROT_READ, MAP_PRIVATE, p.gmem, 0);
	EXPECT_EQ(MAP_FAILED, m);
	EXPECT_EQ(0, protmem_call(&p, 0, guest_check, GPA, PAGE_SIZE, 1));
	protmem_vm_free(&p);
}

/*
 * Root's window on all of the kernel: count the pages in /proc/kcore that look
 * like the guest's.  No copy of them is kept that could be found instead.
 */
#define KCORE_PAGES	32

static int scan_kcore(u64 seed, u64 gpa, int npages, u64 *scanned)
{
	static u64 buf[SZ_64K / 8];
	struct {
		u8 ident[16];
		u16 type, machine;
		u32 version;
		u64 entry, phoff, shoff;
		u32 flags;
		u16 ehsize, phentsize, phnum, shentsize, shnum, shstrndx;
	} eh;
	struct {
		u32 type, flags;
		u64 offset, vaddr, paddr, filesz, memsz, align;
	} ph;
	int fd = open("/proc/kcore", O_RDONLY), i, j, found = 0;
	u64 page_offset = 0, largest = 0, off, b;

	*scanned = 0;
	if (fd < 0)
		return -1;
	if (pread(fd, &eh, sizeof(eh), 0) != sizeof(eh))
		goto out;

	/* The direct map: the largest that has a physical address; not the image. */
	for (i = 0; i < eh.phnum; i++) {
		if (pread(fd, &ph, sizeof(ph), eh.phoff + i * sizeof(ph)) != sizeof(ph))
			goto out;
		if (ph.type == 1 && ph.paddr != -1ull && ph.filesz > largest) {
			largest = ph.filesz;
			page_offset = ph.vaddr - ph.paddr;
		}
	}
	for (i = 0; i < eh.phnum; i++) {
		if (pread(fd, &ph, sizeof(ph), eh.phoff + i * sizeof(ph)) != sizeof(ph))
			break;
		if (ph.type != 1 || ph.paddr == -1ull ||
		    ph.vaddr - ph.paddr != page_offset)
			continue;
		for (off = 0; off < ph.filesz; off += sizeof(buf)) {
			ssize_t n = pread(fd, buf, sizeof(buf), ph.offset + off);

			if (n <= 0)
				continue;
			*scanned += n;
			for (b = 0; b + PAGE_SIZE <= n; b += PAGE_SIZE) {
				for (j = 0; j < npages; j++) {
					u64 a = gpa + j * PAGE_SIZE;

					if (buf[b / 8] == protmem_word(seed, a) &&
					    protmem_mismatch(&buf[b / 8], a, PAGE_SIZE,
							     seed) == PAGE_SIZE) {
						found++;
						buf[b / 8] = 0;
					}
				}
			}
		}
		memset(buf, 0, sizeof(buf));
	}
out:
	close(fd);
	return found;
}

TEST(proc_kcore)
{
	static const struct protmem_opts kinds[] = {
		{ .caps = PROTMEM_CAPS, .no_interrupts = true },
		{ .caps = PROTMEM_CAPS_HIDE, .no_interrupts = true },
		{ .gmem_flags = GUEST_MEMFD_FLAG_NO_DIRECT_MAP },
	};
	struct protmem_opts opts = { .caps = PROTMEM_CAPS_ORDINARY, .no_interrupts = true };
	long mem = sysconf(_SC_PHYS_PAGES) * PAGE_SIZE;
	u64 seed = 0x3c0de000 + getpid(), scanned;
	struct protmem_vm p;
	int found, i;

	if (access("/proc/kcore", R_OK))
		SKIP(return, "no /proc/kcore");
	if (mem > 4l << 30)
		SKIP(return, "more than 4 GiB of memory to search");

	/* Each page three times over or more is fine; one copy there must be. */
	protmem_vm_create(&p, &opts);
	protmem_call(&p, 0, guest_fill, GPA, KCORE_PAGES * PAGE_SIZE, seed);
	found = scan_kcore(seed, GPA, KCORE_PAGES, &scanned);
	TH_LOG("ordinary VM: %d of %d pages found in %lu MiB", found, KCORE_PAGES,
	       scanned >> 20);
	protmem_vm_free(&p);
	if (found < 0 || !scanned)
		SKIP(return, "/proc/kcore does not show the direct map here");
	EXPECT_LE(KCORE_PAGES, found);

	for (i = 0; i < ARRAY_SIZE(kinds); i++) {
		opts = kinds[i];
		protmem_vm_create(&p, &opts);
		if (opts.caps & KVM_PROTMEM_USER)
			ASSERT_EQ(0, protmem_make_private(&p, GPA, KCORE_PAGES * PAGE_SIZE));
		seed++;
		protmem_call(&p, 0, guest_fill, GPA, KCORE_PAGES * PAGE_SIZE, seed);
		found = scan_kcore(seed, GPA, KCORE_PAGES, &scanned);
		EXPECT_EQ(0, found) {
			TH_LOG("caps %#lx flags %#lx", opts.caps, opts.gmem_flags);
		}
		EXPECT_EQ(0, protmem_call(&p, 0, guest_check, GPA,
					  KCORE_PAGES * PAGE_SIZE, seed));

		/* When the VM is gone the pages are back, empty. */
		protmem_vm_free(&p);
		protmem_wait_off_direct_map(0);
		found = scan_kcore(seed, GPA, KCORE_PAGES, &scanned);
		EXPECT_EQ(0, found);
	}
}

int main(int argc, char **argv)
{
	protmem_require();
	return test_harness_run(argc, argv);
}
