"""Model folder + handler + settings → ``densenet.mar``, the same bytes from the same inputs."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from handler.card import CardError, ModelCard, sha256_of
from handler.preprocessing import Preprocessing
from handler.topk import Prediction
from scripts.lib.console import CommandError
from scripts.lib.download import locked
from scripts.lib.machine import serves_on_gpu
from scripts.lib.model_folder import LABELS, WEIGHTS, ModelFolder, write_atomically
from scripts.lib.packed import MANIFEST, MODEL_CONFIG, is_recorded, record
from scripts.lib.paths import CONFIG, HANDLER, MODEL_NAME, MODEL_STORE, OPENAPI
from scripts.lib.precision import Wanted, settle
from scripts.lib.server import read_properties

VERSION = "1.0"
ENTRY = "densenet_handler.py"
DESCRIPTION = "openapi.json"
"""The description of the API, which the frontend answers ``OPTIONS`` with (scripts/lib/frontend)."""
GPU_CONFIG = "model-config.gpu.yaml"
PACKED = (".py", ".html", ".css", ".js")
"""What is packed of the folder ``handler``."""
_EPOCH = (1980, 1, 1, 0, 0, 0)
_DIGEST_NOTE = "densenet-serving inputs sha256:"


def archive_path(model_store: Path = MODEL_STORE, version: str = VERSION) -> Path:
    """Where the archive of a version lies in a model store: ``densenet.mar`` of the first, ``densenet-2.0.mar``."""
    return model_store / (f"{MODEL_NAME}.mar" if version == VERSION else f"{MODEL_NAME}-{version}.mar")


@contextmanager
def archive_in_use(model_store: Path, version: str = VERSION) -> Iterator[None]:
    """While it lasts, no other command that asks for it builds or starts a server on the archive of a version."""
    archive = archive_path(model_store, version)
    with locked(archive, f"another command builds or starts {archive}; waiting for it"):
        yield


def archive_inputs(model: ModelFolder, card: ModelCard, converted: Mapping[str, bytes]) -> dict[str, bytes]:
    """Every file of the archive by its path in it, but for the manifest that torch-model-archiver adds.

    Args:
        model: the model folder.
        card: the card with runtime and precision settled.
        converted: files of the runtime beside the weights.
    """
    template = model_config(serves_on_gpu())
    limits = check_model_config(yaml.safe_load(template))["limits"]
    check_answers(model.labels, limits["max_instances"])
    section = yaml.safe_dump({"handler": card.to_dict()}, sort_keys=False, allow_unicode=True, width=100)
    files = {
        ENTRY: (HANDLER / ENTRY).read_bytes(),
        MODEL_CONFIG: (template + section).encode(),
        LABELS: (model.path / LABELS).read_bytes(),
        WEIGHTS: model.weights.read_bytes(),
        DESCRIPTION: json.dumps(yaml.safe_load(OPENAPI.read_text(encoding="utf-8"))).encode(),
    }
    for source in sorted(HANDLER.rglob("*")):
        if source.suffix in PACKED and source.name != ENTRY:
            files[f"handler/{source.relative_to(HANDLER).as_posix()}"] = source.read_bytes()
    return files | dict(converted)


def model_config(gpu: bool) -> str:
    """``config/model-config.yaml``, for a GPU with the values of ``config/model-config.gpu.yaml``."""
    text = (CONFIG / MODEL_CONFIG).read_text(encoding="utf-8")
    values = yaml.safe_load((CONFIG / GPU_CONFIG).read_text(encoding="utf-8")) if gpu else {}
    for key, value in values.items():
        text = re.sub(rf"^{key}:.*$", f"{key}: {value}", text, flags=re.MULTILINE)
    return text


KNOWN_KEYS = frozenset(
    {
        *("asyncCommunication", "batchSize", "clientTimeoutInMills", "continuousBatching", "deviceIds", "deviceType"),
        *("jobQueueSize", "maxBatchDelay", "maxNumSequence", "maxRetryTimeoutInSec", "maxSequenceJobQueueSize"),
        *("maxWorkers", "minWorkers", "parallelLevel", "parallelType", "responseTimeout", "sequenceBatching"),
        *("sequenceMaxIdleMSec", "sequenceTimeoutMSec", "startupTimeout", "torchrun", "useJobTicket", "useVenv"),
    }
)
"""The keys that TorchServe 0.12 reads (``org.pytorch.serve.archive.model.ModelConfig``)."""


def check_model_config(config: object) -> Mapping[str, Any]:
    """The settings in ``config/model-config.yaml``, checked.

    Raises:
        CommandError: a key is unknown to TorchServe and the handler, or a limit is missing.
    """
    if not isinstance(config, Mapping):
        raise CommandError(f"config/{MODEL_CONFIG} must be a mapping of keys to values")
    unknown = sorted(set(config) - KNOWN_KEYS - {"limits", "pt2"})
    if unknown:
        raise CommandError(
            f"config/{MODEL_CONFIG} has the key {unknown[0]!r}, which TorchServe doesn't know; "
            f"known are {', '.join(sorted(KNOWN_KEYS))}, limits and pt2"
        )
    limits = config.get("limits")
    numbers = {"max_image_pixels", "max_decode_seconds", "max_wait_seconds", "max_instances"}
    switch = "integrated_gradients"
    if (
        not isinstance(limits, Mapping)
        or set(limits) != {*numbers, switch}
        or not all(_positive(limits[name]) for name in numbers)
        or not isinstance(limits[switch], bool)
    ):
        raise CommandError(
            f"config/{MODEL_CONFIG}: limits must hold {', '.join(sorted(numbers))}, positive numbers, and {switch}, "
            "true or false"
        )
    return config


def check_answers(labels: Sequence[str], max_instances: int) -> None:
    """Make sure that TorchServe takes the largest answer: all classes for each of ``max_instances`` pictures.

    It ends the connection to a worker that sends a larger one, and with it the worker.

    Raises:
        CommandError: it doesn't.
    """
    limit = int(read_properties(CONFIG / "config.properties")["max_response_size"])
    classes = (Prediction(label, i, 0.123456).to_dict() for i, label in enumerate(labels))
    sizes = [len(json.dumps(one, ensure_ascii=False).encode()) + 2 for one in classes]  # with comma and space
    picture = sum(sizes) + max(sizes)  # the best comes twice
    most = (limit - len('{"predictions": []}\n')) // (picture + len(', "top": []'))
    if max_instances > most:
        raise CommandError(
            f"{max_instances} instances with all of {len(labels)} classes make an answer of "
            f"{max_instances * picture / 1e6:.1f} MB, and TorchServe takes {limit / 1e6:.1f} MB; set max_instances in "
            f"config/{MODEL_CONFIG} to {most}, or max_response_size in config/config.properties higher"
        )


def _positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def inputs_digest(files: Mapping[str, bytes], version: str = VERSION) -> str:
    """SHA-256 over the version and the names and content of the archive's files, in hex."""
    digest = hashlib.sha256(f"{version}\0".encode())
    for name in sorted(files):
        digest.update(f"{name}\0{len(files[name])}\0".encode())
        digest.update(files[name])
    return digest.hexdigest()


def is_current(archive: Path, digest: str) -> bool:
    """Whether ``archive`` says that it was built from the inputs of ``digest``, and is one that was built here."""
    try:
        with zipfile.ZipFile(archive) as mar:
            says = mar.comment.decode("utf-8", "replace") == _DIGEST_NOTE + digest
        return says and is_recorded(sha256_of(archive))
    except (OSError, zipfile.BadZipFile):
        return False


def ensure_archive(
    model: ModelFolder,
    model_store: Path = MODEL_STORE,
    wanted: Wanted | None = None,
    version: str = VERSION,
) -> tuple[Path, ModelCard, bool]:
    """The archive of ``model`` in ``model_store``, built if it is missing, stale, or another file than was built here.

    Args:
        model: the model folder.
        model_store: where the archive goes.
        wanted: how the network is to compute; None: as fast as it has been shown to keep its accuracy.
        version: of the model, by which a server that serves several tells them apart.

    Returns:
        The archive, its card, and whether it was built now.

    Raises:
        CommandError, CardError: weights, labels, card and settings don't fit each other.
    """
    card, converted = settle(model, wanted or Wanted())
    archive, built = write_archive(model, card, converted, model_store, version)
    return archive, card, built


def write_archive(
    model: ModelFolder,
    card: ModelCard,
    converted: Mapping[str, bytes],
    model_store: Path,
    version: str = VERSION,
) -> tuple[Path, bool]:
    """The archive of ``model`` with a settled card, built if it is missing, stale, or another file than was built here.

    Args:
        model, card, converted: as for :func:`archive_inputs`.
        model_store: where the archive goes.
        version: of the model.

    Returns:
        The archive and whether it was built now.
    """
    files = archive_inputs(model, card, converted)
    archive = archive_path(model_store, version)
    if is_current(archive, inputs_digest(files, version)):
        return archive, False
    validate(model)
    packed = build_archive(files, version)
    record(hashlib.sha256(packed).hexdigest())
    write_atomically(archive, packed)
    return archive, True


def validate(model: ModelFolder) -> None:
    """Run the network once on a grey picture.

    Raises:
        CardError: the weights don't fit the card, or the output isn't one finite logit a class.
    """
    import torch  # not for an archive that is up to date: that takes seconds

    from handler.network import load_network

    network = load_network(model.card, model.weights, torch.device("cpu"))
    grey = torch.full((1, model.card.crop, model.card.crop, 3), 128, dtype=torch.uint8)
    with torch.inference_mode():
        logits = network(Preprocessing.of(model.card).to_tensor(grey.numpy()))  # (1, classes)
    if logits.shape != (1, model.card.num_classes) or not torch.isfinite(logits).all():
        raise CardError(
            f"the network answers with {tuple(logits.shape)} values, finite: {bool(torch.isfinite(logits).all())}; "
            f"expected (1, {model.card.num_classes}) finite logits; train the model again"
        )


def build_archive(files: Mapping[str, bytes], version: str = VERSION) -> bytes:
    """The archive of ``files`` as ``version``: packed by torch-model-archiver, then made reproducible."""
    with tempfile.TemporaryDirectory(prefix="densenet-archive-") as temporary:
        stage, out = Path(temporary, "stage"), Path(temporary, "out")
        out.mkdir()
        for name, content in files.items():
            path = stage / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        package = stage / "package"
        package.mkdir()
        shutil.move(stage / "handler", package / "handler")
        known = {WEIGHTS, ENTRY, MODEL_CONFIG}
        extra = [package, *(stage / name for name in files if "/" not in name and name not in known)]
        # torch-model-archiver stages everything in <temp folder>/densenet: give it one of its own
        environment = {**os.environ, "TMPDIR": temporary, "TEMP": temporary, "TMP": temporary}
        command = [
            *(sys.executable, "-m", "model_archiver.model_packaging"),
            # stored, as it is in the end
            *("--model-name", MODEL_NAME, "--version", version, "--archive-format", "zip-store"),
            *("--serialized-file", str(stage / WEIGHTS), "--handler", str(stage / ENTRY)),
            *("--config-file", str(stage / MODEL_CONFIG)),
            *("--extra-files", ",".join(map(str, extra)), "--export-path", str(out)),
        ]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        packed = out / f"{MODEL_NAME}.mar"
        if result.returncode != 0 or not packed.is_file():
            raise CommandError(f"torch-model-archiver failed: {(result.stderr or result.stdout).strip()[-500:]}")
        return _reproducible(packed.read_bytes(), inputs_digest(files, version))


def _reproducible(archive: bytes, digest: str) -> bytes:
    """The same archive with sorted entries, one date, fixed rights and the digest as its comment."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as packed, zipfile.ZipFile(buffer, "w") as out:
        for name in sorted(packed.namelist()):
            content = packed.read(name)
            if name == MANIFEST:
                manifest = json.loads(content)
                manifest["createdOn"] = "01/01/1980 00:00:00"
                content = json.dumps(manifest, indent=2, sort_keys=True).encode()
            entry = zipfile.ZipInfo(name.replace(os.sep, "/"), _EPOCH)
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            # stored, not deflated: weights don't compress, and the server unpacks faster
            out.writestr(entry, content, zipfile.ZIP_STORED)
        out.comment = (_DIGEST_NOTE + digest).encode()
    return buffer.getvalue()
