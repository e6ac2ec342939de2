"""Zero-shot classification with CLIP and the class prompts, without any training."""

from typing import TYPE_CHECKING, Any

from blocklora.methods.base import Method, Task

if TYPE_CHECKING:
    from blocklora.engine.classifier import Classifier
    from blocklora.engine.recipe import Recipe


class ZeroShot(Method):
    """Zero-shot CLIP, which assigns each image to the class with the most similar prompt."""

    kind = "zero_shot"

    def classifier(
        self, learned: Any, recipe: "Recipe", task: Task, device: str, precision: str
    ) -> "Classifier":
        """See `Method.classifier`."""
        from blocklora.engine.classifier import Classifier

        prompts = task.tokenize(recipe.prompt)
        options = recipe.logit_scale, device, precision, task.kept.clear
        return Classifier(task.backbone, prompts, *options)
