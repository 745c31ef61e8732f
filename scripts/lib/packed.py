"""A finished archive, read without PyTorch: a server on one starts at once."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import yaml

from handler.card import ModelCard
from scripts.lib.console import CommandError

MANIFEST = "MAR-INF/MANIFEST.json"
MODEL_CONFIG = "model-config.yaml"
"""The archive's file with TorchServe's settings for the model, and the card."""


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
        raise CommandError(f"can't read the archive {archive}: {error.strerror}; build_archive.py writes one") from None
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        raise CommandError(
            f"{archive} is no archive of this project ({type(error).__name__}); build_archive.py writes one"
        ) from None
