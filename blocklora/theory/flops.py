"""Closed formulas for the floating-point operations of a training step.

As in `torch.utils.flop_counter`, all matrix products of the fast engine
(`blocklora.engine.towers`) are counted, a multiply-add counts as two operations, and attention
counts over whole sequences even if it is causal. With the width w, the number T of tokens in a
batch, the number S of sequences and P = Σ length² over the sequences, the frozen products of a
block cost

    forward    24 T w² + 4 P w     (q, k, v: 6, output: 2, MLP of four times the width: 16)
    backward   24 T w² + 10 P w    (only gradients of inputs, because the weights are frozen;
                                    attention computes its scores again)

The last block needs the queries of only S pooled tokens and costs 4 T w² + 20 S w² + 4 T w forward.
A low-rank path over t inputs costs 4 t r' w forward and up to 8 t r' w backward, where the inner
width r' is r/n for the rank partition and r otherwise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from blocklora.adapters.config import AdapterConfig
from blocklora.backbones.shape import ClipConfig, TowerConfig

Groups = Sequence[tuple[int, int]]
"""(sequences, length) for each length: the number of sequences and their length in tokens."""


@dataclass(frozen=True)
class Flops:
    """Operations of the forward and the backward pass."""

    forward: int = 0
    backward: int = 0

    @property
    def total(self) -> int:
        """Operations of both passes."""
        return self.forward + self.backward

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(self.forward + other.forward, self.backward + other.backward)


@dataclass(frozen=True)
class StepFlops:
    """Operations of a training step.

    Attributes:
        vision: The products of the vision tower with frozen weights, and its attention.
        text: The same for the text tower.
        adapter: The low-rank paths of both towers.
        logits: The products of image features and text features.
    """

    vision: Flops
    text: Flops
    adapter: Flops
    logits: Flops

    @property
    def total(self) -> int:
        """Operations of the whole step."""
        return (self.vision + self.text + self.adapter + self.logits).total


def step_flops(
    clip: ClipConfig,
    adapter: AdapterConfig,
    images: int,
    classes: int,
    prompts: Groups,
    recomputed: Mapping[str, Groups] | None = None,
) -> StepFlops:
    """Return the operations of a training step.

    A text tower without an adapter costs nothing because its features are computed only once. A
    vision tower without an adapter runs forward, because the images are augmented in every step.

    Args:
        clip: Shape of the model.
        adapter: The adapter that is trained.
        images: Batch size.
        classes: Number of classes.
        prompts: (prompts, tokens) of the distinct class prompts of each length.
        recomputed: (sequences, length) of the sequences that each tower encodes again in the
            backward pass because it runs in chunks; None if there are no chunks.

    Raises:
        UserError: The adapter does not fit the model.
    """
    tokens = clip.vision_tokens
    patches = 2 * (tokens - 1) * 3 * clip.patch_size**2 * clip.vision.width
    embedding = {"vision": patches, "text": 0}
    sequences = {"vision": [(images, tokens)], "text": prompts}
    towers, thin = {"vision": Flops(), "text": Flops()}, Flops()
    for name in {"vision", *adapter.towers}:
        tower, trained = getattr(clip, name), name in adapter.towers
        again = (recomputed or {}).get(name, ()) if trained else ()
        count, repeated = (sum(n for n, _ in groups) for groups in (sequences[name], again))
        frozen, path = tower_flops(tower, adapter, name, sequences[name])
        more, more_path = tower_flops(tower, adapter, name, again)
        projection = 2 * count * tower.width * clip.embed_dim
        towers[name] = frozen + Flops(
            count * embedding[name] + projection,
            repeated * embedding[name] + more.forward + (projection if trained else 0),
        )
        thin += path + Flops(0, more_path.forward)
    product = 2 * images * classes * clip.embed_dim
    logits = Flops(product, product * len(adapter.towers))
    return StepFlops(towers["vision"], towers["text"], thin, logits)


def tower_flops(
    tower: TowerConfig, adapter: AdapterConfig, name: str, groups: Groups
) -> tuple[Flops, Flops]:
    """Return the operations of a tower's blocks for frozen products and for low-rank paths.

    `name` is "vision" or "text", and `groups` has (sequences, length) for each length.

    Raises:
        UserError: The adapter does not fit the tower.
    """
    first = last = tower.layers  # without an adapter, no block has a gradient
    if name in adapter.towers:
        first, last = adapter.adapted_layers(tower.layers, name)
    frozen, thin = Flops(), Flops()
    for layer in range(tower.layers):
        pooled = layer == tower.layers - 1
        matrices = adapter.matrices if first <= layer <= last else ()
        block, path = _block(tower.width, groups, pooled, adapter, matrices, layer - first)
        frozen, thin = frozen + block, thin + path
    return frozen, thin


def _block(
    width: int,
    groups: Groups,
    pooled: bool,
    adapter: AdapterConfig,
    matrices: Sequence[str],
    depth: int,
) -> tuple[Flops, Flops]:
    """Return the operations of a block for frozen products and for low-rank paths.

    The block is `depth` blocks above the first adapted one, and `pooled` is True for the last block
    of the tower, which computes only the output of pooled tokens.
    """
    tokens = sum(count * length for count, length in groups)
    queries = sum(count for count, _ in groups) if pooled else tokens
    pairs = sum(count * length * (1 if pooled else length) for count, length in groups)
    inputs = 2 * width**2 * (queries + 2 * tokens)  # q, k and v
    attention = 4 * width * pairs
    output = 2 * width**2 * queries
    mlp = 16 * width**2 * queries
    # In the first adapted block, gradients do not go any deeper than the low-rank paths.
    below = depth > 0
    through_attention = below or any(matrix != "o" for matrix in matrices)
    backward = inputs if below else 0
    if through_attention:
        backward += attention * 5 // 2 + output
    if depth >= 0:
        backward += mlp
    (inner, _), _ = adapter.factor_shapes(width, width)
    path = Flops()
    for matrix in matrices:
        product = 2 * (queries if matrix in "qo" else tokens) * inner * width
        into_input = below or (matrix == "o" and through_attention)
        path += Flops(2 * product, (4 if into_input else 3) * product)
    return Flops(inputs + attention + output + mlp, backward), path
