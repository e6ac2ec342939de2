"""What the tests on a GPU share works, which a machine without one can tell too."""

import pytest

from tests.gpu import setting as gpu


def test_shared_helpers_train_and_compare_on_a_cpu(monkeypatch):
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    which = gpu.small(dropout=0.0)
    subject, history = gpu.trained(which, count=2, images=6)
    assert [row["step"] for row in history.rows] == [2]
    found, other = (gpu.steps(gpu.engine(which), which, [4, 3]) for _ in range(2))
    assert gpu.apart(found, other) == 0
    assert gpu.apart(gpu.steps(subject, which, [4, 3]), other) > 0


def test_planned_settings_are_those_of_the_paper():
    which = gpu.vit_b16(3, "bf16")
    assert (len(which.prompts), which.batch_size, which.clip.image_size) == (3, 32, 224)


@pytest.mark.parametrize("kind", ["mapped", "reversed", "lazy"])
def test_stored_pixels_are_classified_on_a_cpu(monkeypatch, tmp_path, kind):
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    which = gpu.small()
    adapter, pixels = gpu.engine(which).adapter, gpu.batch(which, 70)[0].numpy()
    given = gpu.stored(pixels, tmp_path, kind)
    classes, _ = gpu.classifier(which, adapter).predict(given)
    assert (classes == gpu.cosines(which, pixels, adapter).argmax(1).numpy()).all()


def test_fits_of_several_seeds_are_done_on_a_cpu(monkeypatch):
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    for facts, cost in gpu.fits(gpu.small(), seeds=(1, 2)):
        assert facts["iterations"] == 4
        assert "peak_memory_bytes" not in facts
        assert cost["peak_memory_bytes"] > 0
