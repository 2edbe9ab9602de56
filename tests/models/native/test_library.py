"""Building the kernels: once, and with a plain reason where it is impossible."""

from pathlib import Path

import pytest

from models.native import library


def test_no_compiler_is_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(library.BuildError, match="no C\\+\\+ compiler"):
        library.build(tmp_path)


def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "broken"
    compiler.write_text("#!/bin/sh\necho no such register >&2; exit 3\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(library.BuildError, match="no such register"):
        library.build(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_built_library_is_not_built_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler, calls = tmp_path / "counting", tmp_path / "calls"
    compiler.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && exit 0\necho >>{calls}\nfor last; do :; done; touch "$last"\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    assert library.build(tmp_path / "cache") == library.build(tmp_path / "cache")
    assert calls.read_text().count("\n") == len(list(library.SOURCES.glob("*.cc"))) + 1


def test_they_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(library.DISABLE, "0")
    assert library.unavailable.__wrapped__() == f"{library.DISABLE}=0"


def test_setting_up_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(library, "unavailable", lambda: "no C++ compiler")
    assert library.main() == 1
    assert "no C++ compiler" in capsys.readouterr().out
