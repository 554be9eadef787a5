"""Facts about this host for records and provenance. No part of any key."""

from __future__ import annotations

import os
import sys


def facts() -> dict[str, str]:
    system = os.uname()
    return {"machine": system.machine, "kernel": system.release, "python": ".".join(map(str, sys.version_info[:3]))}
