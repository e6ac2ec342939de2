"""Quantities of generalization bounds, compressed adapters and spectra.

Each function raises `NotTestedError` if the results do not suffice. The table of claims prints the
first line of its docstring.
"""

import pandas as pd

from blocklora.publish import formats
from blocklora.publish.evidence import Measured, measure, require
from blocklora.publish.published_accuracies import dataset_label, method_label
from blocklora.publish.results import Results


def largest_bound_ratio(results: Results) -> Measured:
    """Largest ratio of a Block-LoRA method's bound to that of LoRA of the same rank."""
    frame, study = measure(results, "bounds"), results.study
    blocks = [name for name in study.adapter_methods if study.methods[name].adapter.blocks > 1]
    chosen = require(frame[frame["method"].isin(blocks)], "needs the bound of a Block-LoRA method")
    row = chosen.loc[chosen["ratio_to_lora"].idxmax()]
    effective = float(chosen["effective_ratio_to_lora"].max())
    lowest, highest = float(chosen["bound"].min()), float(chosen["bound"].max())
    text = (
        f"{row['ratio_to_lora']:.3f} of LoRA's ({method_label(row['method'])}), "
        f"{effective:.3f} with merged arms; the bounds themselves are "
        f"{formats.span(lowest, highest)}"
    )
    numbers = {"effective_ratio": effective, "lowest_bound": lowest, "highest_bound": highest}
    return Measured(float(row["ratio_to_lora"]), text, numbers)


def smallest_bound(results: Results) -> Measured:
    """Smallest bound of the generalization gap of any run."""
    frame = measure(results, "gaps")
    row = frame.loc[frame["bound"].idxmin()]
    text = f"{formats.number(row['bound'])} at the lowest ({_run(row)}); {_vacuous(frame)}"
    return Measured(float(row["bound"]), text)


def largest_gap_over_bound(results: Results) -> Measured:
    """Largest ratio of a measured generalization gap to its bound."""
    frame = measure(results, "gaps")
    ratio = frame["gap"] / frame["bound"]
    row = frame.loc[ratio.idxmax()]
    gap = formats.signed(row["gap"], 3)
    text = f"largest share {ratio.max():.4f}: gap {gap}, bound {formats.number(row['bound'])}"
    return Measured(float(ratio.max()), f"{text} ({_run(row)})")


def smallest_compression_bound(results: Results) -> Measured:
    """Smallest bound of the test error by compressed size, as a share of the error of guessing."""
    frame = measure(results, "compression")
    share = frame["bound"] / frame["guessing_error"]
    row = frame.loc[share.idxmin()]
    bound, guessing = formats.number(row["bound"]), formats.number(row["guessing_error"])
    text = f"bound {bound}, guessing {guessing} at the lowest ({_run(row)}); {_vacuous(frame)}"
    return Measured(float(share.min()), text)


def largest_arms_difference(results: Results) -> Measured:
    """Largest relative difference between the arms of one trained matrix."""
    frame = measure(results, "spectra")
    chosen = frame.dropna(subset="arms_max_relative_difference")
    chosen = require(chosen, "needs runs of Block-LoRA with the rank partition")
    value = float(chosen["arms_max_relative_difference"].max())
    return Measured(value, f"{formats.number(value)} over {len(chosen):,} matrices")


def effective_rank_excess(results: Results) -> Measured:
    """Largest amount by which the effective rank of an update exceeds r/n."""
    frame = measure(results, "spectra")
    methods = results.study.methods
    limits = {
        name: methods[name].adapter.rank / methods[name].adapter.blocks
        for name in results.study.adapter_methods
        if methods[name].adapter.arms > 1
    }
    chosen = frame[frame["method"].isin(limits)]
    chosen = require(chosen, "needs runs of Block-LoRA with the rank partition")
    limit = chosen["method"].map(limits)
    excess = float((chosen["effective_rank"] - limit).max())
    highest = chosen["effective_rank"].max()
    text = f"effective rank {highest:.3f} at most, r/n = {formats.number(limit.max())}"
    return Measured(excess, text)


def _run(row: pd.Series) -> str:
    dataset = dataset_label(row["dataset"])
    return f"{method_label(row['method'])} on {dataset}, {formats.shots(row['shots'])}"


def _vacuous(frame: pd.DataFrame) -> str:
    return f"the bound of {int(frame['vacuous'].sum())} of {len(frame)} runs is vacuous"
