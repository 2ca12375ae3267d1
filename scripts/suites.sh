# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
# Sourced by scripts/check and scripts/check-full: run commands that print TAP,
# each within a time limit of its own, and keep what they print.  The caller sets
# RESULTS, where to, and TIME, the seconds that all of it may take.

# A limit of its own, or what is left if that is less.
limited() {
	local left=$((TIME - SECONDS))
	((left > 0)) || left=1
	printf '%d' $(($1 < left ? $1 : left))
}

# timeout has a process group of its own, which ^C does not reach.
running=
stop() {
	[ -n "$running" ] || exit 130
	{
		kill "$running"
		wait "$running"
		# What it has started may need a moment to end, too.
		for ((i = 0; i < 30; i++)); do
			kill -0 -- "-$running" || exit 130
			sleep 0.1
		done
		kill -KILL -- "-$running"
	} 2>/dev/null
	exit 130
}
trap stop INT TERM HUP

# bounded SECONDS COMMAND...: with a time limit.
bounded() {
	local rc=0
	trap stop INT TERM HUP	# again, as a part of a pipeline has lost it
	timeout -k 10 "$@" &
	running=$!
	wait "$running" || rc=$?
	running=
	return "$rc"
}

# With $tentative set, what has failed is shown as a comment only: the caller has
# the last word, and others read the output of all this as TAP, too.
tentative=
shown() {
	if [ -n "$tentative" ]; then
		sed -u 's/^not ok/# not ok/'
	else
		cat
	fi
}

# as_planned FILE: no result in it got lost on its way out of an emulator.
as_planned() {
	awk '/^(not )?ok/ {n++} /^1\.\.[0-9]+/ {sub(/^1\.\./, ""); plan += $1} END {exit n < plan}' "$1"
}

# suite NAME SECONDS COMMAND...: a command that prints TAP, with a time limit.
suite() {
	local name=$1 limit start=$SECONDS tap=$RESULTS/$1.tap rc=0
	limit=$(limited "$2")
	shift 2
	step "$name"
	bounded "$limit" "$@" | tee "$tap" | shown || rc=$?
	# A suite that dies without a 'not ok' has failed all the same.
	if ((rc == 124 || rc == 137)); then
		say "not ok - $name: no end within $limit s" | tee -a "$tap" | shown
	elif ((rc)) && ! grep -aq '^not ok' "$tap"; then
		say "not ok - $name: exit status $rc" | tee -a "$tap" | shown
	elif ! grep -aqE '^(not )?ok|^1\.\.0' "$tap"; then
		say "not ok - $name: it ran no test" | tee -a "$tap" | shown
	elif ! as_planned "$tap"; then
		say "not ok - $name: it has fewer results than its plan says" | tee -a "$tap" | shown
	fi
	say "# $name: $(elapsed "$start")"
}

# What a suite that has failed left in build/run, and nobody works in, out of the
# way of its second run.
keep_first() {
	local d
	while read -r d; do
		rm -rf "$d.first"
		flock -n "$d.lock" mv "$d" "$d.first"
	done < <(find "$BUILD/run" -mindepth 1 -maxdepth 1 -type d -newer "$RESULTS/.begin" ! -name '*.first')
}

# emulated NAME SECONDS COMMAND...: a suite in an emulator.  These lose interrupts
# and, rarely, the guest of a guest ends in a triple fault.  So what has failed is
# run once more, with a line that says so and is counted by nobody but seen by all;
# the first run stays in NAME.first, and what it left in directories *.first of
# build/run.  Not if the host kernel itself has died or shown a bug: that is never
# the emulator's fault until someone has proved it.
emulated() {
	local name=$1 tap=$RESULTS/$1.tap
	rm -f "$RESULTS/$name.first"
	touch "$RESULTS/.begin"
	tentative=1
	suite "$@"
	tentative=
	grep -aq '^not ok' "$tap" || return 0
	if grep -aqE "^# .*: (the host kernel died|Bochs or the kernel died|the host's log shows a bug)" "$tap" || ((TIME - SECONDS < $2 / 2)); then
		grep -a '^not ok' "$tap"
		return 0
	fi
	mv "$tap" "$RESULTS/$name.first"
	keep_first
	say "# $name has failed and is tried once more, as it may have been the emulator"
	suite "$@"
	say "# retried: $name: see $RESULTS/$name.first for the first run" >>"$tap"
}

# part NAME SECONDS COMMAND...: a step that other suites need, counted as one test.
part() {
	local name=$1 limit start=$SECONDS rc=0
	limit=$(limited "$2")
	shift 2
	step "$name"
	bounded "$limit" "$@" || rc=$?
	if ((rc)); then
		say "not ok - $name: exit status $rc" | tee "$RESULTS/$name.tap"
	else
		say "ok - $name" | tee "$RESULTS/$name.tap"
	fi
	say "# $name: $(elapsed "$start")"
	return "$rc"
}
