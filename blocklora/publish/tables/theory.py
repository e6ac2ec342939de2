"""Tables of the theory: generalization bounds, compressed adapters, spectra and overlaps."""

from functools import partial

from blocklora.publish import formats
from blocklora.publish.description import Description
from blocklora.publish.published_accuracies import method_label, names
from blocklora.publish.render import Table
from blocklora.publish.results import Results
from blocklora.study.study import Study

GROUP = ("backbone", "method", "shots")
BOUNDS = Description(
    name="bounds",
    caption="Bound of the generalization gap, sqrt(2 q σ² ln 2 · P / N) (Zhu et al. 2024, "
    "arXiv 2402.16842, Lemma 4.5), lowest to highest over datasets, and the measured gap "
    "(training minus test accuracy, mean over runs). Bounds are derived, gaps measured. "
    "No gap exceeds 1, so a bound of 1 or more is vacuous: it says nothing.",
    keys=GROUP,
    aggregate={
        "parameters": ("parameters", "first"),
        "effective_parameters": ("effective_parameters", "first"),
        "bound_low": ("bound", "min"),
        "bound_high": ("bound", "max"),
        "effective_low": ("effective_bound", "min"),
        "effective_high": ("effective_bound", "max"),
        "ratio_to_lora": ("ratio_to_lora", "first"),
        "effective_ratio_to_lora": ("effective_ratio_to_lora", "first"),
    },
    columns=[
        ("method", "label", str),
        ("shots", "shots", str),
        ("parameters P", "parameters", formats.count),
        ("effective P", "effective_parameters", formats.count),
        ("bound", "bound_low bound_high", formats.span),
        ("effective bound", "effective_low effective_high", formats.span),
        ("ratio to LoRA", "ratio_to_lora", formats.number),
        ("effective ratio", "effective_ratio_to_lora", formats.number),
        ("measured gap", "gap", lambda gap: formats.signed(gap, 3)),
        ("vacuous runs", "vacuous runs", formats.ratio),
    ],
    notes=[
        "Effective: with the arms of the rank partition merged into one, which changes no "
        "output. Rows without a measured gap are variants that the theory compares: A or B "
        "trained alone, and the other way to cut an adapter into blocks."
    ],
)
MEASURED_GAPS = {
    "gap": ("gap", "mean"),
    "gap_low": ("gap", "min"),
    "gap_high": ("gap", "max"),
    "vacuous": ("vacuous", "sum"),
    "runs": ("gap", "size"),
}
COMPRESSION = Description(
    name="compression",
    caption="Guarantees of trained adapters by their compressed size: bits per weight and size "
    "(means over runs), training error of the compressed adapter in percent, and the "
    "bound of the test error that follows (lowest to highest run), a fraction. Sizes and "
    "errors are measured, bounds derived. A bound is vacuous if it is not below the error "
    "of guessing, 1 − 1/classes: it says nothing.",
    keys=GROUP,
    aggregate={
        "bits_per_weight": ("bits_per_weight", "mean"),
        "compressed_bits": ("compressed_bits", "mean"),
        "train_error": ("train_error", "mean"),
        "guessing_low": ("guessing_error", "min"),
        "guessing_high": ("guessing_error", "max"),
        "bound_low": ("bound", "min"),
        "bound_high": ("bound", "max"),
        "vacuous": ("vacuous", "sum"),
        "runs": ("bound", "size"),
    },
    columns=[
        ("method", "method", method_label),
        ("shots", "shots", str),
        ("bits per weight", "bits_per_weight", formats.number),
        ("compressed size", "compressed_bits", lambda bits: formats.size(bits / 8)),
        ("training error", "train_error", lambda error: formats.percent(100 * error)),
        ("error of guessing", "guessing_low guessing_high", formats.span),
        ("bound of test error", "bound_low bound_high", formats.span),
        ("vacuous runs", "vacuous runs", formats.ratio),
    ],
)
SPECTRA = Description(
    name="spectra",
    caption="Spectra of the trained updates s·ΔW, over matrices and runs: effective rank (the "
    "exponential of the spectrum's entropy), norms, and the largest relative difference "
    "between the arms of one matrix (0: the arms are copies of each other). Measured.",
    keys=("backbone", "method", "tower", "shots"),
    aggregate={
        "effective_rank": ("effective_rank", "mean"),
        "effective_rank_low": ("effective_rank", "min"),
        "effective_rank_high": ("effective_rank", "max"),
        "frobenius_norm": ("frobenius_norm", "mean"),
        "spectral_norm": ("spectral_norm", "mean"),
        "arms_max_relative_difference": ("arms_max_relative_difference", "max"),
        "matrices": ("matrix", "size"),
    },
    columns=[
        ("method", "method", method_label),
        ("tower", "tower", str),
        ("shots", "shots", str),
        ("effective rank", "effective_rank", formats.number),
        ("lowest to highest", "effective_rank_low effective_rank_high", formats.span),
        ("Frobenius norm", "frobenius_norm", formats.number),
        ("spectral norm", "spectral_norm", formats.number),
        ("arms' difference", "arms_max_relative_difference", formats.number),
    ],
    text_columns=2,
)
OVERLAPS = Description(
    name="overlaps",
    caption="Overlap of the subspaces that Block-LoRA and LoRA train from the same images and "
    "seed (Hu et al. 2022, arXiv 2106.09685, section 7.2, equation 4): 1 if one contains "
    "the other, 0 if they are orthogonal; means over matrices and runs, measured. Chance "
    "is the overlap of random subspaces of these dimensions, derived.",
    keys=("backbone", "method", "other_method", "tower", "shots"),
    aggregate={
        "output_overlap": ("output_overlap", "mean"),
        "input_overlap": ("input_overlap", "mean"),
        "chance": ("chance", "mean"),
        "matrices": ("chance", "size"),
    },
    columns=[
        (
            "methods",
            "method other_method",
            lambda method, other: f"{method_label(method)} and {method_label(other)}",
        ),
        ("tower", "tower", str),
        ("shots", "shots", str),
        ("output side", "output_overlap", formats.number),
        ("input side", "input_overlap", formats.number),
        ("chance", "chance", formats.number),
    ],
    notes=[
        "Output side: directions in which the update moves a layer's output, on the side of "
        "B. Input side: directions of the input that it reacts to, on the side of A."
    ],
    text_columns=2,
)


def bounds_table(results: Results) -> Table:
    """Return the table of bounds, with the measured gaps if their file exists."""
    frame = BOUNDS.summary(results.theory("bounds")).set_index(list(GROUP))
    if results.has("gaps"):
        measured = results.theory("gaps").groupby(list(GROUP), sort=False).agg(**MEASURED_GAPS)
        frame = frame.join(measured)
    else:
        frame[list(MEASURED_GAPS)] = float("nan")
    frame = frame.reset_index()
    label = frame["method"].map(lambda method: _variant_label(method, results.study))
    return BOUNDS.table(results.study, frame, shown=frame.assign(label=label))


def _variant_label(method: str, study: Study) -> str:
    """Return the printed name of a method of `bounds.csv`, which may be an untrained variant."""
    for ending, words in names()["variants"].items():
        if method not in study.methods and method.endswith(ending):
            return method_label(method.removesuffix(ending)) + words
    return method_label(method)


def _summary_table(description: Description, results: Results) -> Table:
    """Return the table of a measure with a row for each group of the description."""
    return description.table(results.study, description.summary(results.theory(description.name)))


compression_table = partial(_summary_table, COMPRESSION)
spectra_table = partial(_summary_table, SPECTRA)
overlaps_table = partial(_summary_table, OVERLAPS)
