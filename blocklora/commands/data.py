"""Commands from the source of a dataset to decoded pixels."""

import sys
from itertools import product
from pathlib import Path
from typing import Annotated, Literal

import typer

from blocklora.commands import options
from blocklora.errors import UserError


def fetch_dataset(
    *,
    study: options.Study,
    dataset: options.Dataset,
    data_root: options.File,
    offline: options.Offline = False,
    output: options.Output,
) -> None:
    """Find, download or draw the images of a dataset.

    A CoOp or CLIP-LoRA tree below --data-root is used as it is. Otherwise the archives are taken
    from its folder `archives` or downloaded, and then verified and unpacked. The output is a
    source.json that says where the images are.

    Args:
        data_root: Folder of all datasets.

    Examples:
        blocklora fetch-dataset --study paper --dataset eurosat --data-root data \\
          --output source.json
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
        from blocklora.miniature.datasets import draw

        source = draw(dataset, data_root, chosen.miniature)
    else:
        downloader = None if offline else Downloader()
        source = fetch.fetch_published(registry[dataset], data_root, downloader)
    write_source(output, source)


def make_manifest(
    *,
    source: options.Source,
    cache: options.CacheRoot = options.CACHE,
    key: options.Key = None,
    output: options.Output,
) -> None:
    """List every image with its label, class name and split.

    They come from the dataset's split file, its official lists or its folders.

    Examples:
        blocklora make-manifest --source source.json --output manifest.csv
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
    *,
    source: options.Source,
    manifest: options.File,
    workers: options.Count = 1,
    cache: options.CacheRoot = options.CACHE,
    key: options.Key = None,
    output: options.Output,
) -> None:
    """Check images and labels before they are used.

    The report on the counts, the labels and every image file is printed and written as JSON. The
    exit status is 1 if something would change results.

    Args:
        manifest: The manifest.csv to check.
        workers: Number of threads.

    Examples:
        blocklora verify-data --source source.json --manifest manifest.csv \\
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

    contents = [vars(found), content_digest(manifest)]
    about = f"verification of {found.dataset}"
    options.provide(cache, key, "verifications", contents, about, output, write, link=False)


def shots(
    *,
    manifest: Path | None = None,
    split_file: Path | None = None,
    shots: options.Numbers,
    seeds: Annotated[list[int], typer.Option(min=0)],
    part: Literal["train", "val"] | None = None,
    cache: options.CacheRoot = options.CACHE,
    key: options.Key = None,
    output: list[Path] | None = None,
) -> None:
    """Draw the few-shot lists of a dataset.

    Training and validation images are drawn in the order of CLIP-LoRA: from a manifest into CSV
    files, or from a split_zhou file onto the terminal, one path per line.

    Args:
        manifest: The manifest.csv to draw from.
        split_file: The split_zhou_*.json to draw from, instead of a manifest.
        shots: Training images per class.
        seeds: Random seeds.
        part: With --split-file, the images to print.
        output: With --manifest, a CSV file for each seed, first those of the first number of shots.

    Examples:
        blocklora shots --manifest manifest.csv --shots 1 2 --seeds 1 \\
          --output 1shot.csv 2shot.csv
        blocklora shots --split-file split_zhou_EuroSAT.json --shots 16 --seeds 1 \\
          --part train
    """
    import functools

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
        # Bytes, so that the list is the same under every locale.
        sys.stdout.buffer.write("".join(f"{line}\n" for line in lines).encode())
        return
    if part is not None or len(output or ()) != len(wanted):
        raise UserError(f"--manifest needs {len(wanted)} files of --output, and no --part")
    digest, read = content_digest(manifest), functools.cache(read_manifest)
    for (count, seed), file in zip(wanted, output, strict=True):

        def write(path: Path, count: int = count, seed: int = seed) -> None:
            write_shots(path, draw_shots(read(manifest), count, seed))

        contents, about = [digest, count, seed], f"{count} shots, seed {seed}: {file.name}"
        options.provide(cache, key, "shots", contents, about, file, write, link=False)


def decode_images(
    *,
    source: options.Source,
    manifest: Path | None = None,
    size: Annotated[int | None, typer.Option(min=1)] = None,
    shots_lists: list[Path] | None = None,
    pixel_budget_gb: options.Number,
    workers: options.Count = 1,
    cache: options.CacheRoot = options.CACHE,
    key: options.Key = None,
    output: options.Files,
) -> None:
    """Decode images once, into files that all runs share.

    The test images of a manifest are resized, cropped to the centre and written to a .npy file. The
    training images of few-shot lists keep their resolution, and each list gets a .npz file.

    Args:
        manifest: Decode the test images of this manifest.csv.
        size: With --manifest, the width and height in pixels.
        shots_lists: Decode the training images of these lists.
        pixel_budget_gb: Write no larger file, but leave it empty, so that its images are decoded
            when they are needed (GB = 10^9 bytes).
        workers: Number of threads.
        output: A file for the manifest, or for each list.

    Examples:
        blocklora decode-images --source source.json --manifest manifest.csv --size 224 \\
          --pixel-budget-gb 16 --output test-224px.npy
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
        raise UserError(f"exactly one of {first} and {second} has to be given")
