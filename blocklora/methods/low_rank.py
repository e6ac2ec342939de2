"""LoRA and Block-LoRA: low-rank updates of CLIP's attention layers, trained on the shots."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blocklora.adapters.config import AdapterConfig
from blocklora.methods.base import Compute, Fit, FittedMethod, Shots, Task

if TYPE_CHECKING:
    from blocklora.adapters.adapter import Adapter
    from blocklora.backbones.model import Backbone
    from blocklora.engine.classifier import Classifier
    from blocklora.engine.fast import Engine
    from blocklora.engine.loop import History, Keeper
    from blocklora.engine.plan import Plan
    from blocklora.engine.recipe import Recipe

ADAPTER_FILE = "adapter.safetensors"


@dataclass(frozen=True)
class Kept:
    """The engine of a fit, which the next fit with the same setting can use again.

    Its weights, prompts and recorded steps stay in place; only the adapter is initialised anew.

    Attributes:
        made_for: The setting, logit scale and `Compute`, which must be those of the next fit.
        plan: The memory plan of the engine, if there is one.
        engine: The engine.
        peak_bytes: The largest peak memory on a GPU of the fits with this engine; 0 on a CPU.
    """

    made_for: Any
    plan: "Plan | None"
    engine: "Engine"
    peak_bytes: int


class LowRankAdapter(FittedMethod):
    """An adapter of `blocklora/adapters/`, trained with AdamW and cross-entropy."""

    kind = "adapter"
    config = AdapterConfig
    low_rank = True
    engines = True
    files = (ADAPTER_FILE,)

    def fit(
        self,
        config: AdapterConfig,
        recipe: "Recipe",
        task: Task,
        shots: Shots,
        compute: Compute,
        keeper: "Keeper",
    ) -> Fit:
        """See `FittedMethod.fit`."""
        import torch

        from blocklora.adapters.adapter import Adapter
        from blocklora.engine.batches import Batches
        from blocklora.engine.engines import load_engine
        from blocklora.engine.fast import Chunks, restart
        from blocklora.engine.loop import train
        from blocklora.engine.needs import Setting
        from blocklora.engine.plan import train_within_memory
        from blocklora.engine.randomness import torch_generator

        shape, engine_class = task.backbone.config, load_engine(compute.engine)
        prompts = task.tokenize(recipe.prompt)
        steps = recipe.iterations_per_shot * shots.per_class
        labels = torch.from_numpy(shots.labels)
        on_gpu = compute.device == "cuda"
        batches = Batches(
            shots.images, labels, recipe, shape.image_size, shots.seed, compute.workers, on_gpu
        )
        # On a GPU all batches of a run have one size, for which its steps are recorded and planned.
        batch_size = min(recipe.batch_size, len(shots.images)) if on_gpu else recipe.batch_size
        setting = Setting(shape, config, tuple(map(tuple, prompts)), batch_size, compute.precision)
        made_for = setting, recipe.logit_scale, compute
        kept = task.kept.pop(self.kind, None)
        if kept is not None and kept.made_for != made_for:
            kept = None
        known, peak = (None, 0) if kept is None else (kept.plan, kept.peak_bytes)

        def attempt(chunks: Chunks) -> "tuple[Engine, History]":
            nonlocal kept
            adapter = Adapter.initialise(
                config,
                shape.tower_shapes,
                torch_generator(shots.seed, "initialisation"),
                compute.device,
            )
            engine, kept = kept and kept.engine, None
            if engine is not None:
                restart(engine, adapter, shots.seed)
            else:
                engine = engine_class(
                    task.backbone,
                    adapter,
                    prompts,
                    logit_scale=recipe.logit_scale,
                    seed=shots.seed,
                    device=compute.device,
                    precision=compute.precision,
                    chunks=chunks,
                )
            return engine, train(engine, batches, recipe, steps, keeper)

        plan = None
        if engine_class.chunked:
            (engine, history), plan = train_within_memory(setting, compute.device, attempt, known)
        else:
            engine, history = attempt(Chunks())
        measured = {}
        if on_gpu:
            # PyTorch counts the memory of a recorded step only while it is recorded, which the fit
            # that made the engine did.
            peak = max(peak, torch.cuda.max_memory_allocated())
            measured["peak_memory_bytes"] = peak
        # A test gives the engine up if its memory is needed. On a CPU, a plan means that memory ran
        # out, and the next fit has to start as it would on its own.
        if plan is None or on_gpu:
            task.kept[self.kind] = Kept(made_for, plan, engine, peak)
        adapter = engine.adapter
        facts = {
            "trainable_parameters": adapter.trainable_parameters,
            "adapted_matrices": adapter.adapted_matrices,
            "iterations": steps,
            "recorded_steps": engine.recorded,
            "planned_memory_bytes": None if plan is None else plan.peak_bytes,
            **measured,
        }
        return Fit(adapter, history, facts)

    def classifier(
        self, learned: "Adapter", recipe: "Recipe", task: Task, device: str, precision: str
    ) -> "Classifier":
        """See `Method.classifier`; the adapter is merged into the weights."""
        from blocklora.adapters.merge import merge
        from blocklora.engine.classifier import Classifier

        merged = replace(task.backbone, weights=merge(task.backbone.weights, learned))
        prompts = task.tokenize(recipe.prompt)
        options = recipe.logit_scale, device, precision, task.kept.clear
        return Classifier(merged, prompts, *options)

    def save(self, fit: Fit, folder: Path, backbone: "Backbone", facts: Mapping[str, Any]) -> None:
        """See `FittedMethod.save`."""
        from blocklora.adapters.store import save_adapter

        name = backbone.config.name
        save_adapter(folder / ADAPTER_FILE, fit.learned, name, backbone.sha256, **facts)

    def load(self, folder: Path, backbone: "Backbone", config: AdapterConfig) -> "Adapter":
        """See `FittedMethod.load`."""
        from blocklora.adapters.store import load_adapter

        return load_adapter(folder / ADAPTER_FILE, backbone.sha256, config)
