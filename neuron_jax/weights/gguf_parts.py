"""Names of GGUF files that are one model in several files; knows names only."""

import re
from collections.abc import Iterable

_PART = re.compile(r"(.+)-\d{5}-of-(\d{5})\.gguf")


def part_names(name: str) -> tuple[str, ...]:
    """All files of the model that the file `name` belongs to, the first one first; itself alone where it is whole."""
    match = _PART.fullmatch(name)
    if match is None:
        return (name,)
    stem, count = match.groups()
    return tuple(f"{stem}-{number:05}-of-{count}.gguf" for number in range(1, int(count) + 1))


def whole_models(names: Iterable[str]) -> list[tuple[str, ...]]:
    """The models of which all files are among `names`, each as its files."""
    there = set(names)
    models = sorted({part_names(name) for name in there})
    return [files for files in models if files and there.issuperset(files)]
