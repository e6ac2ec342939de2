"""Kinds of experiments, each a module in this folder that is listed in `EXPERIMENTS`.

The module of an experiment has

- `name`, the name that study files ask for it by;
- `by_itself(study)`, which returns whether a study has it that names no experiments;
- `items`, the tables and figures that it adds to the catalogue;
- `tests(study)`, if it needs other tests than those of every run on its own dataset;
- `measures`, if it computes CSV files besides those of `blocklora/theory/`.
"""

from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType

from blocklora.experiments import ablation, few_shot
from blocklora.publish.catalogue import ITEMS, Item
from blocklora.study.run import Test
from blocklora.study.study import Study
from blocklora.theory.measures import MEASURES, Measure

EXPERIMENTS: dict[str, ModuleType] = {module.name: module for module in (few_shot, ablation)}


def chosen(study: Study) -> list[ModuleType]:
    """Return the experiments that a study names, or those that apply if it names none."""
    if study.experiments is None:
        return [module for module in EXPERIMENTS.values() if module.by_itself(study)]
    return [EXPERIMENTS[name] for name in study.experiments]


def further_tests(study: Study) -> Iterator[Test]:
    """Yield every test that an experiment of the study needs besides `Run.own_tests`, once."""
    modules = [module for module in chosen(study) if hasattr(module, "tests")]
    yield from dict.fromkeys(test for module in modules for test in module.tests(study))


def measures() -> dict[str, Measure]:
    """Return the measures of the theory and of all experiments, by name."""
    added = [getattr(module, "measures", ()) for module in EXPERIMENTS.values()]
    return {**MEASURES, **{measure.name: measure for found in added for measure in found}}


def entries() -> list[Item]:
    """Return the whole catalogue: the items of all experiments, then the others."""
    return [*(item for module in EXPERIMENTS.values() for item in module.items), *ITEMS]


def items(study: Study) -> list[Item]:
    """Return the tables and figures of a study; tables by shot count are one item for each."""
    found = [*(item for module in chosen(study) for item in module.items), *ITEMS]
    return [each for item in found if item.when(study) for each in _by_shots(item, study)]


def _by_shots(item: Item, study: Study) -> list[Item]:
    if "shots" not in item.options:
        return [item]
    return [replace(item, shots=shots) for shots in study.shots]
