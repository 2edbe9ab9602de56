"""Environment variables that bear our prefix and set nothing: which are somebody else's, and which are told; pure."""

import difflib
import re
from collections.abc import Collection, Mapping

ORCHESTRATED = re.compile(r"(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP)(_(PROTO|PORT|ADDR))?)")
"""What Kubernetes and Docker set for a service that is called like the program; the rest of PORT is an address."""
CLOSE = 0.7


def unused(
    environ: Mapping[str, str], prefix: str, settings: Collection[str], others: Collection[str] = ()
) -> list[str]:
    """A line for each variable that begins with `prefix` and is none of `settings`, with the nearest that is.

    `others`: names, or beginnings that end in `_`, that something else legitimately sets. A name with two underscores is
    not looked at: a wrong one stops the start.
    """
    known = {name.removeprefix(prefix): name for name in (*settings, *others) if not name.endswith("_")}
    vendors = tuple(name for name in others if name.endswith("_"))
    lines = []
    for name in sorted(name for name in environ if name.startswith(prefix)):
        rest = name.removeprefix(prefix)
        if rest in known or "__" in rest or name.startswith(vendors) or _orchestrated(rest, environ[name]):
            continue
        near = difflib.get_close_matches(rest, known, 1, CLOSE)
        lines.append(f"environment: {name} is not used" + (f"; did you mean {known[near[0]]}?" if near else ""))
    return lines


def _orchestrated(rest: str, value: str) -> bool:
    return bool(ORCHESTRATED.fullmatch(rest)) or (rest.endswith("PORT") and "://" in value)
