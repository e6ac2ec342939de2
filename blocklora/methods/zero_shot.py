"""Zero-shot classification: CLIP and the class prompts, with nothing learned."""

from typing import TYPE_CHECKING, Any

from blocklora.methods.base import Method, Task

if TYPE_CHECKING:
    from blocklora.engine.classifier import Classifier
    from blocklora.engine.recipe import Recipe


class ZeroShot(Method):
    """Every image gets the class whose prompt is nearest to it."""

    kind = "zero_shot"

    def classifier(
        self, learned: Any, recipe: "Recipe", task: Task, device: str, precision: str
    ) -> "Classifier":
        """See `Method.classifier`."""
        from blocklora.engine.classifier import Classifier

        prompts = task.tokenize(recipe.prompt)
        return Classifier(task.backbone, prompts, recipe.logit_scale, device, precision)
