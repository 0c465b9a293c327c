"""How much memory a check may hold beside what the function itself takes."""

import math
import re
from pathlib import Path
from typing import Any

from xgradcheck._errors import InvalidCase

SHARE = 4
"""By default the n-th part of what is free."""
LITTLE = 1 << 26
"""So many bytes are free on any machine."""
UNITS = {None: 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
CONTAINER = Path("/sys/fs/cgroup")


def memory_of(given: Any) -> int | None:
    """The limit as the user wrote it: a number of bytes, or "2GiB"; None where it is left to us.

    >>> memory_of("1.5GiB"), memory_of("500MB"), memory_of(1000)
    (1610612736, 500000000, 1000)
    """
    if given is None:
        return None
    written = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?)\s*([kmg]i?b)?\s*", str(given).lower())
    found = int(float(written[1]) * UNITS[written[2]]) if written else 0
    if found <= 0:
        raise InvalidCase(
            f"memory={given!r} is no amount of memory: give a number of bytes, or one as '2GiB'."
        )
    return found


def refuse_beyond(limit: int | None, needed: int) -> None:
    """Raise where a check would hold more than the limit; a quarter of what is free, where there is
    none.
    """
    if needed <= (LITTLE if limit is None else limit):
        return
    of_free = ""
    if limit is None:
        limit, of_free = free() // SHARE, ", a quarter of what is free"
    if needed > limit:
        raise InvalidCase(
            f"it would hold {written(needed)} in vectors as long as all leaves together, and "
            f"may hold {written(limit)}{of_free}: check fewer leaves with wrt=, or allow more with "
            f"memory='{_enough(needed)}'."
        )


def free() -> int:
    """The bytes that are free on this machine, and in the container that this process runs in."""
    import psutil  # only large checks ask

    available = int(psutil.virtual_memory().available)
    try:
        limit = int((CONTAINER / "memory.max").read_text())
        used = int((CONTAINER / "memory.current").read_text())
        kept = re.search(r"^inactive_file (\d+)", (CONTAINER / "memory.stat").read_text(), re.M)
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return available
    # Files that were read stay in memory until somebody needs it.
    return max(min(available, limit - used + int(kept[1] if kept else 0)), 0)


def _enough(count: int) -> str:
    """At least so much, in round numbers."""
    return written(math.ceil(count / 2**28) * 2**28 if count >= 2**30 else count + 2**20)


def written(count: float) -> str:
    """An amount of memory as people write it.

    >>> written(5 << 30), written(200_000_000)
    ('5GiB', '191MiB')
    """
    if count < 2**20:
        return f"{count:.0f} bytes"
    return f"{count / 2**30:.3g}GiB" if count >= 2**30 else f"{count / 2**20:.0f}MiB"
