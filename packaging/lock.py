"""Of the project's lock, the part that one of its extras needs at run time, with every hash: `lock.py [EXTRA] < LOCK > PART`.

uv writes behind each pin who asked for it (`# via`). So what the project's own tables name is taken, and then what names
something taken.
"""

import re
import sys
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
ENTRY = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==.*(?:\n[ ].*)*", re.MULTILINE)


def main() -> int:
    extra = sys.argv[1] if len(sys.argv) > 1 else None
    entries: dict[str, str] = {}
    for found in ENTRY.finditer(sys.stdin.read()):  # one package may stand there twice, for an old and a new Python
        entries[found["name"]] = "\n".join(filter(None, (entries.get(found["name"]), found[0])))
    kept = closure(entries, asked(extra))
    sys.stdout.write("".join(f"{without_comments(entries[name])}\n" for name in sorted(kept)))
    return 0


def asked(extra: str | None) -> set[str]:
    """Names that pyproject.toml itself lists, for the bare install and for `extra`."""
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    lines = project["dependencies"] + (project["optional-dependencies"][extra] if extra else [])
    return {normal(re.match(r"[\w.-]+", line)[0]) for line in lines}  # type: ignore[index]


def closure(entries: dict[str, str], names: set[str]) -> set[str]:
    """With what they need. Raises SystemExit for a name that the lock does not have."""
    missing = names - entries.keys()
    if missing:
        raise SystemExit(f"the lock has no {', '.join(sorted(missing))}; run make lock")
    askers = {name: set(re.findall(r"^    #(?: via)? +(\S+)$", entry, re.MULTILINE)) for name, entry in entries.items()}
    while more := {name for name, who in askers.items() if who & names} - names:
        names |= more
    return names


def without_comments(entry: str) -> str:
    return "\n".join(line for line in entry.split("\n") if not line.lstrip().startswith("#"))


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    sys.exit(main())
