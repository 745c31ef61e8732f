"""What a release must fulfil, and the files that it consists of."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from handler.card import sha256_of
from scripts.lib.archive import ensure_archive
from scripts.lib.bom import bill_of_materials
from scripts.lib.console import CommandError
from scripts.lib.model_folder import json_bytes
from scripts.lib.weights import resolve_weights

ENGINES = ("docker", "podman")
NIGHTLY = "nightly.yml"
CI_PASSED = Path(".run") / "ci-passed"
"""``.ci/run`` writes the commit on which it passed into this file of the checkout."""


def _said_by(root: Path, *command: str) -> str:
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.strip()


def head(root: Path) -> str:
    """The commit that is checked out."""
    return _said_by(root, "git", "rev-parse", "HEAD")


def obstacles(root: Path, version: str) -> Iterator[str]:
    """Why the checkout can't be released as ``version``, and what to do; nothing if it can."""
    if _said_by(root, "git", "status", "--porcelain"):
        yield "the work tree has changes that no commit holds; commit or remove them"
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    if not re.search(rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$", changelog, re.MULTILINE):
        yield f"CHANGELOG.md has no section `## [{version}] - DATE`; write it"
    commit, tag = head(root), f"v{version}"
    tagged = _said_by(root, "git", "for-each-ref", "--format=%(*objectname)%(objectname)", f"refs/tags/{tag}")
    if tagged and not tagged.startswith(commit):  # a tag with a message is an object of its own that names a commit
        yield f"the tag {tag} is another commit's; raise the version in pyproject.toml"
    if not nightly_is_green(root, commit):
        yield f"neither .ci/run here nor the host's nightly run is known to have passed on {commit[:12]}; run .ci/run"


def nightly_is_green(root: Path, commit: str) -> bool:
    """Whether everything was tested on ``commit`` and passed: here, by ``.ci/run``, or by the host's nightly run."""
    stamp = root / CI_PASSED
    if stamp.is_file() and stamp.read_text(encoding="utf-8").strip() == commit:
        return True
    gh = shutil.which("gh")
    if gh is None:
        return False
    command = [gh, "run", "list", "--workflow", NIGHTLY, "--commit", commit, "--status", "success", "--json", "url"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    return done.returncode == 0 and bool(json.loads(done.stdout))


def write_files(root: Path, folder: Path) -> None:
    """Write the archive of the bundled model, its SHA-256 as ``sha256sum --check`` reads it, and the SBOM."""
    archive, _, _ = ensure_archive(resolve_weights("bundled"), folder)
    (folder / f"{archive.name}.sha256").write_text(f"{sha256_of(archive)}  {archive.name}\n", encoding="utf-8")
    (folder / "sbom.json").write_bytes(json_bytes(bill_of_materials(root)))


def engine() -> str:
    """What builds images here.

    Raises:
        CommandError: nothing does.
    """
    for name in ENGINES:
        if path := shutil.which(name):
            return path
    raise CommandError(f"the image needs {' or '.join(ENGINES)}, and neither is here; --no-image leaves it out")


def write_image(root: Path, folder: Path, version: str, builder: str) -> None:
    """Build the image of the checkout and write it as a file that ``docker load`` takes.

    Raises:
        CommandError: it can't be built; why stands above.
    """
    image = f"densenet:{version}"
    arguments = [f"--build-arg=VERSION={version}", f"--build-arg=REVISION={head(root)}"]
    build = [builder, "build", "-t", image, *arguments, str(root)]
    save = [builder, "save", "-o", str(folder / "densenet-image.tar"), image]
    for command in (build, save):
        if subprocess.run(command, check=False).returncode:
            raise CommandError(f"`{' '.join(command)}` failed, see above; --no-image leaves the image out")
