"""packaging/release.py and the workflows: versions, checksums, signatures, and the same steps on both forges."""

import importlib.util
import pathlib
import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("release", ROOT / "packaging/release.py")
assert spec
assert spec.loader
release = importlib.util.module_from_spec(spec)
spec.loader.exec_module(release)


@pytest.fixture
def tree(tmp_path: pathlib.Path) -> pathlib.Path:
    """A repository with the files that have the version."""
    for place in release.PLACES:
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / place, tmp_path / place)
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--message", "a")
    return tmp_path


def git(folder: pathlib.Path, *words: str) -> None:
    subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True)


def test_the_version_is_the_same_everywhere() -> None:
    here = release.current(ROOT)
    tags = re.findall(r'newTag: "([^"-]+)', (ROOT / "packaging/kubernetes/kustomization.yaml").read_text())

    assert tags == [here, here]


def test_a_later_version_is_written_everywhere(tree: pathlib.Path) -> None:
    """And its tag is the only one that is taken for it."""
    release.bump("999.0.0rc1", tree)

    assert release.current(tree) == "999.0.0rc1"
    assert 'newTag: "999.0.0rc1-cuda12"' in (tree / "packaging/kubernetes/kustomization.yaml").read_text()
    release.tag("v999.0.0rc1", tree)
    with pytest.raises(release.ReleaseError, match=r"the tag is v1\.0\.0"):
        release.tag("v1.0.0", tree)


@pytest.mark.parametrize(
    ("version", "why"),
    [("0.0.1", "is not later than"), ("1.0", "is no version"), ("1.0.0-beta", "is no version"), ("", "is no version")],
)
def test_what_is_no_later_version_changes_nothing(tree: pathlib.Path, version: str, why: str) -> None:
    with pytest.raises(release.ReleaseError, match=why):
        release.bump(version, tree)

    assert release.current(tree) == release.current(ROOT)


def test_a_candidate_comes_before_its_version() -> None:
    assert release.order("1.2.3rc9") < release.order("1.2.3rc10") < release.order("1.2.3") < release.order("1.10.0rc1")


def test_other_changes_come_first(tree: pathlib.Path) -> None:
    """They would be part of the commit that only says the version."""
    (tree / "pyproject.toml").write_text((tree / "pyproject.toml").read_text() + "\n# more\n")

    with pytest.raises(release.ReleaseError, match="commit or put away first"):
        release.bump("999.0.0", tree)


def test_checksums_are_those_of_sha256sum(tmp_path: pathlib.Path) -> None:
    """Of all files, made twice alike; one that changes afterwards is noticed."""
    for name in ("b.whl", "a b.rpm"):
        (tmp_path / name).write_text(name)
    (tmp_path / "image").mkdir()
    for _ in range(2):
        release.checksums(str(tmp_path))
        subprocess.run(["sha256sum", "--check", "--strict", release.SUMS], cwd=tmp_path, check=True)
    (tmp_path / "b.whl").write_text("other")

    assert subprocess.run(["sha256sum", "--check", release.SUMS], cwd=tmp_path, check=False).returncode == 1


@pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="no ssh-keygen here")
def test_a_signature_can_be_checked(tmp_path: pathlib.Path) -> None:
    """By whoever has the public key."""
    key, dist = tmp_path / "key", tmp_path / "dist"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    (tmp_path / "signers").write_text(f"releases {key.with_suffix('.pub').read_text()}")
    dist.mkdir()
    (dist / "a.whl").touch()
    release.checksums(str(dist))
    release.sign(str(dist), str(key))
    verify = ["ssh-keygen", "-Y", "verify", "-f", str(tmp_path / "signers"), "-I", "releases", "-n", "file"]
    check = [*verify, "-s", str(dist / f"{release.SUMS}.sig")]

    assert subprocess.run(check, input=(dist / release.SUMS).read_bytes(), check=False).returncode == 0
    assert subprocess.run(check, input=b"other", check=False, capture_output=True).returncode != 0


def test_a_wrong_word_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert release.main(["tag", "v0"]) == 1
    assert capsys.readouterr().err.startswith("release: the tag is v0, and pyproject.toml says ")
    assert release.main(["publish"]) == 2


# -- workflows ----------------------------------------------------------------------------------------------------------

FORGES = (".github", ".forgejo")
NAMES = ("ci.yml", "release.yml")


def workflow(forge: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.load((ROOT / forge / "workflows" / name).read_text(), yaml.BaseLoader)
    return found


def made(forge: str, name: str) -> dict[str, list[str]]:
    """By job, the targets of make that it runs."""
    jobs = workflow(forge, name)["jobs"]
    runs = {job: "\n".join(step.get("run", "") for step in it["steps"]) for job, it in jobs.items()}
    return {job: re.findall(r"\bmake ([a-z-]+)", text) for job, text in runs.items()}


def targets() -> set[str]:
    text = "".join((ROOT / name).read_text() for name in ("Makefile", "packaging/release.mk"))
    return set(re.findall(r"^([a-z-]+):", text, re.MULTILINE)) | {"packages"}


@pytest.mark.parametrize("name", NAMES)
def test_both_forges_do_the_same(name: str) -> None:
    """By targets that the Makefile has, so that a person can do it, too."""
    github, forgejo = made(".github", name), made(".forgejo", name)

    assert github == forgejo
    assert {target for job in github.values() for target in job} <= targets()


@pytest.mark.parametrize("forge", FORGES)
def test_every_supported_python_is_tried(forge: str) -> None:
    """Before and after a merge, and once a week for what changes without one."""
    ci = workflow(forge, "ci.yml")
    assert ci["jobs"]["test"]["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13", "3.14"]
    assert made(forge, "ci.yml") == {
        "check": ["check", "licences", "manifests"],
        "test": ["test"],
        "audit": ["audit"],
    }
    assert {"push", "pull_request", "schedule"} <= set(ci["on"])


@pytest.mark.parametrize("forge", FORGES)
def test_a_tag_builds_everything(forge: str) -> None:
    """Tested before; NVIDIA's libraries are in no image that is published."""
    it = workflow(forge, "release.yml")
    assert it["on"] == {"push": {"tags": ["v*"]}}
    assert made(forge, "release.yml") == {"test": ["check", "test"], "build": ["artefacts"], "images": ["images"]}
    assert {it["jobs"][job]["needs"] for job in ("build", "images")} == {"test"}
    assert "cuda" not in (ROOT / forge / "workflows/release.yml").read_text().replace("# ", "").split("jobs:")[1]
