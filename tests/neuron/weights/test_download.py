"""Downloads against a server that dies midway: resumed, checked, never taken for whole when they are not."""

import hashlib
from pathlib import Path

import httpx
import pytest

from neuron_jax.weights.download import download
from neuron_jax.weights.errors import WeightsError
from tests.fakes.file_server import FileServer, Refusal, serving

CONTENT = bytes(range(256)) * 400
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Recorder:
    """Collects progress and pauses."""

    def __init__(self) -> None:
        self.progress: list[tuple[str, int, int, str]] = []
        self.pauses: list[float] = []

    def report(self, phase: str, done: int, total: int, unit: str) -> None:
        self.progress.append((phase, done, total, unit))


def fetch(server: FileServer, target: Path, sha256: str | None = SHA256) -> Recorder:
    recorder = Recorder()
    with httpx.Client(trust_env=False) as client:
        url = server.url + "/file"
        download(client, url, target, recorder.report, sha256=sha256, pause=recorder.pauses.append)
    return recorder


def test_a_broken_download_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """Two broken connections, three requests, each from the next missing byte; the file is whole."""
    target = tmp_path / "file"
    with serving({"/file": CONTENT}, [30_000, 20_000, None]) as server:
        recorder = fetch(server, target)

        assert [wanted for _, _, wanted in server.asked] == [None, "bytes=30000-", "bytes=50000-"]
    assert target.read_bytes() == CONTENT
    assert recorder.progress[-1] == ("download", len(CONTENT), len(CONTENT), "bytes")
    assert all(total == len(CONTENT) for _, _, total, _ in recorder.progress)


def test_a_killed_download_is_gone_on_with(tmp_path: Path) -> None:
    """What an earlier process left is not fetched again."""
    target = tmp_path / "file"
    target.write_bytes(CONTENT[:70_000])
    with serving({"/file": CONTENT}) as server:
        fetch(server, target)

        assert server.asked == [("GET", "/file", "bytes=70000-")]
    assert target.read_bytes() == CONTENT


def test_a_whole_file_is_only_asked_about(tmp_path: Path) -> None:
    """A file that was complete when its process died is checked and kept."""
    target = tmp_path / "file"
    target.write_bytes(CONTENT)
    with serving({"/file": CONTENT}) as server:
        fetch(server, target)

    assert target.read_bytes() == CONTENT


def test_a_server_without_ranges_starts_over(tmp_path: Path) -> None:
    """Status 200 to a range means the whole file, which replaces what was there."""
    target = tmp_path / "file"
    target.write_bytes(b"x" * 1000)
    with serving({"/file": CONTENT}, ranges=False) as server:
        fetch(server, target)

    assert target.read_bytes() == CONTENT


def test_a_wrong_hash_is_refused_and_the_file_deleted(tmp_path: Path) -> None:
    """The error has both hashes; the next attempt starts clean."""
    target = tmp_path / "file"
    with serving({"/file": CONTENT}) as server, pytest.raises(WeightsError, match=f"{SHA256}, must be 00ff") as caught:
        fetch(server, target, "00ff")

    assert caught.value.kind == "repo_fetch_failed"
    assert not target.exists()


def test_a_refusing_server_is_told(tmp_path: Path) -> None:
    """A status that is no file is an error at once, with the address."""
    with serving({}) as server, pytest.raises(WeightsError, match=r"/file: HTTP 404"):
        fetch(server, tmp_path / "file")


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(tmp_path: Path, status: int) -> None:
    """After longer and longer pauses, and of the bytes that are missing; one that stays so is given up."""
    target = tmp_path / "file"
    with serving({"/file": CONTENT}, [30_000]) as server:
        server.refusals["/file"] = [None, Refusal(status), Refusal(status)]
        recorder = fetch(server, target)
        server.refusals["/file"] = [Refusal(status)] * 9
        with pytest.raises(WeightsError, match=f"/file: HTTP {status}"):
            fetch(server, tmp_path / "other")

        assert [wanted for _, _, wanted in server.asked[:4]] == [None, *["bytes=30000-"] * 3]
        assert len(server.refusals["/file"]) == 3
    assert target.read_bytes() == CONTENT
    assert recorder.pauses == sorted(recorder.pauses)


def test_a_dead_server_is_given_up(tmp_path: Path) -> None:
    """Six attempts without a byte, with growing pauses, then the error; what is there stays for later."""
    target = tmp_path / "file"
    target.write_bytes(CONTENT[:10])
    with serving({"/file": CONTENT}, [0] * 6) as server:
        recorder = Recorder()
        with httpx.Client(trust_env=False) as client, pytest.raises(WeightsError):
            download(client, server.url + "/file", target, recorder.report, pause=recorder.pauses.append)

    assert recorder.pauses == sorted(recorder.pauses)
    assert len(recorder.pauses) == 5
    assert target.read_bytes() == CONTENT[:10]
