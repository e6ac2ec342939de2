"""The job graphs of the studies of rank and blocks."""


def test_the_ablation_is_listed_with_its_table_and_its_figure(prepare, tmp_path):
    jobs = prepare(tmp_path / "workflow").jobs("--config", "study=ablation", "seeds_per_job=3")
    methods = 13 + 3 + 9  # by rank, by input, merged
    assert jobs["fit_adapter_seeds_1_2_3"] == 11 * methods
    assert jobs["table_ablation"] == jobs["figure_ablation"] == jobs["table_calibration"] == 1
    assert not {"figure_accuracy", "figure_bounds", "figure_spectra"} & jobs.keys()


def test_the_miniature_ablation_fetches_nothing(prepare, tmp_path):
    jobs = prepare(tmp_path / "workflow").jobs("--config", "study=ablation-mini")
    assert jobs["fit_adapter_seeds_1_2"] == 2 * (9 + 6)
    assert jobs["pretrain_backbone"] == jobs["table_ablation"] == jobs["figure_ablation"] == 1
    assert not {"fetch_backbone", "table_calibration"} & jobs.keys()
