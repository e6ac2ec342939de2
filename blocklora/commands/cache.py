"""The command that lists what studies share, and removes what is not used any more."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from blocklora.commands import options

if TYPE_CHECKING:
    from blocklora.cache import Entry


def cache(
    root: options.CacheRoot = options.CACHE,
    entries: bool = False,
    prune: Annotated[int | None, typer.Option(min=0, metavar="DAYS")] = None,
) -> None:
    """List what studies share, and make room.

    What is removed is made again when it is needed: a study whose links point to it finds it
    missing in its next run. Finished runs stay in the folders of their studies.

    Args:
        entries: List every entry.
        prune: Remove what was not used for so many days; 0 removes everything.

    Examples:
        blocklora cache
        blocklora cache --prune 30
    """
    from blocklora.cache import Cache

    found = Cache(root)
    if prune is not None:
        count, size = found.prune(prune)
        print(f"removed {count} entries, {_megabytes(size)}")
    kept = list(found.entries())
    print(f"{root}: {len(kept)} entries, {_megabytes(sum(entry.size for entry in kept))}")
    for kind in sorted({entry.kind for entry in kept}):
        _print_kind(kind, [entry for entry in kept if entry.kind == kind], entries)


def _print_kind(kind: str, kept: Sequence["Entry"], each: bool) -> None:
    from datetime import date

    size = _megabytes(sum(entry.size for entry in kept))
    used = date.fromtimestamp(max(entry.used for entry in kept))
    print(f"{kind:14}{len(kept):6}{size:>14}  last used {used}")
    for entry in kept if each else ():
        print(f"  {entry.key[:12]} {_megabytes(entry.size):>12}  {entry.about}")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
