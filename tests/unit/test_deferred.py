"""What a worker doesn't import at its start, and that it is there all the same when it is needed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from scripts.lib.paths import ROOT


def fresh(code: str) -> str:
    """What ``code`` prints in a Python of its own."""
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


HEAVY = "{'captum', 'captum.attr', 'matplotlib', 'sympy', 'torch._dynamo', 'torch._dynamo.utils'}"
LOADED = f"sorted({HEAVY} & {{*sys.modules}})"


def test_a_worker_starts_without_the_heavy_packages() -> None:
    assert fresh(f"import sys, handler.densenet_handler; print({LOADED})") == "[]"


@pytest.mark.slow
def test_without_deferring_they_would_be_loaded() -> None:
    """The stock handler as it is: if this fails, ``handler.deferred`` isn't needed any more."""
    loaded = fresh(f"import sys, ts.torch_handler.image_classifier; print({LOADED})")
    assert "captum.attr" in loaded
    assert "torch._dynamo" in loaded


@pytest.mark.slow
def test_the_deferred_names_work_when_they_are_called() -> None:
    code = """
import handler.densenet_handler, torch, torchvision
from ts.torch_handler.vision_handler import IntegratedGradients
print(type(IntegratedGradients(lambda x: x)).__module__)
print(tuple(torchvision.ops.roi_align(torch.ones(1, 1, 8, 8), [torch.tensor([[0., 0., 4., 4.]])], 2).shape))
"""
    assert fresh(code) == "captum.attr._core.integrated_gradients\n(1, 1, 2, 2)"


@pytest.mark.slow
def test_a_package_that_is_there_is_left_alone() -> None:
    code = """
import captum.attr, handler.densenet_handler
from ts.torch_handler import vision_handler
print(vision_handler.IntegratedGradients is captum.attr.IntegratedGradients)
"""
    assert fresh(code) == "True"
