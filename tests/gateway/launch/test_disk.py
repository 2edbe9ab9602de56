"""Files on disk: merged with what they say, restored to the byte, refused untouched. All below a folder of the test's."""

import json
import os
import pathlib
from typing import Any

import pytest

from cortex_gateway.cli.api import CommandError
from cortex_gateway.cli.launch import disk
from cortex_gateway.cli.launch.setup import Member, OwnFile, SharedFile

THEIRS = b'\xef\xbb\xbf// mine\r\n{"theme": "dark",\r\n}'


@pytest.fixture
def place(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "state" / "client"


def shared(path: pathlib.Path, value: Any = 1) -> SharedFile:
    return SharedFile((str(path),), (Member(("ours",), value),))


def apply(place: pathlib.Path, *files: OwnFile | SharedFile) -> list[pathlib.Path]:
    return disk.apply(disk.planned(files, place), place)


def everything(folder: pathlib.Path) -> dict[str, Any]:
    """Every path below, with its mode and bytes."""
    return {str(path): (path.stat().st_mode, path.is_file() and path.read_bytes()) for path in folder.rglob("*")}


def test_undo_restores_every_byte_mode_and_folder(tmp_path: pathlib.Path, place: pathlib.Path) -> None:
    """After several launches, too; and then there is nothing to undo."""
    user = tmp_path / "home"
    user.mkdir()
    (user / "settings.json").write_bytes(THEIRS)
    (user / "settings.json").chmod(0o640)
    before = everything(user)
    files = (
        shared(user / "settings.json"),
        shared(user / "new" / "deep" / "x.json"),
        OwnFile(f"{user}/own.toml", "a\n"),
    )

    assert len(apply(place, *files)) == 3
    assert apply(place, *files) == []
    assert apply(place, shared(user / "settings.json", 2)) == [user / "settings.json"]
    assert (user / "settings.json").read_bytes().startswith(b'\xef\xbb\xbf// mine\r\n{"theme": "dark",')
    assert (user / "settings.json").stat().st_mode & 0o777 == 0o640
    assert (user / "own.toml").stat().st_mode & 0o777 == 0o600

    assert len(disk.undo(place)) == 3
    assert everything(user) == before
    assert not place.exists()
    with pytest.raises(CommandError, match="nothing to undo"):
        disk.undo(place)


def test_what_was_written_since_is_kept_beside(tmp_path: pathlib.Path, place: pathlib.Path) -> None:
    path = tmp_path / "settings.json"
    path.write_text("{}")
    apply(place, shared(path))
    path.write_text('{"later": 1}')

    lines = disk.undo(place)

    assert path.read_text() == "{}"
    assert (tmp_path / "settings.json.before-undo").read_text() == '{"later": 1}'
    assert lines[0].endswith("settings.json.before-undo")


def test_a_launch_after_an_edit_keeps_the_edit(tmp_path: pathlib.Path, place: pathlib.Path) -> None:
    """And the backup stays the one from before the first."""
    path = tmp_path / "settings.json"
    path.write_text("{}")
    apply(place, shared(path))
    path.write_text(path.read_text().replace("{", '{"later": 1,'))
    apply(place, shared(path, 2))

    assert json.loads(path.read_text()) == {"later": 1, "ours": 2}
    disk.undo(place)
    assert path.read_text() == "{}"


@pytest.mark.parametrize(
    ("data", "told"),
    [(b"[]", "the file is not an object"), (b'{"a"', "a colon is missing"), (b"\xff{}", "not UTF-8")],
)
def test_a_malformed_file_is_refused_and_nothing_is_touched(
    tmp_path: pathlib.Path, place: pathlib.Path, data: bytes, told: str
) -> None:
    """The files beside it included."""
    (tmp_path / "bad.json").write_bytes(data)
    (tmp_path / "good.json").write_bytes(b"{}")
    before = everything(tmp_path)

    with pytest.raises(CommandError, match=told):
        apply(place, shared(tmp_path / "good.json"), OwnFile(f"{tmp_path}/own", "x"), shared(tmp_path / "bad.json"))

    assert everything(tmp_path) == before


def test_a_strangers_file_at_our_name_is_refused(tmp_path: pathlib.Path, place: pathlib.Path) -> None:
    (tmp_path / "own.toml").write_text("theirs")

    with pytest.raises(CommandError, match="is there already"):
        apply(place, OwnFile(f"{tmp_path}/own.toml", "ours"))

    assert (tmp_path / "own.toml").read_text() == "theirs"


def test_a_name_that_the_user_has_taken_is_refused(tmp_path: pathlib.Path, place: pathlib.Path) -> None:
    """Not on the next launch: then it is what we wrote."""
    path = tmp_path / "providers.json"
    file = SharedFile((str(path),), (Member(("providers", "x"), {"key": 1}, taken=True),))
    path.write_text('{"providers": {"x": {"key": "theirs"}}}')
    with pytest.raises(CommandError, match=r"has providers\.x already"):
        apply(place, file)
    path.write_text('{"providers": {"y": 1}}')

    apply(place, file)

    assert apply(place, file) == []
    assert json.loads(path.read_text()) == {"providers": {"y": 1, "x": {"key": 1}}}


def test_a_link_stays_a_link(tmp_path: pathlib.Path, place: pathlib.Path) -> None:
    """Settings are often links into a folder of dotfiles."""
    (tmp_path / "dotfiles.json").write_text("{}")
    (tmp_path / "settings.json").symlink_to("dotfiles.json")

    apply(place, shared(tmp_path / "settings.json"))

    assert (tmp_path / "settings.json").is_symlink()
    assert json.loads((tmp_path / "dotfiles.json").read_text()) == {"ours": 1}


def test_the_first_that_exists_is_merged_with(tmp_path: pathlib.Path, place: pathlib.Path) -> None:
    (tmp_path / "b.jsonc").write_text("{}")
    file = SharedFile((f"{tmp_path}/a.json", f"{tmp_path}/b.jsonc"), (Member(("ours",), 1),))

    assert apply(place, file) == [tmp_path / "b.jsonc"]
    assert not (tmp_path / "a.json").exists()


def test_a_lost_backup_changes_nothing(tmp_path: pathlib.Path, place: pathlib.Path) -> None:
    """It is told before anything is restored."""
    path = tmp_path / "settings.json"
    path.write_text("{}")
    apply(place, OwnFile(f"{tmp_path}/own", "x"), shared(path))
    (place / "1").unlink()
    before = everything(tmp_path)

    with pytest.raises(CommandError, match=r"the backup of .* is not in"):
        disk.undo(place)

    assert everything(tmp_path) == before


def test_a_strange_manifest_is_refused(place: pathlib.Path) -> None:
    place.mkdir(parents=True)
    (place / "manifest.json").write_text('{"files": [{"path": 1}]}')

    with pytest.raises(CommandError, match="is not what"):
        disk.undo(place)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_told(tmp_path: pathlib.Path, place: pathlib.Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)

    with pytest.raises(CommandError, match="Permission denied"):
        apply(place, OwnFile(f"{tmp_path}/locked/own", "x"))


def test_a_folder_in_the_place_of_a_file_is_told(tmp_path: pathlib.Path, place: pathlib.Path) -> None:
    (tmp_path / "settings.json").mkdir()

    with pytest.raises(CommandError, match="Is a directory"):
        apply(place, shared(tmp_path / "settings.json"))
