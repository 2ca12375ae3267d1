# SPDX-License-Identifier: GPL-2.0
"""What in the log of a kernel shows a bug, for all that boot one."""

import re

BUGS = re.compile(r"BUG: |WARNING: |Oops|general protection fault|KASAN|UBSAN|"
                  r"possible circular locking|INFO: (task|rcu)|Kernel panic|Call Trace:")
