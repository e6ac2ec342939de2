"""Memory and time of every kind of run of a study, before anything is run.

A kind is a backbone, a dataset and a method. Memory and chunks are the planner's, operations those
of the closed formula; time is operations divided by a rate that was measured.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from blocklora.adapters.config import AdapterConfig
from blocklora.backbones.config import ClipConfig
from blocklora.data.registry import load_registry
from blocklora.engine.fast import Chunks, chunk_sizes
from blocklora.engine.packing import pack
from blocklora.engine.plan import MIB, Plan, Setting, plan
from blocklora.performance.text import markdown
from blocklora.study.model import Study
from blocklora.theory.flops import step_flops

Prompts = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Forecast:
    """What one kind of run needs.

    Attributes:
        classes: of the dataset.
        prompt_tokens: of all different prompts.
        plan: chunks and the peak of a step in bytes.
        flops_per_step: of a full batch.
        training_flops: of all its runs, by shots.
        test_flops: of testing once; None where the number of test images is not known.
        runs: number of seeds.
    """

    backbone: str
    dataset: str
    method: str
    classes: int
    prompt_tokens: int
    plan: Plan
    flops_per_step: int
    training_flops: Mapping[int, int]
    test_flops: int | None
    runs: int

    @property
    def total_flops(self) -> int:
        """Operations of all runs of this kind, testing included where it is known."""
        tests = len(self.training_flops) * self.runs
        return sum(self.training_flops.values()) + tests * (self.test_flops or 0)


def forecasts(
    study: Study,
    shapes: Mapping[str, ClipConfig],
    prompts: Mapping[str, Mapping[str, Prompts]],
    precision: str,
    budget_bytes: int,
) -> Iterator[Forecast]:
    """Yield the forecast of every kind of run with an adapter, in the study's order.

    Args:
        study: the study.
        shapes: of its backbones.
        prompts: one per class, as token ids, by template and dataset.
        precision: one of `PRECISIONS`.
        budget_bytes: memory that tensors may take.

    Raises:
        UserError: a kind of run cannot fit.
    """
    registry = load_registry()
    for backbone, clip in shapes.items():
        for dataset in study.datasets:
            entry = registry.get(dataset)
            for method in study.adapter_methods:
                config, recipe = study.methods[method].adapter, study.methods[method].recipe
                tokens = tuple(map(tuple, prompts[recipe.prompt][dataset]))
                setting = Setting(clip, config, tokens, recipe.batch_size, precision)
                chosen = plan(setting, budget_bytes)
                steps = {shots: recipe.iterations_per_shot * shots for shots in study.shots}
                yield Forecast(
                    backbone=backbone,
                    dataset=dataset,
                    method=method,
                    classes=len(tokens),
                    prompt_tokens=sum(map(len, set(tokens))),
                    plan=chosen,
                    flops_per_step=planned_flops(setting, chosen.chunks),
                    training_flops={
                        shots: count * len(study.seeds) * mean_flops(setting, chosen.chunks, shots)
                        for shots, count in steps.items()
                    },
                    test_flops=entry and entry.images["test"] * forward_flops(clip, config),
                    runs=len(study.seeds),
                )


def planned_flops(setting: Setting, chunks: Chunks) -> int:
    """Return the operations of one training step with these chunks, what is run again included."""
    groups = pack(setting.prompts)[0][0].groups
    again = [chunk.groups for chunk in pack(setting.prompts, chunks.tokens)[0][:-1]]
    sizes = chunk_sizes(setting.batch_size, chunks.images)
    tokens = (setting.clip.image_size // setting.clip.patch_size) ** 2 + 1
    recomputed = {
        "text": [group for part in again for group in part],
        "vision": [(sum(sizes[:-1]), tokens)],
    }
    return step_flops(
        setting.clip,
        setting.adapter,
        setting.batch_size,
        len(setting.prompts),
        groups,
        recomputed,
    ).total


def mean_flops(setting: Setting, chunks: Chunks, shots: int) -> int:
    """Return the mean operations of a step over an epoch, whose last batch may be smaller."""
    images = shots * len(setting.prompts)
    sizes = [len(range(start, images)[: setting.batch_size]) for start in _starts(setting, images)]
    costs = {size: planned_flops(replace(setting, batch_size=size), chunks) for size in set(sizes)}
    return sum(costs[size] for size in sizes) // len(sizes)


def _starts(setting: Setting, images: int) -> range:
    return range(0, images, setting.batch_size)


def forward_flops(clip: ClipConfig, config: AdapterConfig) -> int:
    """Return the operations of testing one image on merged weights, the logits left out."""
    frozen = replace(config, towers=("text",))
    return step_flops(clip, frozen, 1, 0, ()).vision.forward


def document(
    study: Study, kinds: Sequence[Forecast], precision: str, budget_bytes: int, rate: float | None
) -> dict[str, object]:
    """Return the forecasts as JSON values; `rate` is in operations per second."""

    def seconds(flops: int) -> float | None:
        return None if rate is None else flops / rate

    return {
        "schema": 1,
        "study": study.name,
        "precision": precision,
        "usable_bytes": budget_bytes,
        "rate_flops": rate,
        "kinds": [
            {
                "backbone": kind.backbone,
                "dataset": kind.dataset,
                "method": kind.method,
                "classes": kind.classes,
                "prompt_tokens": kind.prompt_tokens,
                "batch_size": study.methods[kind.method].recipe.batch_size,
                "chunks": vars(kind.plan.chunks),
                "planned_memory_bytes": kind.plan.peak_bytes,
                "flops_per_step": kind.flops_per_step,
                "step_seconds": seconds(kind.flops_per_step),
                "test_seconds": kind.test_flops and seconds(kind.test_flops),
                "runs": [
                    {
                        "shots": shots,
                        "seeds": kind.runs,
                        "training_flops": flops,
                        "training_seconds": seconds(flops),
                    }
                    for shots, flops in kind.training_flops.items()
                ],
            }
            for kind in kinds
        ],
        "total_flops": sum(kind.total_flops for kind in kinds),
        "total_seconds": seconds(sum(kind.total_flops for kind in kinds)),
    }


def table(kinds: Sequence[Forecast], rate: float | None) -> str:
    """Return one line for each kind, and the total, as a Markdown table."""
    rows = [
        ("kind of run", "classes", "prompt tokens", "chunks", "MiB", "TFLOP/step", "s/step", "h")
    ]
    for kind in kinds:
        rows.append(
            (
                f"{kind.backbone}/{kind.dataset}/{kind.method}",
                str(kind.classes),
                str(kind.prompt_tokens),
                chunks_text(kind.plan.chunks),
                f"{kind.plan.peak_bytes / MIB:.0f}",
                f"{kind.flops_per_step / 1e12:.3f}",
                "" if rate is None else f"{kind.flops_per_step / rate:.3f}",
                "" if rate is None else f"{kind.total_flops / rate / 3600:.2f}",
            )
        )
    total = sum(kind.total_flops for kind in kinds)
    hours = "" if rate is None else f"{total / rate / 3600:.2f}"
    rows.append(
        (f"all {sum(len(k.training_flops) * k.runs for k in kinds)} runs", *[""] * 6, hours)
    )
    return markdown(rows, left=(0, 3))


def chunks_text(chunks: Chunks) -> str:
    """Return the sizes of chunks in words."""
    parts = [f"{size} {what}" for what, size in vars(chunks).items() if size is not None]
    return ", ".join(parts) or "none"
