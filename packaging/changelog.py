"""The changelog of a package from the repository's tags v*, newest first: `changelog.py deb|rpm|maintainer`.

A tag's message says what is new; a version that has no tag yet gets one line. Whoever made the tag, or the newest commit,
signs, unless $DEBFULLNAME and $DEBEMAIL say who builds.
"""

import os
import subprocess
import sys
import tomllib
from datetime import datetime
from email.utils import format_datetime
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
RELEASE = "1"


class Entry(NamedTuple):
    version: str
    who: str
    when: datetime
    lines: list[str]


def main() -> int:
    found = entries()
    if sys.argv[1] == "maintainer":
        sys.stdout.write(f"{found[0].who}\n")
    elif sys.argv[1] == "deb":
        sys.stdout.write("\n".join(map(deb, found)))
    else:
        sys.stdout.write("\n".join(map(rpm, found)))
    return 0


def entries() -> list[Entry]:
    """Of every tag, and of the version that pyproject.toml says where that has none."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    fields = (
        "refname:short",
        "taggername",
        "taggeremail",
        "creatordate:iso-strict",
        "contents:subject",
        "contents:body",
    )
    shape = "%00".join(f"%({field})" for field in fields) + "%01"
    listed = git("for-each-ref", "--sort=-creatordate", f"--format={shape}", "refs/tags/v*").split("\x01")
    found = []
    for line in filter(str.strip, listed):
        tag, name, mail, when, subject, body = line.strip("\n").split("\0")
        said = [text.strip("-* ") for text in [subject, *body.splitlines()] if text.strip("-* ")]
        found.append(Entry(tag.removeprefix("v"), signed(f"{name} {mail}"), datetime.fromisoformat(when), said))
    if version not in (entry.version for entry in found):
        commit, who, when = git("log", "-1", "--format=%h%x00%an <%ae>%x00%cI").strip().split("\0")
        found.insert(0, Entry(version, signed(who), datetime.fromisoformat(when), [f"Built of commit {commit}."]))
    return found


def signed(who: str) -> str:
    name, mail = os.environ.get("DEBFULLNAME"), os.environ.get("DEBEMAIL")
    return f"{name} <{mail}>" if name and mail else who


def deb(entry: Entry) -> str:
    lines = "\n".join(f"  * {line}" for line in entry.lines)
    return f"cortex ({entry.version}) unstable; urgency=medium\n\n{lines}\n\n -- {entry.who}  {format_datetime(entry.when)}\n"


def rpm(entry: Entry) -> str:
    lines = "\n".join(f"- {line.replace('%', '%%')}" for line in entry.lines)
    return f"* {entry.when:%a %b %d %Y} {entry.who} - 1:{entry.version}-{RELEASE}\n{lines}\n"


def git(*words: str) -> str:
    return subprocess.run(["git", "-C", str(ROOT), *words], check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    sys.exit(main())
