"""The job graphs of the studies of rank and blocks."""

from pathlib import Path

from blocklora.experiments import items
from blocklora.study.study import load_study

ROOT = Path(__file__).parents[2]


def rules(name):
    """Return the names of the rules of a study's tables and figures."""
    return {item.rule for item in items(load_study(ROOT / f"studies/{name}.yaml"))}


def test_the_ablation_is_listed_with_its_table_and_its_figure(prepare, tmp_path):
    methods = 13 + 3 + 9  # by rank, by input, merged
    jobs = prepare(tmp_path / "workflow").jobs("--config", "study=ablation", "job_hours=0.01")
    assert jobs["fit_run_adapter"] == 11 * methods * 3
    published = rules("ablation")
    assert {"table_ablation", "figure_ablation", "table_calibration"} <= published
    assert not {"figure_accuracy", "figure_bounds", "figure_spectra"} & published


def test_the_miniature_ablation_fetches_nothing(prepare, tmp_path):
    jobs = prepare(tmp_path / "workflow").jobs("--config", "study=ablation-mini")
    assert jobs["fit_dataset"] == 2
    assert jobs["pretrain_backbone"] == jobs["tables"] == jobs["figures"] == 1
    assert "fetch_backbone" not in jobs
    assert "table_calibration" not in rules("ablation-mini")
