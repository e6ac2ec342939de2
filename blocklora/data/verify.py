"""Checking the images and labels of a dataset before they are used, for `verify-data`.

An error is a fault that would change or break results, so it stops the workflow. A warning does
not stop it, and some published datasets have warnings. `docs/datasets.md` explains each code.
"""

import filecmp
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from blocklora.data.decode import ordered_map
from blocklora.data.manifest import SPLITS, LabelledImage, classnames
from blocklora.data.registry import Dataset
from blocklora.data.source import Source
from blocklora.errors import UserError

EXAMPLES = 5  # shown for each finding
_EDGE = 4096  # bytes at either end of a file; different files rarely have the same ones


@dataclass(frozen=True)
class Finding:
    """A kind of problem that was found in a dataset.

    Attributes:
        level: "error" or "warning".
        code: The name of the kind in `docs/datasets.md`.
        message: A description.
        count: Number of cases; for "counts", the difference from the expected number.
        examples: The first few images or classes that have it.
    """

    level: str
    code: str
    message: str
    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """The result of checking a dataset.

    Attributes:
        source: The place of the images.
        classes: The number of classes in the manifest.
        images: The number of images in each split of the manifest.
        expected: The published numbers of "classes" and of the images in each split, or None for a
            user's own dataset.
        findings: The problems that were found.
    """

    source: Source
    classes: int
    images: dict[str, int]
    expected: dict[str, int] | None
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """True if there are no errors."""
        return all(finding.level != "error" for finding in self.findings)

    def to_json(self) -> dict:
        """Return the report as a JSON-serialisable dictionary."""
        return {"dataset": self.source.dataset, "passed": self.passed} | asdict(self)

    def text(self) -> str:
        """Return the report as readable text."""
        counts = ", ".join(f"{number} {split}" for split, number in self.images.items())
        lines = [f"{self.source.dataset}: {self.classes} classes, images: {counts}"]
        for finding in self.findings:
            lines.append(f"  {finding.level} [{finding.code}] {finding.message}")
            lines += [f"      {example}" for example in finding.examples]
            if finding.count > len(finding.examples) > 0:
                lines.append(f"      ... and {finding.count - len(finding.examples)} more")
        return "\n".join([*lines, "  passed" if self.passed else "  not passed"])


def verify(
    source: Source,
    manifest: Sequence[LabelledImage],
    listed: Iterable[LabelledImage],
    dataset: Dataset | None,
    workers: int,
) -> Report:
    """Check the manifest of a dataset and every image file in it.

    Args:
        source: The place of the images.
        manifest: The images that will be used.
        listed: The images according to the dataset's split file or folders as they are now.
        dataset: The dataset's entry in the registry, or None for a user's own dataset.
        workers: The number of threads that read files.
    """
    counts = Counter(image.split for image in manifest)
    images = {split: counts[split] for split in SPLITS}
    classes = len({image.label for image in manifest})
    expected = {"classes": dataset.classes, **dataset.images} if dataset else None
    different = [
        (ours or theirs).path for ours, theirs in zip_longest(manifest, listed) if ours != theirs
    ]
    remark = "rows that are not what the split file or the folders say; make the manifest again"
    findings = [
        *_check_counts({"classes": classes, **images}, expected),
        *_finding("error", "manifest", remark, different),
        *_check_labels(manifest, dataset.same_names if dataset else ()),
        *_check_paths(manifest),
        *_check_files(manifest, Path(source.image_root), workers),
    ]
    return Report(source, classes, images, expected, tuple(findings))


def _finding(level: str, code: str, message: str, examples: Sequence[str]) -> Iterator[Finding]:
    if examples:
        yield Finding(level, code, message, len(examples), tuple(map(repr, examples[:EXAMPLES])))


def _check_counts(found: dict[str, int], expected: dict[str, int] | None) -> Iterator[Finding]:
    for what, number in (expected or {}).items():
        if found[what] != number:
            message = f"{what}: {found[what]} instead of {number}"
            yield Finding("error", "counts", message, abs(found[what] - number), ())


def _check_labels(
    manifest: Sequence[LabelledImage], known: tuple[tuple[int, ...], ...]
) -> Iterator[Finding]:
    try:
        names = classnames(manifest)
    except UserError as error:
        yield Finding("error", "labels", str(error), 1, ())
        return
    for split, level, code in (("train", "error", "empty-class"), ("test", "warning", "untested")):
        seen = {image.label for image in manifest if image.split == split}
        absent = [name for label, name in enumerate(names) if label not in seen]
        yield from _finding(level, code, f"classes without {split} images", absent)
    groups = defaultdict(tuple)
    for label, name in enumerate(names):
        groups[name] += (label,)
    yield from _finding(
        "warning",
        "same-name",
        "class names shared by several labels, which get equal prompts and hence equal scores",
        [
            f"{name}: labels {labels}"
            for name, labels in groups.items()
            if len(labels) > 1 and labels not in known
        ],
    )


def _check_paths(manifest: Sequence[LabelledImage]) -> Iterator[Finding]:
    splits: dict[str, str] = {}
    shared, repeated = [], []
    for image in manifest:
        earlier = splits.get(image.path)
        splits[image.path] = image.split
        if earlier is not None:
            (repeated if earlier == image.split else shared).append(image.path)
    yield from _finding("error", "shared", "images in more than one split", shared)
    yield from _finding("warning", "repeated", "images listed twice in one split", repeated)


def _check_files(manifest: Sequence[LabelledImage], root: Path, workers: int) -> Iterator[Finding]:
    faults, tested, others = defaultdict(list), defaultdict(list), defaultdict(list)
    inspected = ordered_map(lambda image: _inspect(root / image.path), manifest, workers)
    bar = tqdm(inspected, total=len(manifest), unit="image", desc="verify", disable=None)
    for image, outcome in zip(manifest, bar, strict=True):
        if isinstance(outcome, str):
            faults[outcome].append(image.path)
        else:
            (tested if image.split == "test" else others)[outcome].append(image.path)
    yield from _finding("error", "missing", "image files that do not exist", faults["missing"])
    yield from _finding("error", "empty", "empty image files", faults["empty"])
    yield from _finding("error", "unreadable", "files that are not images", faults["unreadable"])
    yield from _finding(
        "warning",
        "same-content",
        "test images with exactly the same bytes as one in train or val",
        [
            f"{test} = {other}"
            for fingerprint in others
            for test in tested.get(fingerprint, ())
            for other in others[fingerprint]
            if filecmp.cmp(root / test, root / other, shallow=False)
        ],
    )


def _inspect(path: Path) -> str | bytes:
    """Return the code of the fault in an image file, or a fingerprint of the file if it has none.

    The fingerprint covers the size and both ends of the file. Of the image only the header is
    parsed, because `decode-images` decodes the pixels.
    """
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, 2)
            if not size:
                return "empty"
            stream.seek(max(0, size - _EDGE))
            tail = stream.read()
            stream.seek(0)
            head = stream.read(_EDGE)
            stream.seek(0)
            with Image.open(stream):
                pass
    except (FileNotFoundError, NotADirectoryError):
        return "missing"
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return "unreadable"
    return hashlib.blake2b(b"%d\0%b%b" % (size, head, tail), digest_size=8).digest()
