"""Two models take turns on a real daemon that has room for one and whose memory comes back late: everybody is served."""

import pathlib

from tests.fakes.engine_double import COMMAND
from tests.fakes.late_memory import LateMemory
from tests.fakes.swaps import swapped
from tests.fakes.tiny_model import write_tiny_model


def test_twenty_swaps_serve_everybody(tmp_path: pathlib.Path) -> None:
    """Before, every second request was refused: 200 503 200 503 …"""
    folders = [write_tiny_model(tmp_path / name) for name in ("one", "other")]

    assert swapped(folders, tmp_path / "cache", COMMAND, 21, LateMemory()) == [200] * 21
