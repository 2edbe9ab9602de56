"""One file over HTTP: resumed where it stopped, checked by its hash; must not know indexes, hubs or models."""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from neuron_jax.weights.errors import WeightsError

Report = Callable[[str, int, int, str], None]
"""Called with phase, done, total, unit."""

BUSY = (429, 500, 502, 503, 504)
"""Statuses of a server that may do better in a moment."""
_REPORT_BYTES = 1 << 20
_ATTEMPTS = 6
_TIMEOUT = httpx.Timeout(30.0)


class RefusedError(WeightsError):
    """A server will not send the file: the status of its answer, and its own word for why, as hubs have it."""

    def __init__(self, url: str, response: httpx.Response) -> None:
        super().__init__("repo_fetch_failed", f"{url}: HTTP {response.status_code}")
        self.status = response.status_code
        self.code = response.headers.get("X-Error-Code", "")


class _BusyError(httpx.TransportError):
    """A server that may do better in a moment."""


def download(
    client: httpx.Client,
    url: str,
    target: Path,
    report: Report,
    *,
    sha256: str | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Make `target` the whole file at `url`, going on from what `target` already has.

    A broken connection, or a server that is busy, is tried again, up to six times without a byte between. Raises WeightsError
    when the address is none for HTTP, when the server stays unreachable, or when the hash is another (then `target` is
    gone), and RefusedError.
    """
    failures = 0
    while failures < _ATTEMPTS:
        before = _size(target)
        try:
            _continue(client, url, target, report)
            break
        except httpx.UnsupportedProtocol as error:
            raise WeightsError("repo_fetch_failed", f"{url}: {error}") from error
        except httpx.TransportError as error:
            failures = failures + 1 if _size(target) == before else 0
            if failures == _ATTEMPTS:
                raise WeightsError("repo_fetch_failed", f"{url}: {error or type(error).__name__}") from error
            pause(0.25 * 2**failures)
    if sha256 is not None:
        check_hash(target, sha256)


def check_hash(path: Path, sha256: str, name: str | None = None) -> None:
    """Raises WeightsError, and deletes the file, when its hash is another. `name`: what it is called where it is to be."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        path.unlink()
        raise WeightsError(
            "repo_fetch_failed", f"{name or path.name} has sha256 {found}, must be {sha256}; it was deleted"
        )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _continue(client: httpx.Client, url: str, target: Path, report: Report) -> None:
    """One request for the rest of the file. Raises httpx.TransportError when the connection breaks."""
    have = _size(target)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with client.stream("GET", url, headers=headers, follow_redirects=True, timeout=_TIMEOUT) as response:
        if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE and _is_whole(response, have):
            return
        if response.status_code not in (httpx.codes.OK, httpx.codes.PARTIAL_CONTENT):
            if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
                target.unlink()
            if response.status_code in BUSY:
                raise _BusyError(f"HTTP {response.status_code}")
            raise RefusedError(url, response)
        resumed = response.status_code == httpx.codes.PARTIAL_CONTENT
        done = have if resumed else 0
        total = done + int(response.headers.get("Content-Length", 0))
        with target.open("ab" if resumed else "wb") as file:
            told = done
            # Chunks as they come: larger ones would be lost when the connection breaks within one.
            for chunk in response.iter_bytes():
                file.write(chunk)
                done += len(chunk)
                if done - told >= _REPORT_BYTES or done == total:
                    told = done
                    report("download", done, max(done, total), "bytes")


def _is_whole(response: httpx.Response, have: int) -> bool:
    """A range that starts at the very end is refused with the file's size."""
    return str(response.headers.get("Content-Range", "")).endswith(f"/{have}")
