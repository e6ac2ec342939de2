import logging
from itertools import pairwise
from math import log2

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.container import BarContainer
from PIL import Image

from blocklora.errors import UserError
from blocklora.publish.figures.ablation import ablation_figure
from blocklora.publish.figures.accuracy import accuracy_figure
from blocklora.publish.figures.canvas import WIDTH, looks, style, write_drawing
from blocklora.publish.figures.cost import cost_figure, efficiency_figure
from blocklora.publish.figures.theory import bounds_figure, spectra_figure
from blocklora.publish.results import load_results
from blocklora.study.run import Run
from tests.publish.latex import compile_latex
from tests.publish.samples import (
    BACKBONE,
    CLIP_LORA,
    METHODS,
    PAPER,
    made_results,
    write_study,
    write_theory,
)

ACCURACIES = {("clip_lora", 1): 0.5, ("clip_lora", 4): 0.6, ("block_lora", 1): 0.45}


def accuracy(run):
    return ACCURACIES.get((run.method, run.shots), 0.4) + 0.01 * (run.seed - 2) * (run.shots > 0)


def lines(axes):
    return {line.get_label(): line for line in axes.get_lines()}


def panels(drawing):
    return {axes.get_title(): axes for axes in drawing.figure.axes if axes.get_title()}


@pytest.fixture
def results(tmp_path):
    """Results of a study that has the files of the theory step and no runs."""
    return load_results(write_study(tmp_path / "made.yaml"), write_theory(tmp_path))


def test_accuracy_is_drawn_over_shots_with_zero_shot_at_zero(tmp_path):
    drawing = accuracy_figure(made_results(tmp_path, accuracy))
    shown = panels(drawing)
    assert list(shown) == ["EuroSAT", "DTD", "average"]
    drawn = lines(shown["DTD"])
    assert drawn["CLIP-LoRA"].get_xdata().tolist() == [1, 1 + log2(4)]
    assert drawn["CLIP-LoRA"].get_ydata().tolist() == pytest.approx([50, 60])
    assert drawn["Block-LoRA"].get_ydata().tolist() == pytest.approx([45, 40])
    zero_shot = drawn["CLIP zero-shot"]
    assert (zero_shot.get_xdata().tolist(), zero_shot.get_linestyle()) == ([0], "None")
    assert [tick.get_text() for tick in shown["DTD"].get_xticklabels()] == ["0", "1", "4"]


def test_bands_reach_one_standard_deviation(tmp_path):
    shown = panels(accuracy_figure(made_results(tmp_path, accuracy)))
    band = shown["DTD"].collections[1].get_paths()[0].vertices  # of CLIP-LoRA
    at_one_shot = band[band[:, 0] == 1][:, 1]
    assert (at_one_shot.min(), at_one_shot.max()) == pytest.approx((49, 51))


def test_published_curves_are_those_of_the_papers(tmp_path):
    drawing = accuracy_figure(made_results(tmp_path, accuracy), published=True)
    drawn = lines(panels(drawing)["DTD"])
    # arXiv 2405.18541v2, Table 3: 54.3 with 1 shot, 63.8 with 4.
    assert dict(zip(*drawn["CLIP-LoRA (published)"].get_data(), strict=True)) == {
        1: 54.3,
        2: 59.9,
        3: 63.8,
        4: 67.5,
        5: 72.0,
    }
    kinds = drawing.data.groupby("method")["kind"].first()
    assert (kinds["PromptSRC"], kinds["clip_lora"]) == ("published", "measured")
    assert "not measured here" in drawing.caption


def test_a_missing_cell_is_a_gap_in_the_line(tmp_path):
    gone = [Run(BACKBONE, "dtd", "clip_lora", 4, seed) for seed in (1, 2, 3)]
    drawing = accuracy_figure(made_results(tmp_path, accuracy, gone))
    for title in ("DTD", "average"):
        data = lines(panels(drawing)[title])["CLIP-LoRA"].get_ydata()
        assert np.isnan(data).tolist() == [False, True]
    assert "3 runs are missing" in drawing.caption


def test_a_single_seed_has_no_band(tmp_path):
    drawing = accuracy_figure(made_results(tmp_path, accuracy, seeds=[1]))
    paths = [path for band in panels(drawing)["DTD"].collections for path in band.get_paths()]
    assert all(np.isnan(path.vertices).all() or not len(path.vertices) for path in paths)
    assert "a single seed" in drawing.caption


def test_a_study_of_several_backbones_needs_one_named(tmp_path):
    backbones = {name: {"source": "openai"} for name in (BACKBONE, "ViT-B-32-quickgelu")}
    results = made_results(tmp_path, accuracy, backbones=backbones)
    with pytest.raises(UserError, match=r"--backbone: ViT-B-16-quickgelu, ViT-B-32-quickgelu"):
        accuracy_figure(results)
    drawing = accuracy_figure(results, "ViT-B-32-quickgelu")
    assert "ViT-B/32" in drawing.caption
    assert set(drawing.data["backbone"]) == {"ViT-B-32-quickgelu"}


def test_cost_bars_have_the_measured_lengths(tmp_path):
    drawing = cost_figure(made_results(tmp_path, accuracy))
    bars = next(c for c in drawing.figure.axes[0].containers if isinstance(c, BarContainer))
    assert [bar.get_width() for bar in bars] == [184320, 138240]
    written = [text.get_text() for text in drawing.figure.axes[1].texts]
    assert written == ["2.18 GB", "2.14 GB"]


def test_efficiency_is_drawn_for_the_dataset_with_the_most_classes(results):
    drawing = efficiency_figure(results)
    drawn = lines(drawing.figure.axes[0])
    assert drawn["rank 8"].get_xdata().tolist() == [1, 8]
    assert drawn["rank 8"].get_ydata().tolist() == pytest.approx([737.28, 414.72])
    assert lines(drawing.figure.axes[2])["rank 2"].get_ydata().tolist() == pytest.approx([6, 5.9])
    assert "ImageNet (1000 classes)" in drawing.caption


def test_ablation_lines_start_at_lora(tmp_path):
    methods = METHODS | {"input": CLIP_LORA | {"blocks": 2, "partition": "input"}}
    drawing = ablation_figure(made_results(tmp_path, accuracy, methods=methods))
    axes = panels(drawing)["1 shot"]
    found = {
        container.get_label(): container.lines[0].get_xydata().tolist()
        for container in axes.containers
    }
    assert found["rank 2, by rank"] == pytest.approx(np.array([[1, 50], [2, 45]]))
    assert found["rank 2, by input"] == pytest.approx(np.array([[1, 50], [2, 40]]))


def test_lora_of_the_merged_arms_is_drawn_at_its_block_lora(tmp_path):
    methods = METHODS | {"merged": CLIP_LORA | {"rank": 1, "alpha": 2**0.5}}
    drawing = ablation_figure(made_results(tmp_path, accuracy, methods=methods))
    drawn = lines(panels(drawing)["1 shot"])["LoRA of the merged arms"]
    assert drawn.get_xydata().tolist() == pytest.approx(np.array([[2, 40]]))
    assert "Circles" in drawing.caption


def test_bounds_and_gaps_are_medians_of_the_trained_methods(results):
    drawing = bounds_figure(results)
    bound, gap, parameters = drawing.figure.axes
    assert lines(bound)["Block-LoRA"].get_ydata().tolist() == pytest.approx([(90.3 + 195.8) / 2])
    assert lines(gap)["CLIP-LoRA"].get_ydata().tolist() == pytest.approx([0.35])
    expected = np.median([184320 / 188, 184320 / 40])
    assert lines(parameters)["CLIP-LoRA"].get_ydata().tolist() == pytest.approx([expected])
    assert set(drawing.data["method"]) == {"clip_lora", "block_lora"}


def test_spectra_are_drawn_over_layers_per_tower(results):
    drawing = spectra_figure(results)
    shown = panels(drawing)
    assert list(shown) == ["vision tower", "text tower"]
    line = lines(shown["vision tower"])["CLIP-LoRA"]
    assert line.get_xydata().tolist() == [[0, 1.5], [1, 1.9]]


@pytest.mark.parametrize("name", ["bounds", "spectra", "efficiency"])
def test_a_figure_without_rows_is_empty_but_drawn(tmp_path, results, name):
    results.path(name).write_text(results.path(name).read_text().splitlines()[0] + "\n")
    results.path("gaps").unlink()
    draw = {"bounds": bounds_figure, "spectra": spectra_figure, "efficiency": efficiency_figure}
    drawing = draw[name](results)
    write_drawing(drawing, [tmp_path / "empty.png"])
    assert Image.open(tmp_path / "empty.png").width > 1000


def test_files_are_reproducible_and_of_print_width(tmp_path):
    results = made_results(tmp_path, accuracy)
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
        write_drawing(accuracy_figure(results), [folder / "a.pdf", folder / "a.png"])
    for name in ("a.pdf", "a.png"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert Image.open(first / "a.png").width == round(WIDTH * 300)
    assert b"CreationDate" not in (first / "a.pdf").read_bytes()


def test_the_numbers_of_a_figure_are_written_beside_it(tmp_path):
    write_drawing(accuracy_figure(made_results(tmp_path, accuracy)), [tmp_path / "a.csv"])
    data = pd.read_csv(tmp_path / "a.csv").set_index(["method", "shots", "dataset"])
    assert data.loc[("clip_lora", 4, "dtd"), "mean"] == pytest.approx(60)


def test_the_caption_of_a_figure_compiles(tmp_path, results):
    drawing = bounds_figure(results)
    write_drawing(drawing, [tmp_path / "bounds.tex", tmp_path / "bounds.pdf"])
    text = (tmp_path / "bounds.tex").read_text()
    assert r"\includegraphics{bounds.pdf}" in text
    assert "A made-up study" in text
    compile_latex(tmp_path, text)


def test_an_unknown_suffix_is_refused(tmp_path):
    drawing = accuracy_figure(made_results(tmp_path, accuracy))
    with pytest.raises(UserError, match=r"a\.jpg: figures are written as"):
        write_drawing(drawing, [tmp_path / "a.jpg"])


def test_a_miniature_is_called_one_in_the_picture(tmp_path):
    results = load_results(PAPER.with_name("mini.yaml"), write_theory(tmp_path))
    drawing = spectra_figure(results)
    assert "miniature" in drawing.figure.get_suptitle()
    assert "A miniature" in drawing.caption


def test_a_study_of_the_paper_is_not_called_a_miniature(results):
    assert spectra_figure(results).figure.get_suptitle() == ""


def test_series_differ_in_marker_dashes_and_lightness():
    with style():
        series = [looks(position) for position in range(7)]
    for key in ("color", "marker", "linestyle"):
        assert len({str(look[key]) for look in series}) == 7
    # Rec. 709 luma: what a grey print keeps. Neighbours, the usual pair, stay apart.
    luma = [float(np.dot(to_rgb(look["color"]), [0.2126, 0.7152, 0.0722])) for look in series]
    assert min(abs(a - b) for a, b in pairwise(luma)) > 0.05


def test_more_methods_than_can_be_told_apart_are_refused(tmp_path):
    methods = METHODS | {f"lora_{n}": CLIP_LORA | {"alpha": n + 2} for n in range(5)}
    with pytest.raises(UserError, match="has 8 methods, a figure of curves tells 7 apart"):
        accuracy_figure(made_results(tmp_path, accuracy, methods=methods))


def test_drawing_leaves_the_users_matplotlib_settings_alone(tmp_path, caplog):
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    with caplog.at_level(logging.INFO):
        write_drawing(accuracy_figure(made_results(tmp_path, accuracy)), [tmp_path / "a.pdf"])
    assert dict(mpl.rcParams) == before
    assert not [record for record in caplog.records if record.name.startswith("fontTools")]


def test_bounds_without_a_row_of_gaps_are_drawn(results):
    header = results.path("gaps").read_text().splitlines()[0]
    results.path("gaps").write_text(header + "\n")
    assert lines(bounds_figure(results).figure.axes[1]).keys() == {"_child0"}  # the line at zero
