"""Kinds of experiments: which tests they ask for, what they measure, and what is published of it.

An experiment is a module of this folder and a line here. The module has

- `name`, by which study files ask for it;
- `by_itself(study)`, which tells whether a study that names no experiments has it;
- `tests(study)`, the tests it asks for beyond those of every run on its own dataset;
- `measures`, the CSV files that it computes beyond those of `blocklora/theory/`;
- `items`, the tables and figures it adds to the catalogue.
"""

from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType

from blocklora.experiments import ablation, few_shot
from blocklora.publish.catalogue import ITEMS, Item
from blocklora.study.model import Study
from blocklora.study.run import Test
from blocklora.theory.measures import MEASURES, Measure

EXPERIMENTS: dict[str, ModuleType] = {module.name: module for module in (few_shot, ablation)}


def chosen(study: Study) -> list[ModuleType]:
    """Return the experiments that a study names, or those it has by itself if it names none."""
    if study.experiments is None:
        return [module for module in EXPERIMENTS.values() if module.by_itself(study)]
    return [EXPERIMENTS[name] for name in study.experiments]


def further_tests(study: Study) -> Iterator[Test]:
    """Yield each test once that the study's experiments ask for beyond `Run.own_tests`."""
    yield from dict.fromkeys(test for module in chosen(study) for test in module.tests(study))


def measures() -> dict[str, Measure]:
    """Return every measure by its name: those of the theory, and those of experiments."""
    return {**MEASURES, **{m.name: m for module in EXPERIMENTS.values() for m in module.measures}}


def entries() -> list[Item]:
    """Return the whole catalogue of tables and figures."""
    return [*(item for module in EXPERIMENTS.values() for item in module.items), *ITEMS]


def items(study: Study) -> list[Item]:
    """Return the tables and figures of a study; an entry by shots is one for each shot count."""
    found = [*(item for module in chosen(study) for item in module.items), *ITEMS]
    return [each for item in found if item.when(study) for each in _by_shots(item, study)]


def _by_shots(item: Item, study: Study) -> list[Item]:
    if "shots" not in item.options:
        return [item]
    return [replace(item, shots=shots) for shots in study.shots]
