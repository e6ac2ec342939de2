"""The catalogue of tables and figures, and the experiments that add to it."""

import sys
from types import SimpleNamespace

import pytest

from blocklora.cli import main
from blocklora.errors import UserError
from blocklora.experiments import EXPERIMENTS, chosen, entries, further_tests, items, measures
from blocklora.publish.catalogue import Item
from blocklora.study.run import Test
from blocklora.study.study import load_study
from blocklora.theory.measures import Measure
from tests.publish.samples import (
    CLIP_LORA,
    METHODS,
    PAPER,
    ROOT,
    made_results,
    write_study,
    write_theory,
)

MANY = METHODS | {"lora_r4": CLIP_LORA | {"rank": 4}}


def names(study, kind):
    return [item.name for item in items(study) if item.kind == kind]


def made(tmp_path, **changes):
    return load_study(write_study(tmp_path / "made.yaml", **changes))


def test_few_shot_tables_are_one_item_for_each_shot_count(tmp_path):
    found = [item for item in items(made(tmp_path)) if item.entry == "fewshot"]
    assert [item.name for item in found] == ["fewshot-1shot", "fewshot-4shot"]
    assert found[1].rule == "table_fewshot_4shot"
    assert found[1].arguments == "fewshot --shots 4 --published"


def test_items_depend_on_the_study(tmp_path):
    study = made(tmp_path)
    assert {"calibration", "per-class"} <= set(names(study, "table"))
    assert {"accuracy", "bounds", "confusions"} <= set(names(study, "figure"))
    assert "ablation" not in names(study, "table") + names(study, "figure")
    assert "calibration" not in names(load_study(PAPER.with_name("mini.yaml")), "table")
    many = MANY | {f"lora_{n}": CLIP_LORA | {"alpha": n + 2} for n in range(5)}
    crowded = made(tmp_path, methods=many)
    assert {"ablation"} <= set(names(crowded, "table")) & set(names(crowded, "figure"))
    assert not {"accuracy", "bounds", "spectra", "confusions"} & set(names(crowded, "figure"))


@pytest.mark.parametrize("item", entries(), ids=lambda item: f"{item.kind} {item.entry}")
def test_every_item_can_be_made_and_has_a_caption(item):
    assert callable(item.maker())
    assert (ROOT / "workflow" / "report" / f"{item.entry}.rst").is_file()
    tables = {table for measure in measures().values() for table in measure.tables}
    assert {*item.needs} <= {"runs", "predictions", *tables}


def test_names_of_items_and_rules_are_unique():
    for study in PAPER.parent.glob("*.yaml"):
        rules = [item.rule for item in items(load_study(study))]
        assert len(set(rules)) == len(rules)


def test_files_of_an_item_are_those_it_needs(tmp_path):
    study = made(tmp_path, datasets=["dtd"], seeds=[1])
    found = {(item.kind, item.name): item.files(study) for item in items(study)}
    assert found["table", "cost"] == ["runs.csv", "theory/efficiency.csv"]
    folder = "runs/ViT-B-16-quickgelu/dtd"
    assert found["table", "per-class"] == [
        f"{folder}/zero_shot/0shot/seed0/tests/dtd/test.safetensors",
        f"{folder}/clip_lora/4shot/seed1/tests/dtd/test.safetensors",
        f"{folder}/block_lora/4shot/seed1/tests/dtd/test.safetensors",
    ]


def test_commands_offer_what_is_in_the_catalogue(capsys):
    for kind in ("table", "figure"):
        assert main([kind, "--help"]) == 0
        offered = capsys.readouterr().out.partition("Values of name:")[2].split()
        assert {item.entry for item in entries() if item.kind == kind} <= set(offered)
    assert main(["table", "fewshoot", "--study", "s"]) == 1
    error = "there is no table 'fewshoot'; did you mean fewshot? (there are: fewshot, "
    assert error in capsys.readouterr().err


def test_all_tables_at_once_are_those_that_single_commands_write(tmp_path):
    results = made_results(write_theory(tmp_path), lambda run: 0.8)
    given = ["--study", str(results.study.path), "--results", str(tmp_path)]
    assert main(["publish", "tables", *given]) == 0
    alone = tmp_path / "alone.csv"
    for item in (item for item in items(results.study) if item.kind == "table"):
        assert main(["table", *item.arguments.split(), *given, "--output", str(alone)]) == 0
        written = tmp_path / "tables" / item.name
        assert written.with_suffix(".csv").read_bytes() == alone.read_bytes()
        assert all(written.with_suffix(form).exists() for form in (".md", ".tex", ".html"))
    assert len(list((tmp_path / "tables").iterdir())) == 4 * len(names(results.study, "table"))


def test_experiments_of_a_study_apply_by_themselves(tmp_path):
    study = made(tmp_path)
    assert study.experiments is None
    assert [module.name for module in chosen(study)] == ["few_shot"]
    both = chosen(made(tmp_path, methods=MANY))
    assert [module.name for module in both] == ["few_shot", "ablation"]


def test_experiments_that_a_study_names_replace_those(tmp_path):
    study = made(tmp_path, experiments=["ablation"])
    assert study.experiments == ("ablation",)
    assert "ablation" in names(study, "table")
    assert not [name for name in names(study, "table") if name.startswith("fewshot")]
    assert "accuracy" not in names(study, "figure")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            ["few_shots"],
            r'experiments\[0\]: "few_shots" is not allowed; it must be one of few_shot',
        ),
        (["few_shots"], "did you mean few_shot?"),
        (
            [],
            r"experiments: \[\] is not allowed; it must be a list of different names",
        ),
        ("few_shot", "experiments: .* is not allowed; it must be a list of different names"),
    ],
)
def test_experiments_that_do_not_exist_are_refused(tmp_path, value, message):
    with pytest.raises(UserError, match=message):
        made(tmp_path, experiments=value)


def test_a_new_experiment_is_a_module_and_a_line(tmp_path, monkeypatch):
    """Transfer, say: every run is tested on the other datasets, too, and measured."""

    def tests(study):
        return (Test(run, name) for run in study.runs() for name in study.datasets)

    transfer = SimpleNamespace(
        name="transfer",
        by_itself=lambda study: False,
        measures=(Measure("distances", "how far", "json:loads", {"distances": ("a",)}, ("runs",)),),
        tests=tests,
        items=(Item("transfer", "table", "Accuracy", ("predictions",), "json:loads", tests=tests),),
    )
    monkeypatch.setitem(EXPERIMENTS, "transfer", transfer)
    assert {"distances", "bounds"} <= measures().keys()
    study = made(tmp_path)
    assert "transfer" not in names(study, "table")
    object.__setattr__(study, "experiments", ("few_shot", "transfer"))
    assert "transfer" in names(study, "table")
    assert set(further_tests(study)) == set(tests(study))
    item = next(item for item in items(study) if item.entry == "transfer")
    assert len(item.files(study)) == 2 * len(list(study.runs()))
    assert item.maker() is sys.modules["json"].loads
