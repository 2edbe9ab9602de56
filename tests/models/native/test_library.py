"""Building the kernels: once, and with a plain reason where it is impossible."""

from pathlib import Path

import pytest

from models.native import build, library, prebuilt

V4 = dict(prebuilt.LEVELS["x86_64"])["x86-64-v4"]


def test_no_compiler_is_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(build.BuildError, match="no C\\+\\+ compiler"):
        build.build(tmp_path)


def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "broken"
    compiler.write_text("#!/bin/sh\necho no such register >&2; exit 3\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(build.BuildError, match="no such register"):
        build.build(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_built_library_is_not_built_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler, calls = tmp_path / "counting", tmp_path / "calls"
    compiler.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && exit 0\necho >>{calls}\nfor last; do :; done; touch "$last"\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    assert build.build(tmp_path / "cache") == build.build(tmp_path / "cache")
    assert calls.read_text().count("\n") == len(list(build.SOURCES.glob("*.cc"))) + 1


@pytest.mark.parametrize(
    ("machine", "features", "level"),
    [
        ("x86_64", V4 | {"avx512_vnni", "amx_tile", "amx_int8", "sse4a"}, "x86-64-v4+avx512vnni+amx-tile+amx-int8"),
        ("x86_64", V4 | {"avx512_vnni", "amx_tile"}, "x86-64-v4+avx512vnni"),
        ("x86_64", V4 | {"sse4a"}, "x86-64-v4"),
        ("x86_64", dict(prebuilt.LEVELS["x86_64"])["x86-64-v3"] | {"avx512f"}, "x86-64-v3"),
        ("x86_64", {"sse4a"}, None),
        ("aarch64", {"asimd"}, "armv8-a"),
        ("riscv64", set(), None),
    ],
)
def test_what_came_compiled_is_taken_by_what_the_processor_can_do(
    tmp_path: Path, machine: str, features: set[str], level: str | None
) -> None:
    for levels in prebuilt.LEVELS.values():
        for each, _ in levels:
            (tmp_path / prebuilt.name(each)).touch()

    assert prebuilt.pick(tmp_path, machine, features) == (tmp_path / prebuilt.name(level) if level else None)


def test_kernels_of_other_sources_are_not_taken(tmp_path: Path) -> None:
    (tmp_path / "kernels-armv8-a-0123456789abcdef.so").touch()

    assert prebuilt.pick(tmp_path, "aarch64", set()) is None


def test_without_a_compiler_those_that_came_compiled_serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(prebuilt, "find", lambda: tmp_path / "kernels-x86-64-v3-0.so")

    assert build.here(tmp_path) == tmp_path / "kernels-x86-64-v3-0.so"
    assert build.described(tmp_path) == "prebuilt, x86-64-v3-0"


def test_they_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(build.DISABLE, "0")
    assert library.unavailable.__wrapped__() == f"{build.DISABLE}=0"


def test_setting_up_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(library, "unavailable", lambda: "no C++ compiler")
    assert library.main() == 1
    assert "no C++ compiler" in capsys.readouterr().out
