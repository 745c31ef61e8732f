"""``--weights``: torchvision's files by way of a stand-in for its host, labels, and what ``auto`` chooses.

The weights here are random or zero and only stand in for what is transported and converted; their
hash takes the place of the real one in ``published``.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torchvision.models import get_model_weights

from handler.card import ARCHITECTURES, Architecture, CardError, ModelCard, sha256_of
from handler.network import build_network, load_network
from scripts.lib import download as download_module
from scripts.lib import paths, weights
from scripts.lib.console import CommandError
from scripts.lib.download import DownloadError
from scripts.lib.model_folder import ModelFolder, read_model_folder, write_model_folder
from scripts.lib.weights import Published, bundled_model, imagenet_model, imagenet_weights, resolve_weights

REAL = {arch: weights.published(arch) for arch in ARCHITECTURES}
ACCEPTED = (
    "accepted are imagenet, bundled, auto, or a folder that train.py wrote "
    "(weights.safetensors, index_to_name.json and card.json)"
)


def old_file(path: Path, arch: str, random: bool = False) -> None:
    """A file as torchvision publishes them: old key names, no counters, the format before torch 1.6."""
    with torch.device("cpu" if random else "meta"):
        state = build_network(ARCHITECTURES[arch], 1000).state_dict()
    old = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12]\.)", r"\1.\2", name): (
            tensor if random else torch.zeros(1).expand(tensor.shape)  # one number in the file
        )
        for name, tensor in state.items()
        if not name.endswith("num_batches_tracked")
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, path, _use_new_zipfile_serialization=False)


class Host:
    """A web server for one folder, in place of download.pytorch.org; counts what it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []
        self.silent = False
        self.release = threading.Event()
        host = self

        class Handler(SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                host.asked.append(self.requestline.split()[1])
                if host.silent:
                    host.release.wait(60)
                    return
                super().do_GET()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self) -> None:
        self.release.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """torch on one thread: beside other work several wait for each other longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(paths, "BUNDLED", tmp_path / "bundled")
    monkeypatch.setattr(os, "fsync", lambda _: None)  # hundreds of megabytes that no test needs on the disk
    monkeypatch.setattr(download_module, "RETRY_PAUSES_S", (0.0,))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.delenv("DENSENET_WEIGHTS_MIRROR", raising=False)
    monkeypatch.delenv("DENSENET_WEIGHTS_SHA256", raising=False)
    yield
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)  # pytest keeps the folders of three runs


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    (tmp_path / "host").mkdir()
    server = Host(tmp_path / "host")
    yield server
    server.close()


Publish = Callable[..., Published]


@pytest.fixture
def publish(host: Host, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Put a file on the host and let ``published`` name its address and hash."""
    known: dict[str, Published] = {}
    original = weights.published
    monkeypatch.setattr(weights, "published", lambda arch: known.get(arch) or original(arch))

    def put(arch: str = "densenet121", random: bool = False) -> Published:
        path = host.folder / "new.pth"
        old_file(path, arch, random)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
        path.rename(host.folder / f"{arch}-{sha256}.pth")
        known[arch] = dataclasses.replace(REAL[arch], url=f"{host.url}/{arch}-{sha256}.pth", sha256=sha256)
        return known[arch]

    return put


def tiny_model(path: Path) -> ModelFolder:
    card = ModelCard("tiny", Architecture("compact", 4, (1, 1), 8), 2, resize=32, crop=32)
    return write_model_folder(path, build_network(card.architecture, 2).state_dict(), card, ["cat", "dog"])


# --- what torchvision publishes ---


@pytest.mark.parametrize(
    ("arch", "file_name", "top1", "top5"),
    [
        ("densenet121", "densenet121-a639ec97.pth", 0.74434, 0.91972),
        ("densenet161", "densenet161-8d451a50.pth", 0.77138, 0.9356),
        ("densenet169", "densenet169-b2777c0a.pth", 0.756, 0.92806),
        ("densenet201", "densenet201-c1103571.pth", 0.76896, 0.9337),
    ],
)
def test_what_torchvision_publishes(arch: str, file_name: str, top1: float, top5: float) -> None:
    source = weights.published(arch)
    assert source.url == f"https://download.pytorch.org/models/{file_name}"
    assert (source.file_name, source.sha256) == (file_name, file_name[12:20])
    assert (source.top1, source.top5) == (top1, top5)


@pytest.mark.parametrize("spec", ["auto", "imagenet"])
def test_an_unknown_architecture_is_refused(spec: str) -> None:
    tiny_model(paths.BUNDLED)
    with pytest.raises(CommandError) as caught:
        resolve_weights(spec, "resnet50")
    assert str(caught.value) == (
        "there are no ImageNet weights for 'resnet50'; choose one of densenet121, densenet161, densenet169, densenet201"
    )


# --- labels ---


def test_the_labels_are_torchvisions_one_by_one() -> None:
    labels = json.loads((paths.ROOT / "index_to_name.json").read_text(encoding="utf-8"))
    assert list(labels) == [str(index) for index in range(1000)]
    for arch in ARCHITECTURES:
        assert list(labels.values()) == get_model_weights(arch)["IMAGENET1K_V1"].meta["categories"]
    # indices that older lists of labels call by the same name
    assert (labels["134"], labels["517"]) == ("crane bird", "crane")
    assert (labels["638"], labels["639"]) == ("maillot", "maillot tank suit")
    assert labels["258"] == "Samoyed"


def test_the_labels_file_is_what_its_command_writes(tmp_path: Path) -> None:
    weights.write_imagenet_labels(tmp_path / "labels.json")
    assert (tmp_path / "labels.json").read_bytes() == (paths.ROOT / "index_to_name.json").read_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no file at {path}; a model folder holds weights.safetensors, index_to_name.json and card.json; "
         "restore it: git checkout index_to_name.json"),
        ({"0": "tench", "1": "cat"}, "{path} calls index 1 'cat', torchvision's weights mean 'goldfish'; restore the "
         "file (git checkout index_to_name.json): a model with other labels carries its own"),
        (["tench"], "{path} must map \"0\" to \"999\" to a label each, is a list; restore it: git checkout "
         "index_to_name.json"),
    ],
    ids=["missing", "another-label", "a-list"],
)  # fmt: skip
def test_other_labels_than_torchvisions_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: object, message: str
) -> None:
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    path = tmp_path / "index_to_name.json"
    if content:
        path.write_text(json.dumps(content))
    with pytest.raises(CommandError) as caught:
        imagenet_model("densenet121")
    assert str(caught.value) == message.format(path=path)


# --- imagenet ---


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_each_architecture_is_fetched_converted_and_fits(arch: str, host: Host, publish: Publish) -> None:
    source = publish(arch)
    model = imagenet_model(arch)
    assert host.asked == [f"/{source.file_name}"]
    assert model.path == paths.CACHE / "models" / f"{arch}-imagenet"
    with safe_open(model.weights, "pt") as file:
        names = set(file.keys())
    with torch.device("meta"):
        wanted = build_network(ARCHITECTURES[arch], 1000).state_dict()
    assert names == {name for name in wanted if not name.endswith("num_batches_tracked")}
    assert sorted(os.listdir(paths.CACHE / "models")) == [f"{arch}-imagenet"]
    preset = get_model_weights(arch)["IMAGENET1K_V1"].transforms()
    card = model.card
    assert ([card.resize], [card.crop]) == (preset.resize_size, preset.crop_size)
    assert (list(card.mean), list(card.std)) == (preset.mean, preset.std)
    assert card.architecture == ARCHITECTURES[arch]


def test_the_converted_model_computes_what_the_original_does(publish: Publish) -> None:
    source = publish(random=True)
    model = resolve_weights("imagenet")
    raw = paths.CACHE / "imagenet" / source.file_name
    network = load_network(model.card, model.weights, torch.device("cpu"))
    original = load_network(model.card, raw, torch.device("cpu"))
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(network(picture), original(picture))
    assert network.classifier.weight.abs().sum() > 0
    assert model.labels == list(REAL["densenet121"].labels)
    assert dataclasses.replace(model.card, weights_sha256="") == ModelCard(
        name="densenet121-imagenet",
        architecture=ARCHITECTURES["densenet121"],
        num_classes=1000,
        dataset="ImageNet-1k (ILSVRC 2012)",
        licence="BSD-3-Clause (torchvision weights; ImageNet terms apply to the data)",
        accuracy={"imagenet-val": {"top1": 0.74434, "top5": 0.91972, "source": "torchvision"}},
        training={"source": source.file_name, "source_sha256": hashlib.sha256(raw.read_bytes()).hexdigest()},
    )


def test_a_converted_model_is_used_again_without_host_or_original(host: Host, publish: Publish) -> None:
    source = publish()
    first = imagenet_model("densenet121")
    (paths.CACHE / "imagenet" / source.file_name).unlink()
    before = first.weights.stat().st_mtime_ns
    assert imagenet_model("densenet121") == first
    assert first.weights.stat().st_mtime_ns == before
    assert len(host.asked) == 1


def damage_weights(folder: Path) -> None:
    with (folder / "weights.safetensors").open("ab") as file:
        file.write(b"x")


def remove_card(folder: Path) -> None:
    (folder / "card.json").unlink()


def change_card(folder: Path) -> None:
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps({**card, "crop": 192, "input_size": [3, 192, 192]}))


def other_source(folder: Path) -> None:
    card = json.loads((folder / "card.json").read_text())
    card["training"]["source_sha256"] = "0" * 64
    (folder / "card.json").write_text(json.dumps(card))


@pytest.mark.parametrize("spoil", [damage_weights, remove_card, change_card, other_source])
def test_a_spoilt_conversion_is_made_again(publish: Publish, host: Host, spoil: Callable[[Path], None]) -> None:
    publish()
    first = imagenet_model("densenet121")
    spoil(first.path)
    assert imagenet_model("densenet121") == first
    assert read_model_folder(first.path) == first
    assert len(host.asked) == 1


def test_threads_that_want_the_same_model_convert_it_once(
    publish: Publish, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish()
    conversions: list[Path] = []
    convert = weights._convert

    def counted(*arguments: Any) -> ModelFolder:
        conversions.append(arguments[1])
        return convert(*arguments)

    monkeypatch.setattr(weights, "_convert", counted)
    models: list[ModelFolder] = []
    threads = [threading.Thread(target=lambda: models.append(imagenet_model("densenet121"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(models) == 3
    assert models[0] == models[1] == models[2]
    assert (len(conversions), len(host.asked)) == (1, 1)


def test_weights_of_another_architecture_are_refused(publish: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
    source = publish("densenet169")
    monkeypatch.setattr(weights, "published", lambda _: source)
    with pytest.raises(CardError, match=rf"the weights in {source.file_name} don't fit the architecture: "):
        imagenet_model("densenet121")
    assert not (paths.CACHE / "models").exists()


def test_a_model_that_cannot_be_written(publish: Publish) -> None:
    publish()
    paths.CACHE.mkdir()
    (paths.CACHE / "models").write_text("not a folder")
    with pytest.raises(CommandError) as caught:
        imagenet_model("densenet121")
    assert str(caught.value) == (
        f"the densenet121 model can't be written to {paths.CACHE / 'models' / 'densenet121-imagenet'}: Not a "
        "directory; free space there, make it writable, or set DENSENET_CACHE to another folder"
    )


def test_a_file_in_torchs_own_cache_is_used(host: Host, publish: Publish, tmp_path: Path) -> None:
    source = publish()
    there = tmp_path / "torch" / "hub" / "checkpoints" / source.file_name
    there.parent.mkdir(parents=True)
    there.write_bytes(b"half a file")
    assert imagenet_weights("densenet121") == paths.CACHE / "imagenet" / source.file_name
    (paths.CACHE / "imagenet" / source.file_name).rename(there)
    assert imagenet_weights("densenet121") == there
    assert len(host.asked) == 1


def test_a_damaged_file_in_the_cache_is_fetched_again(host: Host, publish: Publish) -> None:
    source = publish()
    path = imagenet_weights("densenet121")
    good = path.read_bytes()
    path.write_bytes(good[:-1])
    assert imagenet_weights("densenet121").read_bytes() == good
    assert host.asked == [f"/{source.file_name}"] * 2


# --- mirrors ---


@pytest.mark.parametrize("form", ["{url}", "{url}/", "{folder}", "{file_url}"], ids=["url", "slash", "folder", "file"])
def test_a_mirror_takes_the_place_of_torchvisions_host(
    host: Host, publish: Publish, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    source = publish()
    elsewhere = dataclasses.replace(source, url=f"https://nowhere.invalid/models/{source.file_name}")
    monkeypatch.setattr(weights, "published", lambda _: elsewhere)
    mirror = form.format(url=host.url, folder=host.folder, file_url=host.folder.as_uri())
    monkeypatch.setenv("DENSENET_WEIGHTS_MIRROR", mirror)
    file = host.folder / source.file_name
    if "{url}" in form:
        monkeypatch.setenv("DENSENET_WEIGHTS_SHA256", sha256_of(file))
    assert imagenet_weights("densenet121").read_bytes() == file.read_bytes()
    assert host.asked == ([f"/{source.file_name}"] if "{url}" in form else [])


def test_a_mirror_is_not_believed_on_eight_digits(
    host: Host, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many can be met by trying: here another file is called by its own."""
    forged = publish(random=True)
    elsewhere = dataclasses.replace(forged, url=f"https://nowhere.invalid/models/{forged.file_name}")
    monkeypatch.setattr(weights, "published", lambda _: elsewhere)
    monkeypatch.setenv("DENSENET_WEIGHTS_MIRROR", host.url)
    with pytest.raises(
        CommandError, match=r"8 digits of its SHA-256 alone, which whoever runs a mirror can forge; set"
    ):
        imagenet_weights("densenet121")
    assert host.asked == []
    genuine = forged.sha256 + "0" * 56
    monkeypatch.setenv("DENSENET_WEIGHTS_SHA256", genuine)
    with pytest.raises(DownloadError, match=rf"sent another file .*; expected a file with SHA-256 {genuine[:12]}…"):
        imagenet_weights("densenet121")
    assert list((paths.CACHE / "imagenet").iterdir()) == []
    monkeypatch.setenv("DENSENET_WEIGHTS_SHA256", "ab" * 32)
    with pytest.raises(CommandError, match=rf"isn't the SHA-256 of .*: expected 64 hex digits that .* {forged.sha256}"):
        imagenet_weights("densenet121")


def test_a_second_download_must_be_the_first_one(
    host: Host, publish: Publish, capsys: pytest.CaptureFixture[str]
) -> None:
    source = publish()
    file = imagenet_weights("densenet121")
    found = sha256_of(file)
    assert capsys.readouterr().out.endswith(f"weights: {source.file_name}, SHA-256 {found}\n")
    file.unlink()
    (paths.CACHE / "imagenet" / source.file_name).with_suffix(".sha256").write_text(source.sha256 + "0" * 56 + "\n")
    with pytest.raises(DownloadError, match="sent another file"):
        imagenet_weights("densenet121")


def test_the_whole_hash_of_the_default_is_known() -> None:
    source = weights.published("densenet121")
    assert weights._expected(source).startswith(source.sha256) and len(weights._expected(source)) == 64


def test_a_mirror_without_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DENSENET_WEIGHTS_MIRROR", str(tmp_path))
    with pytest.raises(DownloadError) as caught:
        imagenet_weights("densenet201")
    assert str(caught.value) == (
        "torchvision's weights file densenet201-c1103571.pth can't be downloaded: "
        f"file://{tmp_path}/densenet201-c1103571.pth can't be read: No such file or directory; expected a file with "
        "SHA-256 c1103571…; try again, or set DENSENET_WEIGHTS_MIRROR to a URL or a folder that holds "
        "densenet201-c1103571.pth"
    )


def test_a_wrong_file_on_the_host_is_never_used(host: Host, publish: Publish) -> None:
    source = publish()
    (host.folder / source.file_name).write_bytes(b"<html>please log in</html>")
    with pytest.raises(DownloadError, match=r"sent another file \(26 bytes, SHA-256 "):
        resolve_weights("imagenet")
    assert os.listdir(paths.CACHE / "imagenet") == []


# --- bundled, auto and one's own ---


def test_the_bundled_model_is_found() -> None:
    model = tiny_model(paths.BUNDLED)
    assert resolve_weights("bundled") == model


def test_a_missing_bundled_model_says_what_to_do() -> None:
    with pytest.raises(CommandError) as caught:
        bundled_model()
    assert str(caught.value) == (
        f"the bundled model can't be used: no file at {paths.BUNDLED / 'card.json'}; a model folder holds "
        "weights.safetensors, index_to_name.json and card.json; restore it (git checkout model_store/bundled), or give "
        "--weights imagenet or a folder that train.py wrote"
    )


def test_auto_takes_imagenet_where_it_can_be_had(publish: Publish, capsys: pytest.CaptureFixture[str]) -> None:
    publish("densenet169")
    tiny_model(paths.BUNDLED)
    model = resolve_weights("auto", "densenet169")
    assert model.card.name == "densenet169-imagenet"
    first, _, rest = capsys.readouterr().out.partition("\n")
    assert first.startswith("weights: densenet169-")  # with its whole hash
    assert rest == (
        "weights: torchvision's ImageNet densenet169 (1000 labels), because it is in the cache "
        f"({paths.CACHE}); for the model that this repository carries, give --weights bundled\n"
    )


def test_auto_takes_the_bundled_model_when_the_host_is_silent(
    host: Host, publish: Publish, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert weights.AUTO_FIRST_BYTE_S == 10
    monkeypatch.setattr(weights, "AUTO_FIRST_BYTE_S", 1.2)
    source = publish()
    host.silent = True
    bundled = tiny_model(paths.BUNDLED)
    assert resolve_weights("auto") == bundled
    assert capsys.readouterr().out == (
        "weights: the bundled model (2 labels), because torchvision's ImageNet densenet121 isn't in the cache and "
        f"can't be fetched ({source.url} sent nothing within 1 s); to get that one, give --weights imagenet when the "
        f"internet is there, or set DENSENET_WEIGHTS_MIRROR to a URL or a folder that holds {source.file_name}\n"
    )


def test_auto_says_that_the_bundled_model_is_not_the_architecture_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DENSENET_WEIGHTS_MIRROR", str(tmp_path))
    bundled = tiny_model(paths.BUNDLED)
    assert resolve_weights("auto", "densenet161") == bundled
    out = capsys.readouterr().out
    assert out.startswith(
        "weights: NOT the densenet161 that --arch names, but the bundled model (2 labels), because torchvision's "
        "ImageNet densenet161 isn't in the cache and can't be fetched ("
    )
    assert out.count("\n") == 1


def test_auto_takes_the_bundled_model_when_the_cache_is_not_writable(capsys: pytest.CaptureFixture[str]) -> None:
    paths.CACHE.write_text("not a folder")
    bundled = tiny_model(paths.BUNDLED)
    assert resolve_weights("auto") == bundled
    assert f"can't be fetched (the cache {paths.CACHE} can't be written to: " in capsys.readouterr().out


def test_auto_without_any_model_names_both_reasons(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DENSENET_WEIGHTS_MIRROR", str(tmp_path))
    with pytest.raises(CommandError) as caught:
        resolve_weights("auto")
    assert str(caught.value).startswith(
        "there is no model to serve: torchvision's ImageNet densenet121 isn't in the cache and can't be fetched "
        f"(file://{tmp_path}/densenet121-a639ec97.pth can't be read: No such file or directory), and the bundled model "
        f"can't be used: no file at {paths.BUNDLED / 'card.json'}; "
    )


@pytest.mark.parametrize("file", ["", "weights.safetensors", "card.json", "index_to_name.json"])
def test_a_model_of_ones_own_is_named_by_its_folder_or_a_file_in_it(tmp_path: Path, file: str) -> None:
    model = tiny_model(tmp_path / "runs" / "mine")
    assert resolve_weights(str(model.path / file)) == model


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("imagnet", f"there is no such file or folder; {ACCEPTED}"),
        ("", f"there is no such file or folder; {ACCEPTED}"),
        (
            "state.pth",
            f"a weights file alone doesn't say what its outputs mean; {ACCEPTED}; to go on from these weights, give "
            "them to train.py as --start",
        ),
        (
            "empty",
            f"no file at {Path('empty/card.json')}; a model folder holds weights.safetensors, index_to_name.json and "
            f"card.json; {ACCEPTED}",
        ),
    ],
    ids=["misspelt", "nothing", "bare-state-dict", "not-a-model"],
)
def test_what_is_no_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    torch.save({"weight": torch.zeros(1)}, "state.pth")
    with pytest.raises(CommandError) as caught:
        resolve_weights(spec)
    assert str(caught.value) == f"--weights {spec!r}: {message}"


def test_damaged_weights_of_ones_own_are_refused(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "mine")
    damage_weights(model.path)
    with pytest.raises(CommandError, match=r"isn't the file that its card describes: SHA-256 \w{12}…, the card says"):
        resolve_weights(str(model.path))


@pytest.mark.parametrize("spec", ["bundled", "runs/mine"])
def test_an_architecture_is_not_silently_ignored(spec: str) -> None:
    with pytest.raises(CommandError) as caught:
        resolve_weights(spec, "densenet201")
    assert str(caught.value) == (
        f"--arch densenet201 goes with --weights imagenet or auto, not with {spec!r}, which has an architecture of its "
        "own; leave --arch out"
    )
