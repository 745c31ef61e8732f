"""Models over time: a new version beside the old, checked before it becomes the default, the old kept for rollback."""

from __future__ import annotations

import csv
import re
import shutil
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path

import requests

from handler.card import ModelCard
from scripts.lib.console import CommandError, duration, say
from scripts.lib.error_form import error_of
from scripts.lib.management import POLL_SECONDS, describes
from scripts.lib.packed import check_archive, packed_model
from scripts.lib.paths import MODEL_NAME
from scripts.lib.server import LOG, Server, held_workers, read_token, remember, worker_error
from scripts.lib.serving import WARM_UP_REQUESTS

START_TIMEOUT = 180
QUIET_S = 2.0
"""A version that no request named for so long can be removed."""
COLUMNS = ("path", "label", "probability")


@dataclass(frozen=True)
class Golden:
    """A picture whose ``label`` is known, and the least ``probability`` (0 to 1) that a good model gives it."""

    path: Path
    label: str
    probability: float


def read_golden(path: Path) -> list[Golden]:
    """The golden pictures that a CSV file lists: ``path,label,probability``, paths relative to the file's folder.

    Raises:
        CommandError: no such file, a column or a picture is missing, or a probability isn't from 0 to 1.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise CommandError(
                    f"{path} begins with {','.join(reader.fieldnames or []) or 'nothing'}; "
                    f"expected the columns {','.join(COLUMNS)}"
                )
            golden = [_golden(path, number, row) for number, row in enumerate(reader, start=2)]
    except OSError as error:
        raise CommandError(f"can't read the golden pictures {path}: {error.strerror}") from None
    if not golden:
        raise CommandError(f"{path} lists no picture; a version isn't deployed unchecked")
    return golden


def _golden(path: Path, number: int, row: dict[str, str]) -> Golden:
    picture = path.parent / (row["path"] or "")
    try:
        probability = float(row["probability"])
    except (TypeError, ValueError):
        probability = -1.0
    if not picture.is_file():
        raise CommandError(f"{path}, line {number}: there is no picture {picture}")
    if not row["label"] or not 0 <= probability <= 1:
        raise CommandError(
            f"{path}, line {number}: expected a label and its least probability from 0 to 1, "
            f"found {row['label']!r} and {row['probability']!r}"
        )
    return Golden(picture, row["label"], probability)


def deploy(server: Server, archive: Path, golden: list[Golden], sha256: str | None = None) -> str:
    """Make the version in ``archive``, which lies in the server's model store, the default; the old one stays.

    ``sha256`` is the archive's, where it comes from elsewhere.

    Returns:
        The new version.

    Raises:
        CommandError, CardError: the archive can't be registered, its workers don't start, or it fails its golden
            pictures; it is gone then, and the old version has served all the time.
    """
    if archive.is_symlink():
        raise CommandError(f"{archive} is a symbolic link; copy the archive itself into the model store")
    store = Path(server.model_store)
    if archive.resolve().parent != store:  # TorchServe takes the one of that name there: no other is to be checked
        raise CommandError(f"{archive} doesn't lie in the server's model store, {store}; copy it there")
    check_archive(archive, sha256)
    version, card = packed_model(archive)
    management = server.management
    old = management.status()
    if version in {model.version for model in management.versions()}:
        raise CommandError(
            f"version {version} is registered already; build the archive with another --model-version, "
            f"or end that one with: deploy.py --remove {version}"
        )
    _check_space(server, archive)
    workers = max(1, old.min_workers)
    started = time.monotonic()
    with _registered(server, archive.name, version):
        _start(server, version, workers)
        say(f"version {version}: {workers} of {workers} workers READY in {duration(time.monotonic() - started)}")
        _check(server, version, card, golden, workers)
        say(f"version {version}: {len(golden)} of {len(golden)} golden pictures as expected")
        management.set_default(version)
    remember(replace(server, previous=old.version))
    return version


def _check_space(server: Server, archive: Path) -> None:
    """TorchServe says of a full disk that it failed to save the model.

    Raises:
        CommandError: the archive's content has no place in the server's temporary folder.
    """
    with zipfile.ZipFile(archive) as packed:
        needed = sum(member.file_size for member in packed.infolist())
    free = shutil.disk_usage(server.temporary).free
    if free < needed:
        raise CommandError(
            f"{archive} needs {needed / 1e6:.0f} MB in {server.temporary}, where the server unpacks it, and there are "
            f"{free / 1e6:.0f} MB; free some space"
        )


@contextmanager
def _registered(server: Server, archive: str, version: str) -> Iterator[None]:
    """``archive`` registered as ``version``; removed again when the block fails."""
    server.management.register(archive)
    try:
        yield
    except BaseException:
        server.management.unregister(version)
        raise


def _start(server: Server, version: str, workers: int) -> None:
    """Start the workers of a version and wait until they are READY.

    Raises:
        CommandError: one dies, with its own error, or time is up.
    """
    log = server.folder / LOG
    before = log.stat().st_size
    server.management.scale(workers, workers, version)
    deadline = time.monotonic() + START_TIMEOUT
    while server.management.status(version).ready < workers:
        error = worker_error(log, before, version)
        if error:
            raise CommandError(f"the worker of version {version} can't start: {error}; the old version goes on serving")
        if time.monotonic() > deadline:
            raise CommandError(f"version {version} has no {workers} READY workers after {START_TIMEOUT} s; see {log}")
        time.sleep(POLL_SECONDS)


def _check(server: Server, version: str, card: ModelCard, golden: list[Golden], workers: int) -> None:
    """Card and golden pictures, these as often as it takes to warm the workers up.

    Raises:
        CommandError: what is served isn't what the archive says, or a picture isn't answered as expected.
    """
    if not describes(server.management.card(version), card):
        raise CommandError(
            f"what serves as version {version} has another card than the archive; is the archive in the model store "
            "of this server the same file?"
        )

    def problem(picture: Golden) -> str:
        label, probability = _predict(server, version, picture.path)
        if label == picture.label and probability >= picture.probability:
            return ""
        return f"{picture.path}: {label} {probability:.4f}, expected {picture.label} {picture.probability:.4f} or more"

    pictures = islice(cycle(golden), max(len(golden), WARM_UP_REQUESTS * workers))
    with ThreadPoolExecutor(max_workers=workers) as pool:
        problems = sorted({text for text in pool.map(problem, pictures) if text})
    if problems:
        raise CommandError(
            f"version {version} fails {len(problems)} of {len(golden)} golden pictures, and the old version goes on "
            f"serving: {'; '.join(problems[:5])}"
        )


def _predict(server: Server, version: str, picture: Path) -> tuple[str, float]:
    """Label and probability that a version answers; an error's message and 0 where it refuses the picture."""
    headers = {"Content-Type": "application/octet-stream"}
    if server.token:
        headers["Authorization"] = f"Bearer {read_token(server.folder, 'inference')}"
    address = f"{server.url}/predictions/{MODEL_NAME}/{version}"
    response = requests.put(address, data=picture.read_bytes(), headers=headers, timeout=60)
    if not response.ok:
        return f"{response.status_code}: {error_of(response.text, response.reason)[1]}", 0.0
    answer = response.json()
    return str(answer["label"]), float(answer["probability"])


def roll_back(server: Server) -> tuple[str, str]:
    """Make the version the default that was it before.

    Returns:
        That version, and the one that was the default until now.

    Raises:
        CommandError: none was deployed on this server, or the one before is gone or not READY.
    """
    management = server.management
    now, ready = management.status().version, {model.version: model.ready for model in management.versions()}
    if not server.previous:
        raise CommandError("no version was deployed on this server, so there is none to roll back to")
    if not ready.get(server.previous):
        state = "has no READY worker" if server.previous in ready else "was removed"
        raise CommandError(f"version {server.previous} {state}; {now} stays the default, deploy another archive")
    management.set_default(server.previous)
    remember(replace(server, previous=now))
    return server.previous, now


def remove(server: Server, version: str) -> None:
    """End a version that isn't the default; what its workers have in hand is answered.

    Requests in its queue would wait for ever, hence none may come.

    Raises:
        CommandError: there is no such version, it is the default, or requests still name it.
    """
    management = server.management
    default, versions = management.status().version, [model.version for model in management.versions()]
    if version not in versions:
        raise CommandError(f"there is no version {version}; registered are {', '.join(versions)}")
    if version == default:
        raise CommandError(f"version {version} is the default; make another one the default before, with --rollback")
    before = _requests_naming(server, version)
    time.sleep(QUIET_S)
    still = _requests_naming(server, version) - before
    if still:
        raise CommandError(
            f"{still} requests for version {version} came within {QUIET_S:.0f} s; it stays until nobody sends to "
            f"/predictions/{MODEL_NAME}/{version} any more"
        )
    with held_workers(server, version=version):
        management.unregister(version)


def _requests_naming(server: Server, version: str) -> int:
    """How many requests named a version so far, as TorchServe counts them."""
    text = requests.get(f"{server.metrics_url}/metrics", timeout=10).text
    series = (
        rf'^ts_inference_requests_total{{model_name="{MODEL_NAME}",model_version="{re.escape(version)}",.*}} (\S+)$'
    )
    return sum(int(float(value)) for value in re.findall(series, text, re.MULTILINE))
