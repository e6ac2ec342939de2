"""Subcommands of `blocklora.data`."""

import sys
from argparse import ArgumentParser, Namespace, _SubParsersAction
from pathlib import Path

from blocklora.commands.arguments import natural, positive
from blocklora.errors import UserError


def add_commands(subparsers: _SubParsersAction) -> None:
    """Add this package's subcommands to the command line."""
    _add_fetch_dataset(subparsers)
    _add_make_manifest(subparsers)
    _add_verify_data(subparsers)
    _add_shots(subparsers)
    _add_decode_images(subparsers)


def _add_fetch_dataset(subparsers: _SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "fetch-dataset",
        help="find, download or draw the images of a dataset",
        description="Write where the images of a dataset are. A CoOp or CLIP-LoRA tree below "
        "--data-root is used as it is; otherwise the archives are taken from its folder "
        "`archives` or downloaded, verified and unpacked.",
    )
    parser.add_argument("--study", type=Path, required=True, help="study file")
    parser.add_argument("--dataset", required=True, help="name of the dataset")
    parser.add_argument("--data-root", type=Path, required=True, help="folder of all datasets")
    parser.add_argument("--output", type=Path, required=True, help="source.json to write")
    parser.add_argument("--offline", action="store_true", help="ask nothing of the network")
    parser.set_defaults(run=_fetch_dataset)


def _fetch_dataset(options: Namespace) -> None:
    from blocklora.data import fetch
    from blocklora.data.download import Downloader
    from blocklora.data.registry import load_registry
    from blocklora.data.source import write_source
    from blocklora.study.model import load_study

    study, name = load_study(options.study), options.dataset
    registry = load_registry()
    if name in study.own_datasets:
        own = study.own_datasets[name]
        source = fetch.use_own(name, own.images, own.csv)
    elif name not in registry:
        raise UserError(f"{name}: no such dataset; known are {', '.join(registry)}")
    elif registry[name].layout == "drawn":
        from blocklora.miniature.datasets import draw

        source = draw(name, options.data_root, study.miniature)
    else:
        downloader = None if options.offline else Downloader()
        source = fetch.fetch_published(registry[name], options.data_root, downloader)
    write_source(options.output, source)


def _add_make_manifest(subparsers: _SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "make-manifest",
        help="list every image of a dataset with label, class name and split",
        description="Write the manifest of a dataset: path, label, class name and split of every "
        "image, from its split file, its official lists or its folders.",
    )
    parser.add_argument("--source", type=Path, required=True, help="source.json of the dataset")
    parser.add_argument("--output", type=Path, required=True, help="manifest.csv to write")
    parser.set_defaults(run=_make_manifest)


def _make_manifest(options: Namespace) -> None:
    from blocklora.data.layouts import list_images
    from blocklora.data.manifest import write_manifest
    from blocklora.data.registry import load_registry
    from blocklora.data.source import read_source

    write_manifest(options.output, list_images(read_source(options.source), load_registry()))


def _add_verify_data(subparsers: _SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "verify-data",
        help="check the images and labels of a dataset before they are used",
        description="Check counts, labels and every image file of a dataset. The report is "
        "written and printed; the exit status is 1 if anything in it would change results.",
    )
    parser.add_argument("--source", type=Path, required=True, help="source.json of the dataset")
    parser.add_argument("--manifest", type=Path, required=True, help="manifest.csv to check")
    parser.add_argument("--output", type=Path, required=True, help="report to write (JSON)")
    _add_workers(parser)
    parser.set_defaults(run=_verify_data)


def _verify_data(options: Namespace) -> None:
    from blocklora.data.layouts import list_images
    from blocklora.data.manifest import read_manifest
    from blocklora.data.registry import load_registry
    from blocklora.data.source import read_source
    from blocklora.data.verify import verify
    from blocklora.files import write_json

    source, registry = read_source(options.source), load_registry()
    dataset = None if source.origin == "user" else registry.get(source.dataset)
    manifest = read_manifest(options.manifest)
    report = verify(source, manifest, list_images(source, registry), dataset, options.workers)
    write_json(options.output, report.to_json())
    print(report.text())
    if not report.passed:
        raise UserError(
            f"{source.dataset} is not fit for use, see above; docs/datasets.md says what each "
            "code in brackets means"
        )


def _add_shots(subparsers: _SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "shots",
        help="draw the few-shot lists of a dataset",
        description="Draw the few-shot validation and training images of a dataset in "
        "CLIP-LoRA's order: from a manifest into a CSV file, or from a split_zhou file onto the "
        "terminal, one path per line.",
    )
    origin = parser.add_mutually_exclusive_group(required=True)
    origin.add_argument("--manifest", type=Path, help="manifest.csv to draw from")
    origin.add_argument("--split-file", type=Path, help="split_zhou_*.json file to draw from")
    parser.add_argument("--shots", type=positive, required=True, help="training images per class")
    parser.add_argument("--seed", type=natural, required=True)
    parser.add_argument("--output", type=Path, help="CSV file to write (with --manifest)")
    parser.add_argument("--part", choices=("train", "val"), help="list to print (--split-file)")
    parser.set_defaults(run=_shots)


def _shots(options: Namespace) -> None:
    from blocklora.data.manifest import iterate_manifest, write_shots
    from blocklora.data.sampling import draw_shots

    if options.manifest is not None:
        if options.output is None or options.part is not None:
            raise UserError("--manifest needs --output, which holds both parts")
        images = iterate_manifest(options.manifest)
        write_shots(options.output, draw_shots(images, options.shots, options.seed))
        return
    from blocklora.data.splits import read_split_file

    if options.part is None or options.output is not None:
        raise UserError("--split-file needs --part and prints the list")
    drawn = draw_shots(read_split_file(options.split_file), options.shots, options.seed)
    lines = [image.path for image in drawn if image.split == options.part]
    # Bytes, so that the list is the same under every locale.
    sys.stdout.buffer.write("".join(f"{line}\n" for line in lines).encode())


def _add_decode_images(subparsers: _SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "decode-images",
        help="decode images once into a store that all runs share",
        description="Decode the test images of a manifest after resize and centre crop into a "
        ".npy file, or the training images of a shots list at full resolution into a .npz file.",
    )
    parser.add_argument("--source", type=Path, required=True, help="source.json of the dataset")
    origin = parser.add_mutually_exclusive_group(required=True)
    origin.add_argument("--manifest", type=Path, help="decode the test images of this manifest")
    origin.add_argument("--shots-list", type=Path, help="decode the training images of this list")
    parser.add_argument("--size", type=positive, help="pixels of a side (with --manifest)")
    parser.add_argument("--output", type=Path, required=True)
    _add_workers(parser)
    parser.add_argument(
        "--pixel-budget-gb",
        type=float,
        required=True,
        help="a larger store is not written, its images are decoded on the fly (GB = 10^9 bytes)",
    )
    parser.set_defaults(run=_decode_images)


def _decode_images(options: Namespace) -> None:
    from blocklora.data.decode import write_shots_store, write_test_store
    from blocklora.data.manifest import iterate_manifest, read_shots
    from blocklora.data.source import read_source

    root = read_source(options.source).image_root
    budget = options.pixel_budget_gb * 1e9
    if (options.size is None) != (options.manifest is None):
        raise UserError("--size goes with --manifest: training images keep their resolution")
    if options.manifest is None:
        images = read_shots(options.shots_list, "train")
        write_shots_store(options.output, root, images, options.workers, budget)
        return
    paths = [image.path for image in iterate_manifest(options.manifest) if image.split == "test"]
    write_test_store(options.output, root, paths, options.size, options.workers, budget)


def _add_workers(parser: ArgumentParser) -> None:
    parser.add_argument("--workers", type=positive, default=1, help="threads (default: 1)")
