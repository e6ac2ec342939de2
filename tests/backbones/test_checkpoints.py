"""Each accepted checkpoint form loads to the same model; everything else is refused by name."""

import json
import pickle
import re
import zipfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from blocklora.backbones.checkpoints import canonical_weights, read_checkpoint
from blocklora.backbones.hub import SUFFIXES
from blocklora.backbones.model import build_open_clip, tensor_shapes
from blocklora.backbones.published import (
    MODELS,
    PUBLISHED,
    models,
    published_config,
    published_model,
)
from blocklora.backbones.shape import ClipConfig
from blocklora.backbones.torchscript import read_torchscript
from blocklora.backbones.weights import load_backbone, save_backbone
from blocklora.errors import UserError
from tests.backbones.checkpoint_files import (
    CONFIG,
    FORMS,
    NAME,
    openai_archive,
    safetensors_file,
    small_weights,
    state_dict,
)

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return small_weights()


def convert(path: Path, config: ClipConfig = CONFIG) -> dict[str, torch.Tensor]:
    return canonical_weights(read_checkpoint(path), config)


def refusal(path: Path, config: ClipConfig = CONFIG) -> str:
    with pytest.raises(UserError) as caught:
        convert(path, config)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("file", FORMS)
def test_every_form_loads_to_equal_outputs(file, weights, tmp_path):
    loaded = convert(FORMS[file](tmp_path / file, weights, CONFIG))
    image = torch.randn(2, 3, CONFIG.image_size, CONFIG.image_size)
    text = torch.randint(1, CONFIG.vocab_size, (2, CONFIG.context_length))
    expected, model = build_open_clip(CONFIG, weights), build_open_clip(CONFIG, loaded)
    with torch.no_grad():
        assert torch.equal(model.encode_image(image), expected.encode_image(image))
        assert torch.equal(model.encode_text(text), expected.encode_text(text))
    assert {value.dtype for value in loaded.values()} == {torch.float32}


def test_a_full_vit_b_16_loads_equally_from_every_published_form(tmp_path):
    config = published_config(NAME)
    generator = torch.Generator().manual_seed(0)
    expected = {
        name: torch.randn(shape, generator=generator).half().float()
        for name, shape in tensor_shapes(config).items()
    }
    for file in ("clip.pt", "openai.pt", "clip.safetensors"):
        path = FORMS[file](tmp_path / file, expected, config)
        loaded = convert(path, config)
        path.unlink()
        assert all(torch.equal(loaded[name], value) for name, value in expected.items())
        assert loaded.keys() == expected.keys()


@pytest.mark.parametrize("model", models().values(), ids=models())
def test_every_entry_names_a_pinned_file_that_can_be_published(model):
    assert model.source in PUBLISHED.sources
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", model.repository)
    assert re.fullmatch(r"[0-9a-f]{40}", model.revision)
    assert re.fullmatch(r"[0-9a-f]{64}", model.sha256)
    assert Path(model.hub_file).suffix in SUFFIXES
    assert (model.archive is None) == (model.archive_sha256 is None)
    if model.archive is not None:
        assert re.fullmatch(r"[0-9a-f]{64}", model.archive_sha256)
        assert model.archive.startswith("https://")
        assert Path(model.archive_file).suffix in SUFFIXES
    assert type(model.quick_gelu) is bool
    assert len(model.mean) == len(model.std) == 3


def test_entries_are_published_under_names_of_the_published_tables():
    from blocklora.publish.published_accuracies import load_published

    names = {model.published_as for model in models().values()} - {None}
    assert names <= set(load_published()["backbone"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "ViT-B-16"}, "QuickGELU mismatch: this open_clip describes ViT-B-16 "
         "with the exact GELU, but OpenAI's weights of .* were trained with QuickGELU"),
        ({"architecture": "ViT-B-16-SigLIP"}, "not a plain CLIP with two transformers; it has"),
        ({"architecture": "RN50-quickgelu"}, "not a plain CLIP with two transformers; it has con"),
        ({"architecture": "ViT-C-16"}, "the installed open_clip has no model ViT-C-16"),
    ],
)  # fmt: skip
def test_an_entry_that_open_clip_describes_otherwise_is_refused(change, message, monkeypatch):
    model = replace(models()[NAME], name="changed", **change)
    monkeypatch.setattr("blocklora.backbones.published.models", lambda: {"changed": model})
    with pytest.raises(UserError, match=message):
        published_config.__wrapped__("changed")


@pytest.mark.parametrize("fault", ["size: 224", "source: typo"])
def test_a_wrong_entry_is_refused_by_its_name(fault, tmp_path, monkeypatch):
    file = tmp_path / "models.yaml"
    key = fault.partition(":")[0]
    lines = [x for x in MODELS.read_text().splitlines() if not x.strip().startswith(f"{key}: ")]
    place = lines.index(f"  {NAME}:") + 1
    file.write_text("\n".join([*lines[:place], f"    {fault}", *lines[place:]]))
    monkeypatch.setattr("blocklora.backbones.published.MODELS", file)
    with pytest.raises(UserError, match=f"models.{NAME}: not the entry of a model"):
        models.__wrapped__()


@pytest.mark.parametrize("name", models())
def test_shapes_are_those_of_open_clip(name):
    from open_clip.model import CLIP

    config = published_config(name)
    with torch.device("meta"):
        model = CLIP(**config.to_open_clip())
    assert tensor_shapes(config) == {k: tuple(v.shape) for k, v in model.state_dict().items()}
    assert config.quick_gelu == models()[name].quick_gelu
    assert ClipConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize(
    ("name", "parameters", "vision", "text"),
    [  # Radford et al. 2021 (arXiv 2103.00020), Table 20; parameters as open_clip counts them
        ("ViT-B-16-quickgelu", 149_620_737, (12, 768, 12), (12, 512, 8)),
        ("ViT-B-32-quickgelu", 151_277_313, (12, 768, 12), (12, 512, 8)),
        ("ViT-L-14-quickgelu", 427_616_513, (24, 1024, 16), (12, 768, 12)),
    ],
)
def test_models_have_the_published_sizes(name, parameters, vision, text):
    config = published_config(name)
    counted = sum(torch.Size(shape).numel() for shape in tensor_shapes(config).values())
    assert counted == parameters
    assert (config.vision.layers, config.vision.width, config.vision.heads) == vision
    assert (config.text.layers, config.text.width, config.text.heads) == text


def test_missing_extra_and_misshapen_tensors_are_named_together(weights, tmp_path):
    bad = dict(weights, surplus=torch.zeros(1))
    del bad["visual.proj"]
    bad["ln_final.bias"] = torch.zeros(17)
    bad["ln_final.weight"] = torch.zeros(16, dtype=torch.int64)
    message = refusal(state_dict(tmp_path / "bad.pt", bad, CONFIG))
    for part in (
        "missing: visual.proj",
        "left over: surplus",
        "ln_final.bias is (17,) in place of (16,)",
        "ln_final.weight holds torch.int64",
    ):
        assert part in message


def test_another_model_is_refused_with_a_short_message(weights, tmp_path):
    path = safetensors_file(tmp_path / "other.safetensors", weights, CONFIG)
    message = refusal(path, published_config(NAME))
    assert "and " in message
    assert "more" in message
    assert len(message) < 1500


def test_a_temperature_of_length_one_is_accepted(weights, tmp_path):
    path = tmp_path / "clip.pt"
    torch.save(dict(weights, logit_scale=weights["logit_scale"].reshape(1)), path)
    assert convert(path)["logit_scale"].shape == ()


def test_tensors_that_share_memory_become_independent(weights, tmp_path):
    shared = weights["ln_final.bias"]
    path = state_dict(tmp_path / "clip.pt", dict(weights, **{"ln_final.weight": shared}), CONFIG)
    save_backbone(tmp_path / "out.safetensors", CONFIG, convert(path), "a test")
    assert torch.equal(load_backbone(tmp_path / "out.safetensors").weights["ln_final.bias"], shared)


@pytest.mark.parametrize("file", ["openai.pt", "own.safetensors"])
def test_a_quickgelu_mismatch_of_a_file_that_tells_is_an_error(file, weights, tmp_path):
    path = FORMS[file](tmp_path / file, weights, CONFIG)
    assert "QuickGELU mismatch" in refusal(path, replace(CONFIG, quick_gelu=False))


def test_a_quickgelu_mismatch_told_by_a_config_beside_is_an_error(weights, tmp_path):
    path = state_dict(tmp_path / "clip.bin", weights, CONFIG)
    config = tmp_path / "open_clip_config.json"
    config.write_text(json.dumps({"model_cfg": {"embed_dim": 24, "quick_gelu": True}}))
    assert convert(path)
    config.write_text(json.dumps({"model_cfg": {"embed_dim": 24}}))
    assert "trained with the exact GELU" in refusal(path)
    config.write_text("[]")
    assert "open_clip_config.json beside it is not a configuration" in refusal(path)


def test_a_name_without_quickgelu_is_an_error():
    with pytest.raises(UserError, match="write ViT-B-16-quickgelu in the study"):
        published_model("ViT-B-16")
    with pytest.raises(UserError, match="use one of ViT-B-16-quickgelu"):
        published_model("RN50")


@pytest.mark.parametrize("file", FORMS)
def test_a_file_cut_short_is_refused(file, weights, tmp_path):
    path = FORMS[file](tmp_path / file, weights, CONFIG)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "not a readable" in refusal(path)


def test_flipped_bytes_of_an_archive_are_noticed(weights, tmp_path):
    path = openai_archive(tmp_path / "openai.pt", weights, CONFIG)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert "not a readable TorchScript archive" in refusal(path)


def test_a_damaged_directory_of_an_archive_is_noticed(weights, tmp_path):
    path = openai_archive(tmp_path / "openai.pt", weights, CONFIG)
    path.write_bytes(path.read_bytes().replace(b"PK\x01\x02", b"PK\x01\x03"))
    assert "not a readable" in refusal(path)


def test_no_such_file_is_said(tmp_path):
    assert "no such checkpoint file" in refusal(tmp_path / "absent.pt")


class Payload:
    """Runs code when unpickled the ordinary way."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_a_pickle_is_never_executed(tmp_path):
    path, mark = tmp_path / "evil.pt", tmp_path / "executed"
    torch.save({"weight": Payload(mark)}, path)
    assert "holds more than tensors" in refusal(path)
    assert not mark.exists()


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_is_never_executed(compression, tmp_path):
    path, mark = tmp_path / "evil.pt", tmp_path / "executed"
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("evil/data.pkl", pickle.dumps(Payload(mark), protocol=2))
        archive.writestr("evil/constants.pkl", pickle.dumps((), protocol=2))
    assert "not a readable TorchScript archive" in refusal(path)
    assert not mark.exists()


def test_a_state_dict_of_something_else_is_refused(tmp_path):
    path = tmp_path / "list.pt"
    torch.save([torch.zeros(1)], path)
    assert "no state dict" in refusal(path)


def test_an_archive_is_read_like_torch_reads_it(tmp_path):
    """Views, strides, shared storages, every dtype: against `torch.jit.load`."""
    base = torch.arange(12.0)
    module = nn.Module()
    module.register_buffer("view", base[2:8].view(2, 3).t())
    module.register_buffer("base", base)
    for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.bool):
        module.register_buffer(f"as_{str(dtype)[6:]}", torch.tensor([0, 1, 1]).to(dtype))
    torch.jit.save(torch.jit.script(module), str(tmp_path / "a.pt"))
    expected = torch.jit.load(str(tmp_path / "a.pt")).state_dict()
    found = read_torchscript(tmp_path / "a.pt")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_mangled_archive_is_read_or_refused_but_never_crashes(data, tmp_path):
    """Bytes of the object description are changed, with checksums that agree."""
    original, mangled = tmp_path / "original.pt", tmp_path / "mangled.pt"
    if not original.exists():
        module = nn.Linear(3, 2)
        module.register_buffer("view", torch.arange(6.0)[1:5].view(2, 2).t())
        torch.jit.save(torch.jit.script(module), str(original))
    with zipfile.ZipFile(original) as source, zipfile.ZipFile(mangled, "w") as target:
        for name in source.namelist():
            content = bytearray(source.read(name))
            if name.endswith("/data.pkl"):
                places = st.integers(0, len(content) - 1)
                for place, byte in data.draw(st.dictionaries(places, st.integers(0, 255))).items():
                    content[place] = byte
            target.writestr(name, bytes(content))
    with suppress(UserError):
        found = read_torchscript(mangled)
        assert all(isinstance(value, torch.Tensor) for value in found.values())
