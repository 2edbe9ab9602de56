"""Prints the licence of every package in the locks; exits with 1 where one is unknown or not compatible with GPL-3.0-only.

A package's own metadata are asked where it is installed, in the order of the core metadata specification: License-Expression,
classifiers, License. What they do not say stands in licences.toml.
"""

import re
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LOCKS = ("requirements.lock", "requirements-cuda12.lock")
# https://www.gnu.org/licenses/license-list.html#GPLCompatibleLicenses, version 3
COMPATIBLE = set(
    """0BSD Apache-2.0 BSD-2-Clause BSD-3-Clause BSL-1.0 CC0-1.0 HPND ISC MIT MIT-0 MIT-CMU MPL-2.0 PSF-2.0 Python-2.0
    Unicode-3.0 Unlicense Zlib GPL-2.0-or-later GPL-3.0-only GPL-3.0-or-later LGPL-2.1-or-later LGPL-3.0-only
    LGPL-3.0-or-later""".split()  # noqa: SIM905 - names, for reading
)
CLASSIFIERS = {
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
"""Where there are several it is no telling whether all hold or any: all must be compatible."""
FREE_TEXT = {
    "apache": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "3-clause bsd license": "BSD-3-Clause",
    "mit license": "MIT",
}


def main() -> int:
    table = tomllib.loads((HERE / "licences.toml").read_text())
    rows = list(report((name, licence(name, table, installed)) for name in locked()))
    width = max(len(name) for name, _, _ in rows)
    for name, found, verdict in rows:
        print(f"{name:<{width}}  {found or 'unknown'}{f'  {verdict}' if verdict else ''}")
    bad = [name for name, _, verdict in rows if verdict.startswith("!")]
    print(f"{len(rows)} packages, {len(bad)} that cannot be used" + (f": {', '.join(bad)}" if bad else ""))
    return 1 if bad else 0


def locked() -> list[str]:
    """Every name in the locks."""
    texts = [(HERE.parent / lock).read_text() for lock in LOCKS]
    return sorted({name for text in texts for name in re.findall(r"^([\w.-]+)==", text, re.MULTILINE)})


def installed(name: str) -> Mapping[str, Any] | None:
    """The fields of its metadata that concern licences; None where it is not here."""
    try:
        found = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return None
    return {
        "expression": found.get("License-Expression"),
        "classifiers": [line.split(" :: ")[-1] for line in found.get_all("Classifier") or [] if "License ::" in line],
        "text": found.get("License"),
    }


def licence(name: str, table: Mapping[str, Any], look: Callable[[str], Mapping[str, Any] | None]) -> str | None:
    """An SPDX expression; None where nobody says."""
    if name in table["not_shipped"]["names"]:
        return str(table["not_shipped"]["licence"])
    if name in table["licences"]:
        return str(table["licences"][name])
    found = look(name)
    if found is None:
        return None
    if found["expression"]:
        return str(found["expression"])
    named = [CLASSIFIERS[one] for one in found["classifiers"] if one in CLASSIFIERS]
    if named:
        return " AND ".join(sorted(set(named)))
    text = (found["text"] or "").strip().split("\n")[0]
    return FREE_TEXT.get(text.lower(), text if compatible(text) else None)


def compatible(expression: str) -> bool:
    """One of what is joined by OR, all of what is joined by AND; parentheses bind first, then AND."""
    while inner := re.search(r"\(([^()]*)\)", expression):
        word = "MIT" if compatible(inner[1]) else "LicenseRef-no"
        expression = expression[: inner.start()] + word + expression[inner.end() :]
    return any(
        all(part.split(" WITH ")[0].strip() in COMPATIBLE for part in either.split(" AND "))
        for either in expression.split(" OR ")
    )


def report(found: Iterator[tuple[str, str | None]] | Any) -> Iterator[tuple[str, str | None, str]]:
    """(name, licence, verdict): "!" begins the verdict on what cannot be used."""
    for name, expression in found:
        if expression is None:
            yield name, None, "! name it in tools/licences.toml"
        elif expression.startswith("LicenseRef-NVIDIA"):
            yield name, expression, "(fetched by who has the GPU, never shipped)"
        else:
            yield name, expression, "" if compatible(expression) else "! not compatible with GPL-3.0-only"


if __name__ == "__main__":
    sys.exit(main())
