"""The use of a trained adapter: classifying images, and merged weights."""

from blocklora.backbones.weights import load_backbone
from blocklora.cli import main
from blocklora.study import places
from blocklora.tensorfiles import read_tensors, write_tensors
from tests.runs.small_study import CLASSES, fit, predictions_of, run_folder
from tests.tiny import SHAPE

BACKBONE = places.backbone("mini-clip")


def test_a_trained_adapter_classifies_images_as_its_merged_weights_do(prepared, tmp_path, capsys):
    assert fit(prepared, tmp_path) == 0
    folder = run_folder(tmp_path, 1)
    files = ["--adapter", folder / "adapter.safetensors"]
    files += ["--backbone-file", prepared / BACKBONE]
    images = sorted((prepared / "images/test").rglob("*.png"))
    assert main([str(a) for a in ("predict", *files, *images)]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == [str(image) for image in images]
    correct = sum(
        name == image.parent.name for image, (_, name, _) in zip(images, lines, strict=True)
    )
    predictions = predictions_of(tmp_path, 1)
    assert correct == predictions.correct
    by_name = sorted(zip(predictions.label, range(10), strict=True), key=lambda e: CLASSES[e[0]])
    expected = [f"{predictions.probability[index]:.4f}" for _, index in by_name]
    assert [probability for _, _, probability in lines] == expected

    merged = tmp_path / "merged.safetensors"
    assert main([str(a) for a in ("merge", *files, "--output", merged)]) == 0
    plain = load_backbone(merged)
    assert plain.config == SHAPE
    changed = [
        name
        for name, value in load_backbone(prepared / BACKBONE).weights.items()
        if not value.equal(plain.weights[name])
    ]
    assert len(changed) == 5
    assert all(name.endswith("in_proj_weight") for name in changed)


def test_an_unreadable_image_is_named(prepared, tmp_path, capsys):
    assert fit(prepared, tmp_path) == 0
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not a picture")
    adapter = run_folder(tmp_path, 1) / "adapter.safetensors"
    arguments = ["predict", "--adapter", adapter, "--backbone-file",
                 prepared / BACKBONE, broken]  # fmt: skip
    assert main([str(argument) for argument in arguments]) == 1
    assert "broken.png" in capsys.readouterr().err


def test_an_adapter_that_does_not_say_its_logit_scale_is_used_with_a_warning(
    prepared, tmp_path, capsys, caplog
):
    assert fit(prepared, tmp_path) == 0
    path = run_folder(tmp_path, 1) / "adapter.safetensors"
    facts, tensors = read_tensors(path, "adapter file", "", framework="pt")
    assert facts.pop("logit_scale") == 30
    write_tensors(path, tensors, facts)
    image = next((prepared / "images/test").rglob("*.png"))
    files = ["--adapter", path, "--backbone-file", prepared / BACKBONE]
    assert main([str(argument) for argument in ("predict", *files, image)]) == 0
    assert capsys.readouterr().out.startswith(str(image))
    assert f"{path}: does not say its logit_scale" in caplog.text
