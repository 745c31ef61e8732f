"""The one preprocessing against torchvision's, pixel by pixel."""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from torchvision import transforms
from torchvision.models import DenseNet121_Weights

from handler.card import IMAGENET_MEAN, IMAGENET_STD, ModelCard
from handler.images import decode, decode_reduced
from handler.preprocessing import Preprocessing
from tests.support.pictures.made import noise
from tests.support.servers.worker import TINY, tiny_card

SIZES = [
    pytest.param((640, 480), id="landscape"),
    pytest.param((480, 640), id="portrait"),
    pytest.param((300, 300), id="square"),
    pytest.param((224, 224), id="exactly-224"),
    pytest.param((256, 256), id="exactly-256"),
    pytest.param((257, 255), id="off-by-one"),
    pytest.param((1, 1), id="one-pixel"),
    pytest.param((2, 3), id="tiny"),
    pytest.param((1, 50), id="one-column"),
    pytest.param((50, 1), id="one-row"),
    pytest.param((333, 1021), id="odd"),
    pytest.param((1500, 1125), id="photo"),
]


def preprocessing(resize: int = 256, crop: int = 224) -> Preprocessing:
    """ImageNet's normalisation with any size."""
    return Preprocessing(resize, crop, IMAGENET_MEAN, IMAGENET_STD)


def by_torchvision(image: Image.Image, resize: int, crop: int) -> np.ndarray[Any, Any]:
    """What torchvision makes of the same picture: (crop, crop, 3) uint8."""
    return np.asarray(transforms.Compose([transforms.Resize(resize), transforms.CenterCrop(crop)])(image))


def difference(ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any]) -> int:
    """The largest difference of two pictures, in levels of 255."""
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype == np.uint8
    return int(np.abs(ours.astype(int) - theirs.astype(int)).max())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("resize", "crop"), [(256, 224), (72, 64), (224, 224), (65, 32)])
def test_array_is_what_torchvision_computes(size: tuple[int, int], resize: int, crop: int) -> None:
    image = noise(*size)
    assert difference(preprocessing(resize, crop).to_array(image), by_torchvision(image, resize, crop)) <= 1


def test_array_of_any_size_is_what_torchvision_computes() -> None:
    """Pillow takes the crop's corners as float32: of noise, a few values in a thousand are two levels off."""
    rng = np.random.default_rng(3)
    for _ in range(60):
        width, height = (int(n) for n in rng.integers(1, 200, 2))
        resize = int(rng.integers(32, 90))
        crop = int(rng.integers(32, resize + 1))
        image = noise(width, height)
        ours = preprocessing(resize, crop).to_array(image)
        theirs = by_torchvision(image, resize, crop)
        assert difference(ours, theirs) <= 2, (width, height, resize, crop)
        assert (np.abs(ours.astype(int) - theirs.astype(int)) > 1).mean() < 0.005, (width, height, resize, crop)


@pytest.mark.parametrize("size", [(3, 2000), (2000, 3), (1, 700)])
def test_extreme_aspect_ratio_is_what_torchvision_computes(size: tuple[int, int]) -> None:
    image = noise(*size)
    assert difference(preprocessing(72, 64).to_array(image), by_torchvision(image, 72, 64)) <= 1


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1), (3, 30_000)])
def test_extreme_aspect_ratio_takes_neither_memory_nor_time(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[int, int]] = []
    resize = Image.Image.resize

    def recorded(image: Image.Image, to: tuple[int, int], *args: Any, **kwargs: Any) -> Image.Image:
        made.append(to)
        return resize(image, to, *args, **kwargs)

    image = Image.new("RGB", size, (10, 200, 30))
    monkeypatch.setattr(Image.Image, "resize", recorded)
    array = preprocessing().to_array(image)
    assert made == [(224, 224)]
    assert (array == (10, 200, 30)).all()


def test_array_is_the_centre() -> None:
    image = Image.new("RGB", (300, 100), "white")
    image.paste((255, 0, 0), (100, 0, 200, 100))  # the middle third
    assert (preprocessing(100, 100).to_array(image) == (255, 0, 0)).all()


def test_tensor_is_what_torchvision_computes() -> None:
    image = noise(64, 64)
    theirs = transforms.Compose([transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)])(image)
    ours = preprocessing(64, 64).to_tensor(np.asarray(image)[None])
    assert ours.shape == (1, 3, 64, 64)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours[0], theirs, rtol=0, atol=1e-6)


def test_tensor_normalises_every_level_of_every_channel() -> None:
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.5, 1.0)
    levels = np.repeat(np.arange(256, dtype=np.uint8)[None, None, :, None], 3, axis=3)  # (1, 1, 256, 3)
    tensor = Preprocessing(32, 32, mean, std).to_tensor(levels)  # (1, 3, 1, 256)
    for channel in range(3):
        expected = (torch.arange(256, dtype=torch.float64) / 255 - mean[channel]) / std[channel]
        torch.testing.assert_close(tensor[0, channel, 0].double(), expected, rtol=0, atol=1e-6)


def test_tensor_is_stored_channels_last_and_keeps_the_order_of_the_batch() -> None:
    batch = np.stack([np.full((64, 64, 3), value, np.uint8) for value in (0, 128, 255)])
    tensor = preprocessing(64, 64).to_tensor(batch)
    assert tensor.is_contiguous(memory_format=torch.channels_last)
    assert tensor[0].max() < tensor[1].min() < tensor[1].max() < tensor[2].min()


def test_tensor_of_no_picture_is_empty() -> None:
    assert preprocessing().to_tensor(np.empty((0, 224, 224, 3), np.uint8)).shape == (0, 3, 224, 224)


@pytest.mark.parametrize("size", [(640, 480), (224, 300), (100, 80)])
def test_default_card_is_the_preset_of_torchvisions_weights(size: tuple[int, int]) -> None:
    image = noise(*size)
    preset = DenseNet121_Weights.IMAGENET1K_V1.transforms()  # a Pillow image is resized before it becomes a tensor
    default = Preprocessing.of(ModelCard("x", TINY, 2))
    ours = default.to_tensor(default.to_array(image)[None])[0]
    one_level = 1 / 255 / min(IMAGENET_STD)
    torch.testing.assert_close(ours, preset(image), rtol=0, atol=one_level + 1e-6)
    assert re.search(r"crop_size=\[224\]\s+resize_size=\[256\]", repr(preset))


def test_card_decides() -> None:
    card = tiny_card(resize=80, crop=40, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    assert Preprocessing.of(card) == Preprocessing(80, 40, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_picture_itself_is_not_changed() -> None:
    image = noise(80, 60)
    before = image.tobytes()
    preprocessing().to_array(image)
    assert image.tobytes() == before


def photo(width: int, height: int, orientation: int = 1) -> bytes:
    """A JPEG with detail of every size, as a photograph has it."""
    layers = [np.asarray(noise(n, n, n).resize((width, height), Image.Resampling.BICUBIC)) for n in (4, 16, 64, 256)]
    image = Image.fromarray(np.average(layers, axis=0, weights=[8, 4, 2, 1]).astype(np.uint8))
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[ExifTags.Base.Orientation] = orientation
    image.save(buffer, "JPEG", quality=92, exif=exif)
    return buffer.getvalue()


@pytest.mark.parametrize("orientation", [1, 3, 6, 8], ids=["upright", "upside-down", "left", "right"])
@pytest.mark.parametrize(
    ("size", "reduction"),
    [((640, 480), 1), ((1546, 1213), 2), ((1023, 787), 2), ((2051, 1537), 4), ((4099, 3073), 8)],
    ids=["small", "dog", "odd", "large", "camera"],
)
def test_reduced_decoding_shows_the_same_picture(size: tuple[int, int], reduction: int, orientation: int) -> None:
    """Odd sizes too: a crop that is one pixel off would differ by several levels on average."""
    data, ours = photo(*size, orientation), preprocessing(192, 176)
    image, whole = decode_reduced(data, 10**8, ours.enough)
    upright = size if orientation in (1, 3) else size[::-1]
    assert whole == upright
    assert image.size == tuple(-(-side // reduction) for side in upright)
    exact = ours.to_array(decode(data, 10**8)).astype(int)
    found = ours.read(data, 10**8).astype(int)
    assert found.shape == (176, 176, 3)
    assert np.abs(found - exact).mean() < (0.5 if orientation == 1 else 1)  # a side that was rounded up, turned
    assert (reduction == 1) == bool((found == exact).all())


def test_only_jpeg_is_reduced() -> None:
    buffer = io.BytesIO()
    noise(900, 900).save(buffer, "PNG")
    image, whole = decode_reduced(buffer.getvalue(), 10**8, 100)
    assert image.size == whole == (900, 900)
