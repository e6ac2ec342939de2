"""The command that lists the cache and removes entries that are no longer used."""

from typing import Annotated, Any

from typer import Option

from blocklora.commands.options import CACHE, CacheRoot


def cache(
    root: CacheRoot = CACHE,
    entries: bool = False,
    prune: Annotated[int | None, Option(min=0, metavar="DAYS")] = None,
) -> None:
    """List the files that studies share, or remove old ones.

    A study whose links point to removed files makes them again if it needs them. Finished runs stay
    in the folders of their studies.

    Args:
        entries: List every entry.
        prune: Remove entries that were not used for this many days; 0 removes all entries.

    Example: blocklora cache
    Example: blocklora cache --prune 30
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


def _print_kind(kind: str, kept: list[Any], each: bool) -> None:
    from datetime import date

    size = _megabytes(sum(entry.size for entry in kept))
    used = date.fromtimestamp(max(entry.used for entry in kept))
    print(f"{kind:14}{len(kept):6}{size:>14}  last used {used}")
    for entry in kept if each else ():
        print(f"  {entry.key[:12]} {_megabytes(entry.size):>12}  {entry.about}")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
