# SPDX-License-Identifier: GPL-2.0
"""What in the log of a kernel shows a bug, for all that boot one."""

import re

BUGS = re.compile(r"BUG: |kernel BUG at|WARNING: |Oops|general protection fault|KASAN|UBSAN|"
                  r"possible (circular|recursive) locking|INFO: (task|rcu|trying to register)|"
                  r"refcount_t:|unchecked MSR|Kernel panic|Call Trace:")
