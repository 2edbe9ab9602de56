"""What NVIDIA's assembler makes of the kernels that XLA wrote to a folder: registers, and what did not fit into them."""

import importlib.util
import pathlib
import re
import subprocess

from attrs import frozen

XLA_OWN = re.compile(r"fusion|^(sort|copy|reduce|broadcast|concatenate|wrapped|command_buffer|memset|transpose)")
"""Names of what XLA generates by itself, which the tests of ours are not about."""


@frozen
class Resources:
    """Of one kernel. Bytes a thread."""

    name: str
    registers: int
    spilled: int


def ours(folder: pathlib.Path) -> list[Resources]:
    """The kernels of ours, Pallas's, among those in `folder`."""
    texts = [path.read_text() for path in sorted(folder.glob("*.ptx"))]
    names = [(match[1], text) for text in texts if (match := re.search(r"\.entry (\w+)", text))]
    return [_assembled(name, text) for name, text in names if not XLA_OWN.search(name)]


def _assembled(name: str, text: str) -> Resources:
    target = re.search(r"\.target\s+(\w+)", text)
    assert target is not None, name
    command = [_ptxas(), "--verbose", "--gpu-name", target[1], "--output-file", "/dev/null", "-"]
    told = subprocess.run(command, input=text, capture_output=True, text=True, check=True).stderr
    stored, used = re.search(r"(\d+) bytes spill stores", told), re.search(r"Used (\d+) registers", told)
    assert stored is not None, told
    assert used is not None, told
    return Resources(name, int(used[1]), int(stored[1]))


def _ptxas() -> str:
    found = importlib.util.find_spec("nvidia.cuda_nvcc")
    assert found is not None, "comes with JAX's CUDA wheels"
    assert found.submodule_search_locations is not None
    return str(pathlib.Path(found.submodule_search_locations[0]) / "bin" / "ptxas")
