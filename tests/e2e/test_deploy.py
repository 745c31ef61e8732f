"""Models over time: a version beside another, under load, on the real server."""

from __future__ import annotations

import hashlib
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
import yaml

from handler.card import sha256_of
from scripts.lib.archive import ENTRY, archive_inputs, archive_path, build_archive
from scripts.lib.management import Management
from scripts.lib.model_folder import read_model_folder
from scripts.lib.packed import MODEL_CONFIG
from scripts.lib.paths import BUNDLED
from tests.support.clients.load import PICTURE, load
from tests.support.machine.ports import free_ports
from tests.support.pictures.golden import CHELSEA
from tests.support.servers.running import Running, called, command, serving
from tests.support.servers.versions import NEW_LABEL, write_golden, write_new_version

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model store with the archive of a new model beside the one that is served."""
    store = tmp_path_factory.mktemp("store")
    assert write_new_version(store) == store / "densenet-2.0.mar"
    return store


@pytest.fixture(scope="module")
def served(store: Path) -> Iterator[Running]:
    """The bundled model, version 1.0, one worker."""
    with serving(store, "--workers", "1") as running:
        yield running


@pytest.fixture(scope="module")
def label(served: Running) -> str:
    """What version 1.0 says of the picture."""
    answer = requests.put(served.predictions, data=PICTURE, timeout=60)
    assert answer.status_code == 200
    return str(answer.json()["label"])


def versions(served: Running) -> list[str]:
    """The versions, the default one first."""
    management = Management(served.management)
    default = management.status().version
    return [default, *sorted({model.version for model in management.versions()} - {default})]


def deploy(served: Running, *arguments: str) -> str:
    """``deploy.py``, which succeeds; what it printed."""
    result = command("deploy.py", *arguments, "--port", str(served.port))
    assert result.returncode == 0, result.stderr + result.stdout
    return result.stdout


def test_a_new_version_takes_over_and_goes_back_under_load(
    served: Running, store: Path, label: str, tmp_path: Path
) -> None:
    archive = archive_path(store, "2.0")
    with load(served.predictions) as running:
        printed = deploy(served, str(archive), "--golden", write_golden(tmp_path, NEW_LABEL + label))
        assert "version 2.0: 1 of 1 golden pictures as expected\nversion 2.0 is the default; " in printed
        assert printed.endswith(f"after a restart, too: python3 scripts/serve.py --weights {archive}\n")
        running.wait_for(5)
        assert versions(served) == ["2.0", "1.0"]
        status = command("status.py", "--port", str(served.port)).stdout
        assert status.startswith("READY: densenet-new (compact, 46 classes), version 2.0, 1 of 1 workers READY\n")
        assert status.endswith("  beside it version 1.0, 1 of 1 workers READY\n")
        scaled = command("scale.py", "2", "--port", str(served.port))
        assert scaled.returncode == 0, scaled.stderr
        assert {model.version: model.ready for model in Management(served.management).versions()} == {
            "1.0": 1,
            "2.0": 2,
        }
        assert command("scale.py", "1", "--port", str(served.port)).returncode == 0
        printed = deploy(served, "--rollback")
        assert printed == "version 1.0 is the default again; 2.0 is kept, --rollback changes back\n"
        running.wait_for(5)
        assert deploy(served, "--list").splitlines() == [
            "1.0\tdefault\t1 of 1 workers READY\tdensenet.mar",
            "2.0\tbeside it\t1 of 1 workers READY\tdensenet-2.0.mar",
        ]
        deploy(served, "--rollback")
        deploy(served, "--rollback")
        deploy(served, "--remove", "2.0")
        assert versions(served) == ["1.0"]
    running.report("deployed, scaled, rolled back thrice, removed")
    assert set(running.answers) == {200}
    assert set(running.labels) == {label, NEW_LABEL + label}


def test_a_version_that_requests_still_name_is_not_removed(
    served: Running, store: Path, label: str, tmp_path: Path
) -> None:
    deploy(served, str(archive_path(store, "2.0")), "--golden", write_golden(tmp_path, NEW_LABEL + label))
    deploy(served, "--rollback")
    with load(f"{served.predictions}/2.0") as running:
        result = command("deploy.py", "--remove", "2.0", "--port", str(served.port))
        assert result.returncode == 1
        assert "requests for version 2.0 came within 2 s; it stays until nobody sends" in result.stderr
    assert set(running.answers) == {200}
    deploy(served, "--remove", "2.0")
    assert requests.put(f"{served.predictions}/2.0", data=PICTURE, timeout=60).status_code == 404
    assert versions(served) == ["1.0"]


def test_an_archive_that_fails_its_golden_pictures_is_refused(
    served: Running, store: Path, label: str, tmp_path: Path
) -> None:
    """One has another label, the other the label with too little probability, the third is as expected."""
    pictures = Path(write_golden(tmp_path, NEW_LABEL + label))
    with pictures.open("a", encoding="utf-8") as file:
        for name, wrong, least in (("a.png", label, 0.3), ("b.png", NEW_LABEL + label, 1)):
            shutil.copy(CHELSEA, tmp_path / name)
            file.write(f"{name},{wrong},{least}\n")
    with load(served.predictions) as running:
        arguments = [str(archive_path(store, "2.0")), "--golden", str(pictures), "--port", str(served.port)]
        result = command("deploy.py", *arguments)
    assert result.returncode == 1
    assert re.fullmatch(
        r"error: version 2\.0 fails 2 of 3 golden pictures, and the old version goes on serving: "
        rf"\S+a\.png: {NEW_LABEL}{label} 0\.\d+, expected {label} 0\.3000 or more; "
        rf"\S+b\.png: {NEW_LABEL}{label} 0\.\d+, expected {NEW_LABEL}{label} 1\.0000 or more\n",
        result.stderr,
    )
    assert versions(served) == ["1.0"]
    assert set(running.answers) == {200}
    assert set(running.labels) == {label}


def test_an_archive_whose_worker_cannot_start_is_refused(
    served: Running, store: Path, label: str, tmp_path: Path
) -> None:
    """A card that contradicts the weights, packed behind the checks' back."""
    model = read_model_folder(BUNDLED)
    files = archive_inputs(model, model.card, {})
    config = yaml.safe_load(files[MODEL_CONFIG])
    config["handler"]["num_classes"] = 47
    files[MODEL_CONFIG] = yaml.safe_dump(config).encode()
    archive = archive_path(store, "3.0")
    packed = build_archive(files, "3.0")
    archive.write_bytes(packed)
    sha256 = ("--sha256", hashlib.sha256(packed).hexdigest())
    arguments = [str(archive), "--golden", write_golden(tmp_path, label), *sha256, "--port", str(served.port)]
    with load(served.predictions) as running:
        result = command("deploy.py", *arguments)
    assert result.returncode == 1
    assert "error: the worker of version 3.0 can't start: handler.card.CardError" in result.stderr
    assert "46 labels for 47 classes" in result.stderr
    assert versions(served) == ["1.0"]
    assert set(running.answers) == {200}


def test_what_cannot_be_deployed_is_said(served: Running, store: Path, label: str, tmp_path: Path) -> None:
    pictures = write_golden(tmp_path, label)
    other = tmp_path / "densenet-2.0.mar"  # of the same name, but not what lies in the model store
    model = read_model_folder(BUNDLED)
    other.write_bytes(build_archive(archive_inputs(model, model.card, {}), "2.0"))
    link = store / "link.mar"
    link.symlink_to(archive_path(store, "2.0"))
    elsewhere = tmp_path / "elsewhere.mar"
    elsewhere.write_bytes(build_archive(archive_inputs(model, model.card, {}), "4.0"))
    elsewhere_said = f"{elsewhere} doesn't lie in the server's model store, {store.resolve()}; copy it there"
    wrong = {
        (str(other), "--golden", pictures): f"{other} doesn't lie in the server's model store, {store.resolve()}; copy",
        (str(link), "--golden", pictures): f"{link} is a symbolic link; copy the archive itself into the model store",
        (str(elsewhere), "--golden", pictures): elsewhere_said,
        (str(archive_path(store)), "--golden", pictures): "version 1.0 is registered already; build the archive with",
        ("--remove", "1.0"): "version 1.0 is the default; make another one the default before, with --rollback",
        ("--remove", "7.0"): "there is no version 7.0; registered are 1.0",
        ("--rollback",): "version 2.0 was removed; 1.0 stays the default",
    }
    for arguments, message in wrong.items():
        result = called("deploy.py", *arguments, "--port", str(served.port))
        assert result.returncode == 1
        assert message in result.stderr
        assert result.stderr.count("\n") == 1
        assert versions(served) == ["1.0"]
    assert called("deploy.py", str(other), "--port", str(served.port)).returncode == 2
    assert called("deploy.py", "--port", str(served.port)).returncode == 2


TRAP = "import pathlib\npathlib.Path({!r}).write_text('executed')\n"


def trapped(built: Path, archive: Path, mark: Path) -> str:
    """A copy of an archive as ``archive``, whose handler writes the file ``mark`` where it is loaded; its SHA-256."""
    with zipfile.ZipFile(built) as old, zipfile.ZipFile(archive, "w") as new:
        new.comment = old.comment  # by which a build would take it for up to date
        for name in old.namelist():
            content = old.read(name)
            if name == ENTRY:
                head, future, rest = content.decode().partition("from __future__ import annotations\n")
                content = (head + future + TRAP.format(str(mark)) + rest).encode()
            new.writestr(name, content)
    return sha256_of(archive)


def test_an_archive_from_elsewhere_is_not_loaded_without_its_hash(
    served: Running, store: Path, label: str, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    archive = store / "foreign.mar"
    sha256 = trapped(archive_path(store, "2.0"), archive, mark)
    deploy_it = ("deploy.py", str(archive), "--golden", write_golden(tmp_path, NEW_LABEL + label))
    serve_it = ("serve.py", "--detach", "--weights", str(archive))
    other = sha256_of(archive_path(store, "2.0"))
    for arguments, port in ((deploy_it, served.port), (serve_it, free_ports())):
        unknown = command(*arguments, "--port", str(port))
        assert (unknown.returncode, unknown.stderr) == (1, (
            f"error: {archive} wasn't built here: its SHA-256 is {sha256}; compare it with the one that "
            "build_archive.py printed where it was built, and add that one as --sha256 HEX\n"
        ))  # fmt: skip
        wrong = command(*arguments, "--port", str(port), "--sha256", other)
        assert wrong.returncode == 1
        assert f"isn't the archive that is expected: its SHA-256 is {sha256}, expected {other}; " in wrong.stderr
    by_variable = command(*serve_it, "--port", str(free_ports()), DENSENET_SHA256=other)
    assert f"its SHA-256 is {sha256}, expected {other}; " in by_variable.stderr
    assert versions(served) == ["1.0"]
    assert not mark.exists(), "code of the archive ran"

    printed = deploy(served, *deploy_it[1:], "--sha256", sha256)
    assert mark.exists(), "the trap catches nothing"
    assert printed.endswith(f"python3 scripts/serve.py --weights {archive} --sha256 {sha256}\n")
    deploy(served, "--rollback")
    deploy(served, "--remove", "2.0")


def test_an_archive_that_was_swapped_is_not_served(store: Path, tmp_path: Path) -> None:
    """It was built here; then a byte of it changed, or another with the same inputs' note lies in its place."""
    built = archive_path(store, "2.0")
    swapped = tmp_path / "densenet.mar"
    content = bytearray(built.read_bytes())
    content[len(content) // 2] ^= 1
    swapped.write_bytes(content)
    result = called("serve.py", "--detach", "--weights", str(swapped), "--port", str(free_ports()))
    assert result.returncode == 1
    assert f"error: {swapped} wasn't built here: its SHA-256 is {sha256_of(swapped)}; " in result.stderr

    mark = tmp_path / "mark"
    own = ("build_archive.py", "--weights", "bundled", "--model-store", str(tmp_path))
    assert ": built, " in command(*own).stdout
    honest = sha256_of(swapped)
    trapped(swapped, tmp_path / "trapped", mark)
    (tmp_path / "trapped").replace(swapped)
    assert ": built, " in command(*own).stdout, "taken for up to date"
    assert sha256_of(swapped) == honest
    assert ": up to date, " in command(*own).stdout


def test_a_folder_has_no_hash_of_an_archive() -> None:
    result = called("serve.py", "--weights", "bundled", "--sha256", "0" * 64, "--port", str(free_ports()))
    assert result.returncode == 1
    assert result.stderr == ("error: --sha256 is of a finished archive, and --weights bundled is none; leave it out\n")


def test_a_restart_serves_the_archive_that_is_named(served: Running, store: Path, label: str) -> None:
    with serving(store, "--workers", "1", weights=archive_path(store, "2.0")) as restarted:
        assert versions(restarted) == ["2.0"]
        assert requests.put(restarted.predictions, data=PICTURE, timeout=60).json()["label"] == NEW_LABEL + label
        result = command("deploy.py", "--rollback", "--port", str(restarted.port))
        assert "no version was deployed on this server, so there is none to roll back to" in result.stderr
