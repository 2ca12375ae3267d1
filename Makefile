# SPDX-License-Identifier: GPL-2.0
# The front door. 'make help' says what there is.

SHELL := /bin/bash
export KDIR QEMUDIR MIRROR JOBS

# For the scripts to know, and not for the kernel's make that they start.
arm64 := $(filter-out x86,$(ARCH))
MAKEOVERRIDES :=
unexport ARCH

.DEFAULT_GOAL := help
.PHONY: help deps fetch source kernel guest-kernel qemu roots selftests \
	check check-full demo bench mutate series checkpatch apply debs clean distclean

help:
	@sed -n 's/^## //p' $(MAKEFILE_LIST)

## make deps         install the Debian packages this needs (as root or by sudo)
## make deps ARCH=arm64  also what is needed to build and run it for arm64
deps:
	@scripts/deps $(arm64)

## make fetch        get the pinned Linux and QEMU sources from a Debian mirror
fetch:
	@scripts/fetch

## make source       put the patches on them: build/src/linux, build/src/qemu
source: fetch
	@scripts/series assemble linux
	@scripts/series assemble qemu

## make kernel       the host kernel: build/kernel/host-bzImage
kernel: source
	@scripts/build-kernel host$(addprefix -,$(arm64))
## make guest-kernel the guest kernel: build/kernel/guest-bzImage
guest-kernel: source
	@scripts/build-kernel guest$(addprefix -,$(arm64))
## make qemu         QEMU: build/qemu/qemu-system-x86_64
qemu: source
	@scripts/build-qemu $(arm64)
## make roots        root file systems of the emulated host and its guests
roots: qemu
	@scripts/build-roots $(arm64)
## make selftests    the KVM selftests of tests/kselftests
selftests: source
	@scripts/build-selftests $(arm64)

## make check        all tests that belong to every change
## make check ARCH=arm64  what there is for arm64, in an emulated arm64 machine
check:
	@scripts/check $(arm64)

## make series       mailable patches with cover letter in build/series
series: fetch
	@scripts/series export linux

## make checkpatch   the kernel's checkpatch --strict over them
checkpatch: source
	@scripts/series checkpatch linux

## make apply KDIR=  put the kernel series on a git tree of your own as commits
## make apply QEMUDIR=   the same for QEMU
apply:
	@[ -n "$(KDIR)$(QEMUDIR)" ] || { echo "error: say where: make apply KDIR=/path/to/linux (or QEMUDIR=)." >&2; exit 1; }
	@[ -z "$(KDIR)" ] || scripts/series apply linux "$(KDIR)"
	@[ -z "$(QEMUDIR)" ] || scripts/series apply qemu "$(QEMUDIR)"

# What has no form for arm64 says so instead of doing it for x86.
x86_only = @[ -z "$(arm64)" ] || { echo "error: there is no $@ for arm64 yet; make check ARCH=arm64 runs its tests." >&2; exit 1; }

## make demo         attack guests with and without protection, show what happens
## make demo ARCH=arm64  the same on emulated arm64, in VHE and in nVHE mode
demo:
	@scripts/demo $(arm64)
## make check-full   the long tests, in shards (SHARD=name for one); goes on where it was stopped
check-full:
	@[ -z "$(arm64)" ] || { echo "error: those of arm64 are shards of this, too: make check-full SHARD=arm64 (and others: tests/shards)." >&2; exit 1; }
	@scripts/check-full $(SHARD)
## make bench        what it costs, beside its rivals, in instructions of an emulated CPU (ARCH=arm64: there)
bench:
	@scripts/bench $(arm64)
## make mutate       show that each mutant of the code is killed by a test
mutate:
	$(x86_only)
	@scripts/mutate
# What is promised but not there says so instead of doing nothing.
## make debs         (not there yet) Debian packages of the kernel and QEMU
debs:
	@echo "error: make debs is not there yet; make apply puts the series on a tree of your own." >&2; exit 1

## make clean        remove what was built, keep the downloads
clean:
	@scripts/clean
## make distclean    remove the downloads too
distclean: clean
	@rm -rf build
