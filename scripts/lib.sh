# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
# Sourced by the other scripts: where things are, and how to say what goes on.

TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
BUILD=$TOP/build
JOBS=${JOBS:-$(nproc)}
export LC_ALL=C.UTF-8

say()  { printf '%s\n' "$*"; }
step() { printf '\n=== %s\n' "$*"; }
die()  { printf 'error: %s\n' "$*" >&2; exit 1; }

[[ $TOP != *[[:space:]:]* ]] || die "the path $TOP has a blank or a colon, which Linux cannot be built in: move it."

# For kernels with KASAN.  identify_cpu() forgets for a moment that there are page
# tables of five levels, and KASAN then takes the direct map for wild memory, if an
# interrupt comes in between.
# shellcheck disable=SC2034 # for others
KASAN_BOOT=no5lvl

# need PROGRAM...: stop if one is not installed.
need() {
	local p
	for p; do
		command -v "$p" >/dev/null 2>&1 ||
			die "'$p' is not installed: run 'make deps' (it installs scripts/packages), for arm64 'make deps ARCH=arm64'."
	done
}

# need_space GIB WHAT: stop before the disk is full rather than after.
need_space() {
	local have
	mkdir -p "$BUILD" || die "cannot write to $TOP: mend the permissions."
	have=$(($(df -Pk "$BUILD" | awk 'NR==2 {print $4}') / 1048576))
	((have >= $1)) ||
		die "$2 needs $1 GiB of disk space and $BUILD has $have GiB: free some, then run this again."
}

# base_field NAME KEY: a field of patches/NAME/base.
base_field() {
	sed -n "s/^$2: *//p" "$TOP/patches/$1/base"
}

# base_tree: Linux without the series, in build/src/linux-base.
base_tree() {
	local src=$BUILD/src/linux tree=$BUILD/src/linux-base
	[ -f "$src/Kbuild" ] || die "$src has no source: run 'make source' first."
	if ! [ -f "$tree/Kbuild" ]; then
		need_space 4 "a second copy of the source"
		git -C "$src" worktree add -q -f --detach "$tree" base ||
			die "no worktree at $tree: remove it and run this again."
	fi
	[ -z "$(git -C "$tree" status --porcelain --untracked-files=no)" ] ||
		die "$tree has changes, and is to be the base as it is: drop them (git -C $tree checkout .)."
	git -C "$tree" checkout -q --detach base || die "$tree is not at the base: remove it and run this again."
}

elapsed() {
	local s=$((SECONDS - ${1:-0}))
	printf '%d:%02d' $((s / 60)) $((s % 60))
}

# logged FILE COMMAND...: run quietly into a log; on failure show its end.
logged() {
	local log=$1; shift
	mkdir -p "$(dirname "$log")"
	if ! "$@" >"$log" 2>&1; then
		tail -n 25 "$log" >&2
		if grep -q 'No space left on device' "$log"; then
			die "the disk is full: free some space, then run this again."
		fi
		return 1
	fi
}

# only_one NAME [WHAT]: two runs must not build in the same place.
only_one() {
	mkdir -p "$BUILD" || die "cannot write to $TOP: mend the permissions."
	exec {lock_fd}>"$BUILD/.lock-$1"
	flock -n "$lock_fd" || die "another ${2:-run is working on $1}: wait for it to end."
}

# The Debian mirrors this machine already uses, best guess first.
mirrors() {
	if [ -n "${MIRROR:-}" ]; then
		printf '%s\n' "$MIRROR"
		return
	fi
	# shellcheck disable=SC2016 # apt fills these in
	apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(ORIGIN) $(LABEL)' 2>/dev/null |
		awk -v os="$(. /etc/os-release && echo "${VERSION_CODENAME:-}")" '
			$3 == "Debian" && $4 == "Debian" { print 1, $1; next }
			$2 == os                         { print 2, $1 }' |
		sort -u | awk '!seen[$2]++ { print $2 }'
}

# from_mirror NAME TARGET OPTION...: what mmdebstrap makes of packages of this
# machine's own release.  Its log is build/obj/NAME.log.
from_mirror() {
	local name=$1 target=$2 uri; shift 2
	mkdir -p "$BUILD/obj"
	# apt's way to the network is the machine's own.
	apt-config dump | grep '^Acquire::' >"$BUILD/obj/apt-acquire.conf" || true
	for uri in $(mirrors); do
		logged "$BUILD/obj/$name.log" mmdebstrap "$@" --aptopt="$BUILD/obj/apt-acquire.conf" \
			"$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:-}")" "$target" "$uri" && return
		rm -rf "$target"
	done
	return 1
}
