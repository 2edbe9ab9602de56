"""The steps of a release that are no build: `bump VERSION`, `tag TAG`, `checksums FOLDER`, `sign FOLDER KEY`.

A tag is `v` and the version. Checksums are those of all files in the folder, as `sha256sum --check SHA256SUMS` reads them; a
signature is of that file. KEY is a file with an SSH key, else it names a key of gpg's.
"""

import hashlib
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
SUMS = "SHA256SUMS"
VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)(?:rc(\d+))?")
FINAL = 1 << 30  # behind every release candidate
PLACES = {
    "pyproject.toml": re.compile(r'(?<=^version = ")[^"]+(?=")', re.MULTILINE),
    "packaging/kubernetes/kustomization.yaml": re.compile(rf'(?<=newTag: "){VERSION.pattern}'),
}
"""Where the version is written."""


class ReleaseError(Exception):
    """It is not to be: the message says why."""


def bump(version: str, root: Path = ROOT) -> None:
    """Write it wherever it stands. It must be a later one, and nothing else may be changed."""
    before = current(root)
    if order(version) <= order(before):
        raise ReleaseError(f"{version} is not later than {before}")
    if changed := run(root, "git", "status", "--porcelain", "--untracked-files=no"):
        raise ReleaseError(f"commit or put away first:\n{changed}")
    for place, pattern in PLACES.items():
        text, count = pattern.subn(version, (root / place).read_text())
        if not count:
            raise ReleaseError(f"{place} has no version")
        (root / place).write_text(text)


def tag(name: str, root: Path = ROOT) -> None:
    """Refuse a tag that is not that of the version here."""
    if name != f"v{current(root)}":
        raise ReleaseError(f"the tag is {name}, and pyproject.toml says {current(root)}")


def checksums(folder: str) -> None:
    """Of every file in it, but for the checksums and their signatures."""
    files = sorted(path for path in Path(folder).iterdir() if path.is_file() and not path.name.startswith(SUMS))
    if not files:
        raise ReleaseError(f"{folder} holds no file")
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files]
    (Path(folder) / SUMS).write_text("".join(lines))


def sign(folder: str, key: str) -> None:
    """`SHA256SUMS.sig` by SSH (namespace `file`), or `SHA256SUMS.asc` by gpg."""
    sums = Path(folder) / SUMS
    if Path(key).is_file():
        run(Path.cwd(), "ssh-keygen", "-q", "-Y", "sign", "-n", "file", "-f", key, str(sums))
    else:
        run(Path.cwd(), "gpg", "--batch", "--yes", "--local-user", key, "--armor", "--detach-sign", str(sums))


def current(root: Path) -> str:
    found = PLACES["pyproject.toml"].search((root / "pyproject.toml").read_text())
    if found is None:
        raise ReleaseError("pyproject.toml has no version")
    return found[0]


def order(version: str) -> tuple[int, ...]:
    """Of versions as 1.2.3 and 1.2.3rc1."""
    found = VERSION.fullmatch(version)
    if found is None:
        raise ReleaseError(f"{version!r} is no version; give one as 1.2.3 or 1.2.3rc1")
    return (*map(int, found.groups()[:3]), int(found[4] or FINAL))


def run(folder: Path, *command: str) -> str:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except OSError as error:
        raise ReleaseError(f"{command[0]} is not here: {error.strerror}") from error
    if done.returncode:
        raise ReleaseError(f"{' '.join(command[:2])} failed: {done.stderr.strip()}")
    return done.stdout


STEPS: dict[str, Callable[..., None]] = {"bump": bump, "tag": tag, "checksums": checksums, "sign": sign}


def main(words: list[str]) -> int:
    try:
        step, *rest = words
        STEPS[step](*rest)
    except ReleaseError as error:
        print(f"release: {error}", file=sys.stderr)
        return 1
    except (KeyError, TypeError, ValueError):
        print(__doc__, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
