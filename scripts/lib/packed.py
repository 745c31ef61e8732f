"""A finished archive, read without PyTorch: a server on one starts at once."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import yaml

from handler.card import ModelCard, sha256_of
from scripts.lib import paths
from scripts.lib.console import CommandError

MANIFEST = "MAR-INF/MANIFEST.json"
MODEL_CONFIG = "model-config.yaml"
"""The archive's file with TorchServe's settings for the model, and the card."""


def record(sha256: str) -> None:
    """Remember an archive that was built here, in a file that its owner alone may read and write."""
    if is_recorded(sha256):
        return
    paths.CACHE.mkdir(parents=True, exist_ok=True)
    file = os.open(paths.CACHE / paths.ARCHIVES, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(file, "w", encoding="ascii") as archives:
        archives.write(f"{sha256}\n")


def is_recorded(sha256: str) -> bool:
    """Whether the archive with this hash was built here, or with the image that this is."""
    for file in (paths.CACHE / paths.ARCHIVES, paths.ROOT / paths.ARCHIVES):
        if file.is_file() and sha256 in file.read_text(encoding="ascii").split():
            return True
    return False


def check_archive(archive: Path, expected: str | None) -> None:
    """Make sure that an archive is the one that is meant, before anything of it is read: its handler is code.

    Args:
        archive: the file.
        expected: its SHA-256 in small hex, as its builder said; None: it was built here.

    Raises:
        CommandError: it can't be read, isn't the expected one, or wasn't built here.
    """
    try:
        found = sha256_of(archive)
    except OSError as error:
        raise _unreadable(archive, error) from None
    if expected and found != expected:
        raise CommandError(
            f"{archive} isn't the archive that is expected: its SHA-256 is {found}, expected {expected}; "
            "fetch it again from where it was built"
        )
    if not expected and not is_recorded(found):
        raise CommandError(
            f"{archive} wasn't built here: its SHA-256 is {found}; compare it with the one that build_archive.py "
            "printed where it was built, and add that one as --sha256 HEX"
        )


def _unreadable(archive: Path, error: OSError) -> CommandError:
    return CommandError(f"can't read the archive {archive}: {error.strerror}; build_archive.py writes one")


def packed_card(archive: Path) -> ModelCard:
    """The card in an archive that ``build_archive.py`` wrote.

    Raises:
        CommandError: there is no such file, or it is no archive of this project.
        CardError: the card is wrong.
    """
    return packed_model(archive)[1]


def packed_model(archive: Path) -> tuple[str, ModelCard]:
    """Version and card of an archive that ``build_archive.py`` wrote; errors as for :func:`packed_card`."""
    try:
        with zipfile.ZipFile(archive) as mar:
            config = yaml.safe_load(mar.read(MODEL_CONFIG))
            version = str(json.loads(mar.read(MANIFEST))["model"]["modelVersion"])
        return version, ModelCard.from_dict(config["handler"])
    except OSError as error:
        raise _unreadable(archive, error) from None
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        raise CommandError(
            f"{archive} is no archive of this project ({type(error).__name__}); build_archive.py writes one"
        ) from None
