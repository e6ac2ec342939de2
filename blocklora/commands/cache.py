"""The subcommand that lists what studies share, and makes room."""

from argparse import Namespace, _SubParsersAction
from pathlib import Path

from blocklora.commands.arguments import add_command, add_options, natural


def add_commands(subparsers: _SubParsersAction) -> None:
    """Add this module's subcommand to the command line."""
    cache = add_command(subparsers, _cache)
    add_options(cache, "cache")
    cache.add_argument("--entries", action="store_true", help="list every entry")
    cache.add_argument(
        "--prune",
        type=natural,
        metavar="DAYS",
        help="remove what was not used for so many days, 0 for everything",
    )


def _cache(options: Namespace) -> None:
    """List what studies share, and remove what is not needed any more.

    Everything in the cache is made again when it is needed: the next run of a study that has links
    to what was removed finds them missing. Finished runs stay in the folders of their studies.
    """
    from blocklora.cache import Cache

    cache = Cache(options.cache)
    if options.prune is not None:
        entries, size = cache.prune(options.prune)
        print(f"removed {entries} entries, {_megabytes(size)}")
    print(_listing(cache.root, list(cache.entries()), options.entries))


def _listing(root: Path, entries: list, each: bool) -> str:
    from datetime import date

    lines = [f"{root}: {len(entries)} entries, {_megabytes(sum(e.size for e in entries))}"]
    for kind in sorted({entry.kind for entry in entries}):
        of_kind = [entry for entry in entries if entry.kind == kind]
        size = _megabytes(sum(entry.size for entry in of_kind))
        used = date.fromtimestamp(max(entry.used for entry in of_kind))
        lines.append(f"{kind:14}{len(of_kind):6}{size:>14}  last used {used}")
        if each:
            lines += [
                f"  {entry.key[:12]} {_megabytes(entry.size):>12}  {entry.about}"
                for entry in of_kind
            ]
    return "\n".join(lines)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
