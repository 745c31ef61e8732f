"""An evaluation (and the training before it) → one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from scripts.lib.console import duration
from scripts.lib.evaluation import Evaluation, calibration_bins
from scripts.lib.model_folder import write_atomically
from scripts.lib.reporting.html import template, thumbnail
from scripts.lib.reporting.plots import learning_curves, reliability_diagram

MAX_MATRIX = 60
"""Classes up to which the confusion matrix is drawn; beyond, the table of the commonest mistakes stands alone."""
WORST = 24


def write_report(path: Path, evaluation: Evaluation, history: Sequence[Mapping[str, float]] = ()) -> None:
    """Write the report page.

    Args:
        path: the HTML file.
        evaluation: what the page is about.
        history: rows of ``metrics.csv``, for the learning curves; none for a model that was only evaluated.
    """
    bins = calibration_bins(evaluation.logits.softmax(dim=1), evaluation.targets)
    total = evaluation.total()
    cells = evaluation.confusion()
    mistakes = [cell for cell in cells if cell["label"] != cell["predicted"]]
    page = template("report.html").render(
        card=evaluation.card,
        total=total,
        sources=evaluation.sources(),
        failed=evaluation.failed,
        classes=sorted(total["per_class"].items(), key=lambda item: (item[1]["top1"], item[0])),
        curves=Markup(learning_curves(history)) if history else None,
        reliability=Markup(reliability_diagram(bins)),
        matrix=_matrix(cells, evaluation.labels),
        mistakes=mistakes[:20],
        worst=_worst(evaluation),
        duration=duration,
    )
    write_atomically(path, page.encode())


def _matrix(cells: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> dict[str, Any] | None:
    """Rows of the confusion matrix, of the classes that occur; None where that is too many to draw."""
    seen = {cell["label"] for cell in cells} | {cell["predicted"] for cell in cells}
    if len(seen) > MAX_MATRIX:
        return None
    names = [label for label in labels if label in seen]
    counts = {(cell["label"], cell["predicted"]): cell["pictures"] for cell in cells}
    rows = []
    for label in names:
        row = [counts.get((label, predicted), 0) for predicted in names]
        rows.append({"label": label, "total": sum(row), "counts": row})
    return {"names": names, "rows": rows}


def _worst(evaluation: Evaluation) -> list[dict[str, Any]]:
    """The mistakes that the model was surest of, with thumbnails."""
    wrong = [
        (prediction, picture)
        for prediction, picture in zip(evaluation.predictions(), evaluation.pictures)
        if prediction["predicted"] != prediction["label"]
    ]
    wrong.sort(key=lambda item: -item[0]["probability"])
    return [{**prediction, "thumbnail": thumbnail(picture.path)} for prediction, picture in wrong[:WORST]]
