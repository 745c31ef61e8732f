"""A finished archive, read without PyTorch: a server on one starts at once."""

from __future__ import annotations

import zipfile
from pathlib import Path

import yaml

from handler.card import ModelCard
from scripts.lib.console import CommandError

MODEL_CONFIG = "model-config.yaml"
"""The archive's file with TorchServe's settings for the model, and the card."""


def packed_card(archive: Path) -> ModelCard:
    """The card in an archive that ``build_archive.py`` wrote.

    Raises:
        CommandError: there is no such file, or it is no archive of this project.
        CardError: the card is wrong.
    """
    try:
        with zipfile.ZipFile(archive) as mar:
            config = yaml.safe_load(mar.read(MODEL_CONFIG))
        return ModelCard.from_dict(config["handler"])
    except OSError as error:
        raise CommandError(f"can't read the archive {archive}: {error.strerror}; build_archive.py writes one") from None
    except (zipfile.BadZipFile, KeyError, TypeError, yaml.YAMLError) as error:
        raise CommandError(
            f"{archive} is no archive of this project ({type(error).__name__}); build_archive.py writes one"
        ) from None
