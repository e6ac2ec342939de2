import pytest
import torch

from blocklora.adapters.config import AdapterConfig
from blocklora.adapters.store import load_adapter, read_adapter_record, save_adapter
from blocklora.errors import UserError
from tests.tiny import LORA, tiny_backbone, trained_adapter

BLOCK = AdapterConfig(**{**LORA.__dict__, "blocks": 2, "matrices": ("q", "o"), "layers": (1, 1)})


@pytest.fixture
def saved(tmp_path):
    adapter = trained_adapter(BLOCK, tiny_backbone())
    path = tmp_path / "adapter.safetensors"
    save_adapter(path, adapter, "tiny", "f" * 64, dataset="mini_digits", shots=4)
    return adapter, path


def test_reload_is_exact(saved):
    adapter, path = saved
    loaded = load_adapter(path, "f" * 64, BLOCK)
    assert loaded.config == BLOCK
    for (name, *tensors), (other, *others) in zip(
        adapter.matrices(), loaded.matrices(), strict=True
    ):
        assert name == other
        assert all(torch.equal(a, b) for a, b in zip(tensors, others, strict=True))


def test_the_record_tells_what_the_adapter_is_for(saved):
    record = read_adapter_record(saved[1])
    assert record["config"] == BLOCK.to_json()
    assert (record["backbone"], record["dataset"], record["shots"]) == ("tiny", "mini_digits", 4)


def test_the_same_adapter_gives_the_same_bytes(saved, tmp_path):
    adapter, path = saved
    again = tmp_path / "again.safetensors"
    save_adapter(again, adapter, "tiny", "f" * 64, shots=4, dataset="mini_digits")
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_file_cut_short_is_refused_by_name(saved, share):
    path = saved[1]
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match=r"adapter\.safetensors: not a readable adapter file"):
        load_adapter(path)


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match="no such adapter file"):
        load_adapter(tmp_path / "none.safetensors")


def test_another_backbone_is_refused(saved):
    with pytest.raises(UserError, match="trained on another backbone, tiny"):
        load_adapter(saved[1], backbone_sha256="0" * 64)


def test_another_configuration_is_refused_and_the_difference_named(saved):
    wanted = AdapterConfig(**{**BLOCK.__dict__, "rank": 8})
    with pytest.raises(UserError, match=r"rank \(4, not 8\)"):
        load_adapter(saved[1], config=wanted)


def test_a_foreign_safetensors_file_is_refused(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(UserError, match="not a readable adapter file"):
        load_adapter(path)
