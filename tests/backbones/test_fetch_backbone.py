"""`fetch-backbone`, on a model that is small but otherwise published like OpenAI's."""

import hashlib
import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from blocklora.backbones import published as published_module
from blocklora.backbones.published import models
from blocklora.backbones.weights import load_backbone
from blocklora.cli import commands
from blocklora.data.download import WORK
from blocklora.errors import UserError
from blocklora.study.entries import BackboneSource
from tests.backbones.checkpoint_files import (
    CONFIG,
    NAME,
    openai_archive,
    safetensors_file,
    small_weights,
    state_dict,
)
from tests.data.http_server import Server

OPENAI = models()[NAME]

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return small_weights()


@pytest.fixture
def hub(monkeypatch):
    """A hub on loopback that redirects, as the real one does; nobody waits between attempts."""
    server = Server()
    model = OPENAI
    server.add(f"{model.repository}/resolve/{model.revision}/{OPENAI.file}", redirect="/blob")
    monkeypatch.setenv("HF_ENDPOINT", server.url("").replace("//", "//user:password@"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    yield server
    server.close()


@pytest.fixture
def published(weights, tmp_path, monkeypatch):
    """Stand in for OpenAI's publication: a small model's files and their digests."""
    folder = tmp_path / "published"
    folder.mkdir()
    archive = openai_archive(folder / "ViT-B-16.pt", weights, CONFIG)
    hub_file = safetensors_file(folder / OPENAI.file, weights, CONFIG)
    model = replace(
        OPENAI,
        sha256=hashlib.sha256(hub_file.read_bytes()).hexdigest(),
        archive_sha256=hashlib.sha256(archive.read_bytes()).hexdigest(),
    )
    monkeypatch.setattr(published_module, "models", lambda: {NAME: model})
    study = SimpleNamespace(
        backbones={
            NAME: BackboneSource("openai"),
            "drawn": BackboneSource("miniature"),
        },
        backbone_config=lambda name: CONFIG,
        path="s.yaml",
    )
    monkeypatch.setattr("blocklora.study.study_files.find_study", Path)
    monkeypatch.setattr("blocklora.study.study.load_study", lambda path: study)
    return SimpleNamespace(archive=archive, hub_file=hub_file, root=tmp_path / "weights")


@pytest.fixture
def fetch(published, tmp_path):
    """Run `blocklora fetch-backbone` and return the file it wrote."""
    published.root.mkdir()

    def run(*arguments, backbone: str = NAME) -> Path:
        output = tmp_path / "out" / "backbone.safetensors"
        words = ["fetch-backbone", "--study", "s.yaml", "--backbone", backbone, "--weights-root"]
        words += [published.root, "--output", output, *arguments]
        with commands.make_context("blocklora", list(map(str, words))) as context:
            commands.invoke(context)
        return output

    return run


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        pytest.fail("the network was used")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)


def test_the_hub_is_asked_without_a_token_and_the_cache_serves_offline(
    fetch, hub, published, weights, monkeypatch
):
    hub.add("blob", published.hub_file.read_bytes())
    first = load_backbone(fetch())
    assert [path for path, _ in hub.asked] == [
        f"/{OPENAI.repository}/resolve/{OPENAI.revision}/{OPENAI.file}",
        "/blob",
    ]
    assert "hf_secret" not in str(hub.asked)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was used"))
    again = load_backbone(fetch("--offline"))
    for name, value in weights.items():
        assert torch.equal(first.weights[name], value)
        assert torch.equal(again.weights[name], value)


def test_a_broken_transfer_is_continued(fetch, hub, published, weights):
    content = published.hub_file.read_bytes()
    blob = hub.add("blob", content, cuts=1, fail=[503])
    backbone = load_backbone(fetch())
    assert blob.requests == [None, None, f"bytes={len(content) // 2}-"]
    assert all(torch.equal(backbone.weights[name], value) for name, value in weights.items())


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "HTTP status 404"), (b"other", "sha256 .* instead of")]
)
def test_a_failed_download_leaves_nothing_and_says_what_to_do(
    fetch, hub, published, caplog, content, reason
):
    caplog.set_level(logging.INFO)
    if content:
        hub.add("blob", content)
    with pytest.raises(UserError, match=reason) as caught:
        fetch()
    assert f"/{published.archive.name}" in str(caught.value)
    assert "127.0.0.1" in str(caught.value)
    assert "password" not in str(caught.value) + caplog.text
    assert [path.name for path in published.root.iterdir()] == [WORK]


def test_a_folder_that_cannot_be_written_is_named(fetch, hub, published):
    published.root.rmdir()
    published.root.touch()
    with pytest.raises(UserError, match=r"weights/.*cannot write this lock file"):
        fetch()


@pytest.mark.usefixtures("no_network")
def test_offline_without_a_file_names_the_command_that_fetches_it(fetch, published, tmp_path):
    with pytest.raises(UserError) as caught:
        fetch("--offline")
    command = f"blocklora fetch-backbone --study s.yaml --backbone {NAME} --weights-root"
    assert command in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    "place",
    [
        "ViT-B-16.pt",
        f"{NAME}.pt",
        f"models--timm--vit_base_patch16_clip_224.openai/snapshots/{OPENAI.revision}/{OPENAI.file}",
    ],
)
def test_files_of_the_usual_caches_are_found_and_verified(place, fetch, published, weights, caplog):
    caplog.set_level(logging.INFO)
    source = published.archive if place.endswith(".pt") else published.hub_file
    target = published.root / place
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read_bytes())
    backbone = load_backbone(fetch())
    assert backbone.config == CONFIG
    assert all(torch.equal(backbone.weights[name], value) for name, value in weights.items())
    assert "verified" in caplog.text


@pytest.mark.usefixtures("no_network")
def test_weights_that_another_study_made_need_no_checkpoint(fetch, published, weights, tmp_path):
    kept = ("--offline", "--cache", tmp_path / "cache", "--key", "0123")
    checkpoint = published.root / f"{NAME}.safetensors"
    checkpoint.write_bytes(published.hub_file.read_bytes())
    output = fetch("--checkpoint", checkpoint, *kept)
    checkpoint.unlink()
    output.unlink()
    again = load_backbone(fetch(*kept))
    assert output.is_symlink()
    assert all(torch.equal(again.weights[name], value) for name, value in weights.items())
    with pytest.raises(UserError, match="--offline forbids downloading"):
        fetch(*kept[:-1], "4567")


@pytest.mark.usefixtures("no_network")
def test_weights_of_another_origin_are_another_entry(fetch, published, weights, tmp_path):
    kept = ("--cache", tmp_path / "cache", "--key", "0123")
    other = {name: value + 1 for name, value in weights.items()}
    sums = []
    for some in (weights, other):
        path = state_dict(published.root / f"{NAME}.pth", some, CONFIG)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        path.with_name(f"{path.name}.sha256").write_text(f"{digest}  {path.name}\n")
        sums.append(load_backbone(fetch(*kept)).sha256)
    assert sums[0] != sums[1]


@pytest.mark.usefixtures("no_network")
def test_an_own_file_needs_a_digest_beside_it_or_its_name_said(fetch, published, weights, caplog):
    path = state_dict(published.root / f"{NAME}.pth", weights, CONFIG)
    with pytest.raises(UserError, match="not that of any published file"):
        fetch()
    fetch("--checkpoint", path)
    assert "used as asked" in caplog.text
    beside = path.with_name(f"{path.name}.sha256")
    beside.write_text(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n")
    assert fetch().is_file()
    beside.write_text(f"{'0' * 64}  {path.name}\n")
    with pytest.raises(UserError, match="copy the file again"):
        fetch()


@pytest.mark.usefixtures("no_network")
def test_mistaken_requests_are_explained(fetch, tmp_path):
    with pytest.raises(UserError, match="there is no backbone 'typo'"):
        fetch(backbone="typo")
    with pytest.raises(UserError, match="the source of backbone drawn is miniature"):
        fetch(backbone="drawn")
    with pytest.raises(UserError, match="no such checkpoint file"):
        fetch("--checkpoint", tmp_path / "absent.pt")


@pytest.mark.usefixtures("no_network")
def test_a_model_that_does_not_fit_leaves_no_backbone_file(fetch, weights, tmp_path):
    path = tmp_path / "bad.safetensors"
    save_file({**weights, "surplus": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="left over: surplus"):
        fetch("--checkpoint", path)
    assert not (tmp_path / "out").exists()


def test_the_backbone_file_says_where_it_came_from_but_not_from_which_folder(fetch, published):
    (published.root / "ViT-B-16.pt").write_bytes(published.archive.read_bytes())
    with safe_open(fetch(), framework="pt") as file:
        metadata = str(file.metadata())
    assert hashlib.sha256(published.archive.read_bytes()).hexdigest() in metadata
    assert str(published.root) not in metadata
