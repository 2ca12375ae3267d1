# SPDX-License-Identifier: GPL-2.0
"""What in the log of a kernel shows a bug, for all that boot one."""

import re

BUGS = re.compile(r"BUG: |kernel BUG at|WARNING: |Oops|general protection fault|KASAN|UBSAN|"
                  r"possible (circular|recursive) locking|INFO: (task|rcu|trying to register)|"
                  r"refcount_t:|unchecked MSR|Kernel panic|Internal error: |Call [Tt]race:")

# An interrupt of the host between VMRUN and STGI: GIF is clear there, and no CPU takes
# one, but the emulated SVM does now and then.  GS is the guest's at that point, and the
# kernel dies in its first access to a per-CPU variable.
EMULATED_GIF = re.compile(r"asm_(?:sysvec_\w+|common_interrupt)\+\S+\n[^\n]*\s__svm_vcpu_run\+")
