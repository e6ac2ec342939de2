"""Commands that lead from the source of a dataset to decoded pixels."""

import sys
from itertools import product
from pathlib import Path
from typing import Annotated, Literal

from typer import Option

from blocklora.commands import options
from blocklora.commands.options import CACHE, CacheRoot, Key, Output, Source, Study
from blocklora.errors import UserError


def fetch_dataset(
    study: Study,
    dataset: options.Dataset,
    data_root: options.RequiredPath,
    output: Output,
    offline: options.Offline = False,
) -> None:
    """Find, download or draw the images of a dataset.

    A CoOp or CLIP-LoRA tree below --data-root is used as it is. Otherwise the archives are taken
    from the folder `archives` there or downloaded, and then verified and unpacked. The output is a
    source.json that says where the images are.

    Args:
        data_root: Folder that has all datasets.

    Example: blocklora fetch-dataset --study paper --dataset eurosat
        --data-root data --output source.json
    """
    from blocklora.data import fetch
    from blocklora.data.download import Downloader
    from blocklora.data.registry import load_registry
    from blocklora.data.source import write_source

    chosen, registry = options.open_study(study), load_registry()
    options.check_name("dataset", dataset, [*chosen.own_datasets, *registry])
    if dataset in chosen.own_datasets:
        own = chosen.own_datasets[dataset]
        source = fetch.use_own(dataset, Path(own.images), Path(own.csv) if own.csv else None)
    elif registry[dataset].layout == "drawn":
        from blocklora.miniature.datasets import draw_once

        source = draw_once(dataset, data_root, chosen.miniature)
    else:
        downloader = None if offline else Downloader()
        source = fetch.fetch_published(registry[dataset], data_root, downloader)
    write_source(output, source)


def make_manifest(
    source: Source, output: Output, cache: CacheRoot = CACHE, key: Key = None
) -> None:
    """List every image with its label, class name and split.

    Labels, class names and splits come from the dataset's split file, its official lists or its
    folders.

    Example: blocklora make-manifest --source source.json --output manifest.csv
    """
    from blocklora.data.layouts import list_images
    from blocklora.data.manifest import write_manifest
    from blocklora.data.registry import load_registry
    from blocklora.data.source import read_source

    found = read_source(source)

    def write(path: Path) -> None:
        write_manifest(path, list_images(found, load_registry()))

    about = f"list of the images of {found.dataset}"
    options.provide(cache, key, "manifests", vars(found), about, output, write)


def verify_data(
    source: Source,
    manifest: options.RequiredPath,
    output: Output,
    workers: options.Threads = 1,
    cache: CacheRoot = CACHE,
    key: Key = None,
) -> None:
    """Check images and labels before they are used.

    The report on the counts, the labels and every image file is printed and written as JSON. The
    exit status is 1 if a fault would change or break results.

    Args:
        manifest: The manifest.csv to check.

    Example: blocklora verify-data --source source.json --manifest manifest.csv
        --output verification.json
    """
    from blocklora.cache import content_digest
    from blocklora.data.layouts import list_images
    from blocklora.data.manifest import read_manifest
    from blocklora.data.registry import load_registry
    from blocklora.data.source import read_source
    from blocklora.data.verify import verify
    from blocklora.files import write_json

    found = read_source(source)

    def write(path: Path) -> None:
        registry = load_registry()
        dataset = None if found.origin == "user" else registry.get(found.dataset)
        listed = list_images(found, registry)
        report = verify(found, read_manifest(manifest), listed, dataset, workers)
        write_json(path, report.to_json())
        print(report.text())
        if not report.passed:
            raise UserError(
                f"{found.dataset} cannot be used because of the faults above; docs/datasets.md "
                "explains the codes in brackets"
            )

    contents, about = [vars(found), content_digest(manifest)], f"verification of {found.dataset}"
    options.provide(cache, key, "verifications", contents, about, output, write, link=False)


def shots(
    shots: Annotated[list[int], Option(min=1)],
    seeds: Annotated[list[int], Option(min=0)],
    manifest: Path | None = None,
    output: list[Path] | None = None,
    split_file: Path | None = None,
    part: Literal["train", "val"] | None = None,
    cache: CacheRoot = CACHE,
    key: Key = None,
) -> None:
    """Draw the few-shot lists of a dataset.

    Training and validation images are drawn in the order of CLIP-LoRA: from a manifest into CSV
    files, or from a split_zhou file to the standard output, one path per line.

    Args:
        shots: Training images per class.
        seeds: Random seeds.
        manifest: The manifest.csv to draw from.
        output: With --manifest, a CSV file for each number of shots and each seed; those of the
            first number of shots come first.
        split_file: The split_zhou_*.json to draw from, instead of a manifest.
        part: With --split-file, the part whose images are printed.

    Example: blocklora shots --manifest manifest.csv --shots 1 2 --seeds 1
        --output 1shot.csv 2shot.csv
    Example: blocklora shots --split-file split_zhou_EuroSAT.json --shots 16
        --seeds 1 --part train
    """
    from functools import cache as remember

    from blocklora.cache import content_digest
    from blocklora.data.manifest import read_manifest, write_shots
    from blocklora.data.sampling import draw_shots
    from blocklora.data.splits import read_split_file

    wanted = list(product(shots, seeds))
    _need_one_of("--manifest", manifest, "--split-file", split_file)
    if split_file is not None:
        if part is None or output or len(wanted) != 1:
            raise UserError("--split-file needs --part, one number of --shots and one of --seeds")
        drawn = draw_shots(read_split_file(split_file), *wanted[0])
        lines = [image.path for image in drawn if image.split == part]
        # Bytes are written, so that the list is the same under every locale.
        sys.stdout.buffer.write("".join(f"{line}\n" for line in lines).encode())
        return
    if part is not None or len(output or ()) != len(wanted):
        raise UserError(
            f"--manifest needs {len(wanted)} files of --output, one for each list, and no --part"
        )
    digest, read = content_digest(manifest), remember(read_manifest)
    for (count, seed), file in zip(wanted, output, strict=True):

        def write(path: Path, count: int = count, seed: int = seed) -> None:
            write_shots(path, draw_shots(read(manifest), count, seed))

        contents, about = [digest, count, seed], f"{count} shots, seed {seed}: {file.name}"
        options.provide(cache, key, "shots", contents, about, file, write, link=False)


def decode_images(
    source: Source,
    output: Annotated[list[Path], Option()],
    pixel_budget_gb: Annotated[float, Option()],
    manifest: Path | None = None,
    size: Annotated[int | None, Option(min=1)] = None,
    shots_lists: list[Path] | None = None,
    workers: options.Threads = 1,
    cache: CacheRoot = CACHE,
    key: Key = None,
) -> None:
    """Decode images once, into files that all runs share.

    The test images of a manifest are resized, cropped to the centre and written to a .npy file. The
    training images of few-shot lists keep their resolution, and each list gets a .npz file.

    Args:
        output: A file for the manifest, or for each list.
        pixel_budget_gb: If the pixels would take more than this many GB (10^9 bytes), write a file
            that only lists the images, which are then decoded when they are needed.
        manifest: Decode the test images of this manifest.csv.
        size: With --manifest, the width and height in pixels.
        shots_lists: Decode the training images of these few-shot lists.

    Example: blocklora decode-images --source source.json --manifest manifest.csv
        --size 224 --pixel-budget-gb 16 --output test-224px.npy
    """
    from blocklora.cache import content_digest
    from blocklora.data.decode import write_shots_store, write_test_store
    from blocklora.data.manifest import iterate_manifest, read_shots
    from blocklora.data.source import read_source

    _need_one_of("--manifest", manifest, "--shots-lists", shots_lists)
    if (size is None) != (manifest is None):
        raise UserError("--size goes with --manifest: training images keep their resolution")
    lists = [manifest] if manifest else shots_lists
    if len(lists) != len(output):
        raise UserError(f"{len(lists)} lists of images need as many files of --output")
    found = read_source(source)
    how = {"workers": workers, "budget": pixel_budget_gb * 1e9}
    for listed, file in zip(lists, output, strict=True):

        def write(path: Path, listed: Path = listed) -> None:
            if manifest is None:
                write_shots_store(path, found.image_root, read_shots(listed, "train"), **how)
                return
            paths = [image.path for image in iterate_manifest(listed) if image.split == "test"]
            write_test_store(path, found.image_root, paths, size, **how)

        contents = [vars(found), content_digest(listed), size, pixel_budget_gb]
        about = f"pixels of {found.dataset}: {file.parent.name}/{file.name}"
        options.provide(cache, key, "pixels", contents, about, file, write)


def _need_one_of(first: str, one: object, second: str, other: object) -> None:
    if (one is None) == (other is None):
        raise UserError(f"give either {first} or {second}, but not both")
