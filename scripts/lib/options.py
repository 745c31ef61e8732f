"""Command-line options that several commands share."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

from scripts.lib.paths import MODEL_STORE

ARCHITECTURES = ("densenet121", "densenet161", "densenet169", "densenet201")
DEFAULT_PORT = 5000


def add_weights_options(parser: argparse.ArgumentParser, archive: bool = False) -> None:
    """``--weights``, ``--arch`` and ``--model-store``; ``archive``: a finished archive will do as well."""
    parser.add_argument(
        "--weights",
        default=os.environ.get("DENSENET_WEIGHTS") or "auto" if archive else "auto",
        metavar="imagenet|bundled|auto|FOLDER" + ("|ARCHIVE.mar" if archive else ""),
        help="torchvision's ImageNet weights (downloaded once), the model of this repository, the folder that "
        "train.py wrote, or auto: imagenet if it can be had at once, else bundled"
        + (
            "; or a finished archive, served as it is (default $DENSENET_WEIGHTS, or auto)"
            if archive
            else " (default auto)"
        ),
    )
    parser.add_argument(
        "--arch", default="densenet121", choices=ARCHITECTURES, help="of the ImageNet weights (default densenet121)"
    )
    parser.add_argument(
        "--model-store",
        type=Path,
        default=MODEL_STORE,
        metavar="FOLDER",
        help="where densenet.mar goes (default $DENSENET_MODEL_STORE, or model_store)",
    )


def add_sha256_option(parser: argparse.ArgumentParser, variable: str = "") -> None:
    """``--sha256``, which names a finished archive; ``variable``: the environment variable of its default."""
    parser.add_argument(
        "--sha256",
        type=sha256,
        default=os.environ.get(variable) or None,
        metavar="HEX",
        help="what the finished archive must be, as build_archive.py printed where it was built; an archive that "
        "was built here needs none" + (f" (default ${variable})" if variable else ""),
    )


def add_runtime_options(parser: argparse.ArgumentParser) -> None:
    """``--runtime``, ``--precision``, ``--pictures``, ``--labels``, ``--calibration``: how the network computes."""
    add = parser.add_argument
    add(
        "--runtime",
        default="auto",
        choices=["auto", "torch", "openvino"],
        help="what computes; auto: OpenVINO where it is installed and no GPU serves, else torch (default auto)",
    )
    add(
        "--precision",
        default="auto",
        choices=["auto", "float32", "bfloat16", "int8"],
        help="auto: the fastest that this processor computes in and that has been shown, with --pictures or when the "
        "model was trained, to keep the accuracy; else float32 (default auto)",
    )
    add(
        "--pictures",
        nargs="+",
        default=[],
        metavar="DATA",
        help="labelled pictures, 1000 or more, on which the accuracy of a precision is measured: a folder with a "
        "folder per class, or CLASS=FOLDER; what came out is remembered for this model",
    )
    add("--labels", type=Path, metavar="FILE", help="JSON, class folder of --pictures to label")
    add(
        "--calibration",
        type=Path,
        metavar="FOLDER",
        help="some hundred pictures like those that will be served, which int8 needs; without them it isn't tried",
    )


def add_port_option(parser: argparse.ArgumentParser) -> None:
    """``--port``, which names a server on this machine."""
    parser.add_argument(
        "--port",
        type=port_number,
        default=DEFAULT_PORT,
        metavar="N",
        help="inference port; management, metrics and gRPC take the four ports above it (default 5000)",
    )


def add_management_options(parser: argparse.ArgumentParser) -> None:
    """``--port`` of a server on this machine, or ``--url`` of any server's management address."""
    add_port_option(parser)
    parser.add_argument(
        "--url",
        metavar="URL",
        help="management address, e.g. http://127.0.0.1:5001 (default: one above --port); the environment "
        "variable DENSENET_TOKEN holds the management token of a server that asks for one",
    )


def port_number(text: str) -> int:
    """A port from 1024 to 65531: the four above it must exist too."""
    port = _whole_number(text, "1024 to 65531")
    if not 1024 <= port <= 65531:
        raise argparse.ArgumentTypeError(f"{port} is out of range, expected 1024 to 65531")
    return port


def version_number(text: str) -> str:
    """A model's version: numbers with points between them."""
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no version, expected numbers with points between them, as 2.0")
    return text


def sha256(text: str) -> str:
    """A SHA-256 in hex, in small letters."""
    if not re.fullmatch(r"[0-9a-fA-F]{64}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no SHA-256, expected 64 hexadecimal digits")
    return text.lower()


def positive(text: str) -> int:
    """A whole number of at least 1."""
    number = _whole_number(text, "at least 1")
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is out of range, expected at least 1")
    return number


def _whole_number(text: str, expected: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number, expected {expected}") from None
