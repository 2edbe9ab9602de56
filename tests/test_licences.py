"""Every package in the locks may be used by a program under GPL-3.0-only, and tools/licences.py sees those that may not."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tools import licences

TABLE = tomllib.loads((Path(licences.__file__).parent / "licences.toml").read_text())


def test_every_package_in_the_locks_may_be_used(capsys: pytest.CaptureFixture[str]) -> None:
    assert licences.main() == 0, capsys.readouterr().out


def test_nothing_is_named_that_is_not_in_the_locks() -> None:
    """Or no longer: then its row goes."""
    assert not {*TABLE["licences"], *TABLE["not_shipped"]["names"]} - set(licences.locked())


@pytest.mark.parametrize(
    ("expression", "may"),
    [
        ("MIT", True),
        ("GPL-2.0-only", False),
        ("GPL-2.0-only OR MIT", True),
        ("MIT AND BSD-4-Clause", False),
        ("Apache-2.0 WITH LLVM-exception", True),
        ("(GPL-2.0-only OR MIT) AND BSD-3-Clause", True),
        ("MIT AND (GPL-2.0-only OR AGPL-1.0-only)", False),
        ("LicenseRef-Proprietary", False),
        ("", False),
    ],
)
def test_alternatives_and_sums_are_told_apart(expression: str, *, may: bool) -> None:
    assert licences.compatible(expression) == may


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ({"expression": "MIT", "classifiers": ["BSD License"], "text": "x"}, "MIT"),
        (
            {"expression": None, "classifiers": ["MIT License", "Apache Software License"], "text": None},
            "Apache-2.0 AND MIT",
        ),
        ({"expression": None, "classifiers": ["OSI Approved"], "text": "MIT License\n\nCopyright"}, "MIT"),
        ({"expression": None, "classifiers": [], "text": "Proprietary"}, None),
        ({"expression": None, "classifiers": [], "text": None}, None),
        (None, None),
    ],
)
def test_the_plainest_word_counts(said: Mapping[str, Any] | None, found: str | None) -> None:
    assert licences.licence("a", {"licences": {}, "not_shipped": {"names": []}}, lambda _: said) == found


def test_what_cannot_be_used_is_said() -> None:
    rows = list(licences.report([("a", "GPL-2.0-only"), ("b", None), ("c", "ISC"), ("d", "LicenseRef-NVIDIA")]))

    assert [verdict[:5] for _, _, verdict in rows] == ["! not", "! nam", "", "(fetc"]
