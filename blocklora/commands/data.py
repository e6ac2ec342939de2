"""Subcommands of `blocklora.data`."""

import sys
from argparse import ArgumentParser, Namespace, _SubParsersAction
from dataclasses import asdict
from functools import cache
from itertools import product
from pathlib import Path

from blocklora.commands.arguments import add_command, add_options, natural, positive, provide
from blocklora.errors import UserError


def add_commands(subparsers: _SubParsersAction) -> None:
    """Add this package's subcommands to the command line."""
    source = {"source": "source.json of the dataset"}
    fetch = add_command(subparsers, _fetch_dataset)
    add_options(fetch, "study", "dataset")
    add_options(fetch, data_root="folder of all datasets", output="source.json to write")
    add_options(fetch, "offline")

    listing = add_command(subparsers, _make_manifest)
    add_options(listing, "cache", "key", **source, output="manifest.csv to write")

    verify = add_command(subparsers, _verify_data)
    add_options(verify, "cache", "key", **source)
    add_options(verify, manifest="manifest.csv to check", output="report to write (JSON)")
    _add_workers(verify)

    shots = add_command(subparsers, _shots)
    origin = shots.add_mutually_exclusive_group(required=True)
    origin.add_argument("--manifest", type=Path, help="manifest.csv to draw from")
    origin.add_argument("--split-file", type=Path, help="split_zhou_*.json file to draw from")
    numbers = {"nargs": "+", "required": True}
    shots.add_argument("--shots", type=positive, **numbers, help="training images per class")
    shots.add_argument("--seeds", type=natural, **numbers)
    shots.add_argument(
        "--output",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="a CSV file for each of --seeds, of the first number of --shots first (--manifest)",
    )
    shots.add_argument("--part", choices=("train", "val"), help="list to print (--split-file)")
    add_options(shots, "cache", "key")

    decode = add_command(subparsers, _decode_images)
    add_options(decode, "cache", "key", **source)
    origin = decode.add_mutually_exclusive_group(required=True)
    origin.add_argument("--manifest", type=Path, help="decode the test images of this manifest")
    origin.add_argument(
        "--shots-lists", type=Path, nargs="+", help="decode the training images of these lists"
    )
    decode.add_argument("--size", type=positive, help="pixels of a side (with --manifest)")
    decode.add_argument(
        "--output", type=Path, nargs="+", required=True, help="a file for the manifest or each list"
    )
    _add_workers(decode)
    decode.add_argument(
        "--pixel-budget-gb",
        type=float,
        required=True,
        help="a larger store is not written, its images are decoded on the fly (GB = 10^9 bytes)",
    )


def _add_workers(parser: ArgumentParser) -> None:
    parser.add_argument("--workers", type=positive, default=1, help="threads (default: 1)")


def _fetch_dataset(options: Namespace) -> None:
    """Find, download or draw the images of a dataset, and write where they are.

    A CoOp or CLIP-LoRA tree below --data-root is used as it is; otherwise the archives are taken
    from its folder `archives` or downloaded, verified and unpacked.
    """
    from blocklora.data import fetch
    from blocklora.data.download import Downloader
    from blocklora.data.registry import load_registry
    from blocklora.data.source import write_source
    from blocklora.study.model import load_study

    study, name = load_study(options.study), options.dataset
    registry = load_registry()
    if name in study.own_datasets:
        own = study.own_datasets[name]
        source = fetch.use_own(name, Path(own.images), Path(own.csv) if own.csv else None)
    elif name not in registry:
        raise UserError(f"{name}: no such dataset; known are {', '.join(registry)}")
    elif registry[name].layout == "drawn":
        from blocklora.miniature.datasets import draw

        source = draw(name, options.data_root, study.miniature)
    else:
        downloader = None if options.offline else Downloader()
        source = fetch.fetch_published(registry[name], options.data_root, downloader)
    write_source(options.output, source)


def _make_manifest(options: Namespace) -> None:
    """List every image of a dataset with label, class name and split.

    They come from its split file, its official lists or its folders.
    """
    from blocklora.data.layouts import list_images
    from blocklora.data.manifest import write_manifest
    from blocklora.data.registry import load_registry
    from blocklora.data.source import read_source

    source = read_source(options.source)

    def write(path: Path) -> None:
        write_manifest(path, list_images(source, load_registry()))

    about = f"list of the images of {source.dataset}"
    provide(options, "manifests", asdict(source), about, options.output, write)


def _verify_data(options: Namespace) -> None:
    """Check the images and labels of a dataset before they are used.

    The report on counts, labels and every image file is written and printed; the exit status is 1
    if anything in it would change results.
    """
    from blocklora.cache import content_digest
    from blocklora.data.layouts import list_images
    from blocklora.data.manifest import read_manifest
    from blocklora.data.registry import load_registry
    from blocklora.data.source import read_source
    from blocklora.data.verify import verify
    from blocklora.files import write_json

    source = read_source(options.source)

    def write(path: Path) -> None:
        registry = load_registry()
        dataset = None if source.origin == "user" else registry.get(source.dataset)
        manifest = read_manifest(options.manifest)
        report = verify(source, manifest, list_images(source, registry), dataset, options.workers)
        write_json(path, report.to_json())
        print(report.text())
        if not report.passed:
            raise UserError(
                f"{source.dataset} is not fit for use, see above; docs/datasets.md says what each "
                "code in brackets means"
            )

    contents = [asdict(source), content_digest(options.manifest)]
    about = f"verification of {source.dataset}"
    provide(options, "verifications", contents, about, options.output, write, link=False)


def _shots(options: Namespace) -> None:
    """Draw the few-shot lists of a dataset.

    Validation and training images are drawn in CLIP-LoRA's order: from a manifest into a CSV file
    for each number of shots and each seed, or from a split_zhou file onto the terminal, one path
    per line.
    """
    from blocklora.data.manifest import read_manifest, write_shots
    from blocklora.data.sampling import draw_shots
    from blocklora.data.splits import read_split_file

    wanted = list(product(options.shots, options.seeds))
    if options.split_file is not None:
        if options.part is None or options.output is not None or len(wanted) != 1:
            raise UserError("--split-file needs --part, one of --shots and one of --seeds")
        drawn = draw_shots(read_split_file(options.split_file), *wanted[0])
        lines = [image.path for image in drawn if image.split == options.part]
        # Bytes, so that the list is the same under every locale.
        sys.stdout.buffer.write("".join(f"{line}\n" for line in lines).encode())
        return
    if options.part is not None or len(options.output or ()) != len(wanted):
        raise UserError(f"--manifest needs {len(wanted)} files of --output, which hold both parts")
    from blocklora.cache import content_digest

    digest, read = content_digest(options.manifest), cache(read_manifest)
    for (shots, seed), output in zip(wanted, options.output, strict=True):

        def write(path: Path, shots: int = shots, seed: int = seed) -> None:
            write_shots(path, draw_shots(read(options.manifest), shots, seed))

        about = f"{shots} shots, seed {seed}: {output.name}"
        provide(options, "shots", [digest, shots, seed], about, output, write, link=False)


def _decode_images(options: Namespace) -> None:
    """Decode images once into stores that all runs share.

    The test images of a manifest are decoded after resize and centre crop into a .npy file, the
    training images of shots lists at full resolution into a .npz file for each list.
    """
    from blocklora.cache import content_digest
    from blocklora.data.decode import write_shots_store, write_test_store
    from blocklora.data.manifest import iterate_manifest, read_shots
    from blocklora.data.source import read_source

    if (options.size is None) != (options.manifest is None):
        raise UserError("--size goes with --manifest: training images keep their resolution")
    lists = [options.manifest] if options.manifest else options.shots_lists
    if len(lists) != len(options.output):
        raise UserError(f"{len(lists)} lists of images need as many files of --output")
    source = read_source(options.source)
    how = {"workers": options.workers, "budget": options.pixel_budget_gb * 1e9}
    for listed, output in zip(lists, options.output, strict=True):

        def write(path: Path, listed: Path = listed) -> None:
            root = source.image_root
            if options.manifest is None:
                write_shots_store(path, root, read_shots(listed, "train"), **how)
                return
            images = iterate_manifest(listed)
            paths = [image.path for image in images if image.split == "test"]
            write_test_store(path, root, paths, options.size, **how)

        digests = [asdict(source), content_digest(listed)]
        contents = [*digests, options.size, options.pixel_budget_gb]
        about = f"pixels of {source.dataset}: {output.parent.name}/{output.name}"
        provide(options, "pixels", contents, about, output, write)
