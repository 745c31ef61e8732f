"""Releases: when one is refused, what one consists of, and that the version is the same wherever it stands."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts import release
from scripts.lib.console import CommandError
from scripts.lib.paths import ROOT
from scripts.lib.releasing import CI_PASSED
from scripts.lib.version import project_version

VERSION = project_version(ROOT)


def git(folder: Path, *arguments: str) -> str:
    name = ("-c", "user.name=Test", "-c", "user.email=test@example.com")
    return subprocess.run(["git", *name, *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout


def pass_ci(checkout: Path) -> None:
    (checkout / CI_PASSED).parent.mkdir(exist_ok=True)
    (checkout / CI_PASSED).write_text(git(checkout, "rev-parse", "HEAD"))


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout that can be released, on a machine on which git is the only program."""
    programs = tmp_path / "programs"
    programs.mkdir()
    git_here = shutil.which("git")
    assert git_here
    (programs / "git").symlink_to(git_here)
    monkeypatch.setenv("PATH", str(programs))
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("pyproject.toml", "CHANGELOG.md", ".gitignore", "requirements.lock", "requirements-torch.lock"):
        shutil.copy(ROOT / name, folder)
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "all")
    pass_ci(folder)
    return folder


def make(checkout: Path, *arguments: str) -> int:
    return release.main(release.build_parser().parse_args(arguments), checkout)


def install(checkout: Path, name: str, script: str) -> None:
    """Put a program on the PATH; ``$0.log`` gets its arguments, a call a line."""
    program = checkout.parent / "programs" / name
    program.write_text(f'#!/bin/sh\necho "$*" >>"$0.log"\n{script}\n')
    program.chmod(0o755)


@pytest.mark.slow
def test_a_release_is_an_archive_its_hash_and_a_bill_of_materials(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert make(checkout, "--no-image") == 0
    folder = checkout / "release" / VERSION
    assert sorted(path.name for path in folder.iterdir()) == ["densenet.mar", "densenet.mar.sha256", "sbom.json"]
    digest = hashlib.sha256((folder / "densenet.mar").read_bytes()).hexdigest()
    assert (folder / "densenet.mar.sha256").read_text() == f"{digest}  densenet.mar\n"
    bill = json.loads((folder / "sbom.json").read_text(encoding="utf-8"))
    assert bill["metadata"]["component"]["version"] == VERSION
    assert f"git tag -a v{VERSION}" in capsys.readouterr().out
    assert make(checkout, "--no-image") == 0, "what it made is no change of the work tree"


def change(checkout: Path) -> None:
    (checkout / "new.py").touch()


def undate(checkout: Path) -> None:
    changelog = checkout / "CHANGELOG.md"
    text = changelog.read_text(encoding="utf-8")
    changelog.write_text(re.sub(r"^(## \[.+\]) - .+$", r"\1", text, flags=re.MULTILINE), encoding="utf-8")
    git(checkout, "commit", "--quiet", "-am", "undated")
    pass_ci(checkout)


def tag_another(checkout: Path) -> None:
    git(checkout, "tag", "-a", f"v{VERSION}", "-m", "it")
    git(checkout, "commit", "--quiet", "--allow-empty", "-m", "later")
    pass_ci(checkout)


def commit_after_ci(checkout: Path) -> None:
    git(checkout, "commit", "--quiet", "--allow-empty", "-m", "later")


def no_ci(checkout: Path) -> None:
    (checkout / CI_PASSED).unlink()


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (change, "the work tree has changes"),
        (undate, f"no section `## [{VERSION}] - DATE`"),
        (tag_another, f"the tag v{VERSION} is another commit's"),
        (commit_after_ci, "is known to have passed"),
        (no_ci, "is known to have passed"),
    ],
)
def test_what_isnt_ready_is_refused(checkout: Path, spoil: Callable[[Path], None], why: str) -> None:
    spoil(checkout)
    with pytest.raises(CommandError) as refused:
        make(checkout, "--no-image")
    assert why in str(refused.value) and ";" in str(refused.value)
    assert str(refused.value).count(";") == 1, "and nothing else is wrong"
    assert not (checkout / "release").exists()


@pytest.fixture
def no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that take seconds are another test's."""
    monkeypatch.setattr("scripts.lib.releasing.write_files", lambda root, folder: None)


@pytest.mark.usefixtures("no_files")
def test_the_tag_may_be_there_where_it_is_this_commits(checkout: Path) -> None:
    git(checkout, "tag", "-a", f"v{VERSION}", "-m", "it")
    assert make(checkout, "--no-image") == 0


@pytest.mark.usefixtures("no_files")
@pytest.mark.parametrize(
    ("answer", "green"), [('echo \'[{"url": "…"}]\'', True), ("echo '[]'", False), ("exit 1", False)]
)
def test_the_hosts_nightly_run_counts_as_well(checkout: Path, answer: str, green: bool) -> None:
    no_ci(checkout)
    install(checkout, "gh", answer)
    if green:
        assert make(checkout, "--no-image") == 0
    else:
        with pytest.raises(CommandError, match="is known to have passed"):
            make(checkout, "--no-image")
    commit = git(checkout, "rev-parse", "HEAD").strip()
    asked = (checkout.parent / "programs" / "gh.log").read_text()
    assert f"--workflow nightly.yml --commit {commit} --status success" in asked
    assert (ROOT / ".github" / "workflows" / "nightly.yml").is_file()


@pytest.mark.usefixtures("no_files")
def test_the_image_carries_version_and_commit_and_becomes_a_file(checkout: Path, tmp_path: Path) -> None:
    install(checkout, "podman", "")
    assert make(checkout, "--out", str(tmp_path / "out")) == 0
    built, saved = (checkout.parent / "programs" / "podman.log").read_text().splitlines()
    commit = git(checkout, "rev-parse", "HEAD").strip()
    arguments = f"--build-arg=VERSION={VERSION} --build-arg=REVISION={commit}"
    assert built == f"build -t densenet:{VERSION} {arguments} {checkout}"
    assert saved == f"save -o {tmp_path / 'out' / 'densenet-image.tar'} densenet:{VERSION}"
    arguments_of_the_image = re.findall(r"^ARG (\w+)", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    assert {"VERSION", "REVISION"} <= set(arguments_of_the_image)


@pytest.mark.usefixtures("no_files")
def test_an_image_that_cant_be_built_is_told_of(checkout: Path) -> None:
    with pytest.raises(CommandError, match="docker or podman, and neither is here; --no-image"):
        make(checkout)
    install(checkout, "docker", "exit 1")
    with pytest.raises(CommandError, match=r"docker build .* failed, see above"):
        make(checkout)


def test_the_version_is_the_same_wherever_it_stands() -> None:
    """In the image's label, in the manifests' tags, and in what documents show of them."""
    tags = r"newTag: (\d+\.\d+\.\d+)|/densenet:(\d+\.\d+\.\d+)"
    named = rf"^ARG VERSION=(\S+)|{tags}|^\| `VERSION`, `REVISION` \| `([^`]+)`"
    files = [ROOT / "Dockerfile", *(ROOT / "config").rglob("*.yaml"), *(ROOT / "docs").glob("*.md")]
    found = {
        f"{path.relative_to(ROOT)} {match[0]}": next(filter(None, match.groups()))
        for path in files
        if "canary" not in path.parts  # it shows the next version beside this one
        for match in re.finditer(named, path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert {where: version for where, version in found.items() if version != VERSION} == {}
    assert {where.split()[0] for where in found} >= {"Dockerfile", "docs/container.md", "docs/kubernetes.md"}


def test_the_changelog_is_in_dated_sections_newest_first() -> None:
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    released = [re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)", heading) for heading in headings[1:]]
    assert released and all(released)
    dates = [match[2] for match in released if match]
    assert dates == sorted(dates, reverse=True)
