"""The one definition of the preprocessing: RGB image → uint8 array → normalised float tensor.

Handler, training, evaluation and tests all import it, so that a network sees the same pixels
wherever it runs. It computes what torchvision's ``ImageClassification`` preset does on a Pillow
image (resize the shorter side with antialiasing, centre crop, scale to 0…1, normalise).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from handler.card import ModelCard
from handler.images import Opened, decode_reduced, load_reduced

if TYPE_CHECKING:
    import torch  # the functions below import it: the decoding process (handler.isolation) does without

REDUCING_GAP = 2
"""How many times ``resize`` a JPEG's sides stay at least when it is decoded at a reduced size.

Pillow's own ``thumbnail`` takes the same. What is left to the resize decides how the result looks;
with 1, the labels of one picture in thirty would change."""


@dataclass(frozen=True)
class View:
    """A picture for the network and for people: what the network sees, as it takes it and larger.

    ``array``: (crop, crop, 3) uint8. ``enlarged``: (side, side, 3) uint8, (0, 0, 3) if none is wanted.
    ``size``: width and height of the whole picture in px, upright.
    """

    array: npt.NDArray[np.uint8]
    enlarged: npt.NDArray[np.uint8]
    size: tuple[int, int]


@dataclass(frozen=True)
class Preprocessing:
    """Resize, crop and normalisation of one model. Sizes in px; mean and std per channel, range 0 to 1."""

    resize: int
    crop: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, card: ModelCard) -> Preprocessing:
        """The preprocessing that ``card`` asks for."""
        return cls(card.resize, card.crop, card.mean, card.std)

    @property
    def enough(self) -> int:
        """Sides, in px, that a picture needs to keep when it is decoded at a reduced size."""
        return self.resize * REDUCING_GAP

    def read(self, data: bytes, max_pixels: int) -> npt.NDArray[np.uint8]:
        """What the network sees of a picture file: (crop, crop, 3) uint8, 0 to 255.

        Args:
            data: the bytes of a picture file.
            max_pixels: width times height at most.

        Raises:
            InvalidImage, ImageTooLarge: see :func:`handler.images.decode`.
        """
        return self.to_array(*decode_reduced(data, max_pixels, self.enough))

    def view(self, opened: Opened, max_pixels: int, side: int, reserve: Callable[[int], None] | None = None) -> View:
        """What the network sees of a picture, and the same with ``side`` px.

        Args:
            opened: by :func:`handler.images.open_picture`; it is used up.
            max_pixels: width times height at most.
            side: px of the larger one; 0: none is wanted.
            reserve: as for :func:`handler.images.load_reduced`.

        Raises:
            InvalidImage, ImageTooLarge: see :func:`handler.images.load_reduced`.
        """
        image, size = load_reduced(opened, max_pixels, self.enough, reserve)
        larger = np.asarray(self.centre(image, size, side)) if side else np.empty((0, 0, 3), np.uint8)
        return View(self.to_array(image, size), larger, size)

    def to_array(self, image: Image.Image, size: tuple[int, int] | None = None) -> npt.NDArray[np.uint8]:
        """The centre of an RGB image, scaled so that its shorter side is ``resize`` px.

        Args:
            image: any size.
            size: width and height of the whole picture where it was decoded at a reduced size; the
                crop is that of the whole picture, to the fraction of a pixel.

        Returns:
            (crop, crop, 3) uint8, 0 to 255.

        Resize and crop are one call: Pillow resamples only the ``crop`` px that are kept. The
        result is that of resizing first (tests compare both), but a picture of 1 × 20,000 px
        doesn't become one of 256 × 5,120,000 px on the way.
        """
        return np.asarray(self.centre(image, size or image.size, self.crop))  # (crop, crop, 3) uint8

    def centre(self, image: Image.Image, size: tuple[int, int], side: int) -> Image.Image:
        """The part of an image that the network sees, ``side`` × ``side`` px.

        Args:
            image: any size.
            size: width and height of the whole picture, as for :meth:`to_array`.
            side: px of the result; ``crop`` is what the network takes.
        """
        reduction = -(-size[0] // image.width)
        left, top, right, bottom = (edge / reduction for edge in self.region(size))
        box = (left, top, min(right, image.width), min(bottom, image.height))
        return image.resize((side, side), Image.Resampling.BILINEAR, box=box)

    def region(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """The part of a picture that the network sees: left, top, right and bottom edge in its px.

        Args:
            size: width and height of the picture, upright.
        """
        width, height = size
        short = min(width, height)
        # torchvision truncates the longer side and rounds the crop's corner; so do we
        new_width, new_height = self.resize * width // short, self.resize * height // short
        left, top = round((new_width - self.crop) / 2), round((new_height - self.crop) / 2)
        x, y = width / new_width, height / new_height
        return (left * x, top * y, min((left + self.crop) * x, width), min((top + self.crop) * y, height))

    def to_tensor(self, batch: npt.NDArray[np.uint8]) -> torch.Tensor:
        """Normalised input of the network.

        Args:
            batch: (N, H, W, 3) uint8, 0 to 255.

        Returns:
            (N, 3, H, W) float32, stored channels last, about -2.2 to 2.7 with ImageNet's mean and std.
        """
        import torch

        return normalise(torch.tensor(batch), *self.scale_and_shift())  # (N, 3, H, W) float32

    def scale_and_shift(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Scaling to 0…1 and normalisation in one: factor and summand a channel, (3, 1, 1) each."""
        import torch

        scale = torch.tensor([1 / (255 * s) for s in self.std]).view(3, 1, 1)
        shift = torch.tensor([-m / s for m, s in zip(self.mean, self.std)]).view(3, 1, 1)
        return scale, shift


def normalise(pixels: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Pixels as the network takes them.

    Args:
        pixels: (N, H, W, 3) uint8.
        scale, shift: of :meth:`Preprocessing.scale_and_shift`, on the same device.

    Returns:
        (N, 3, H, W) float32, stored channels last.
    """
    return pixels.permute(0, 3, 1, 2).float().mul_(scale).add_(shift)  # (N, 3, H, W)
