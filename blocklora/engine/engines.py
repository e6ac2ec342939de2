"""The available training engines; a module is imported only when its engine is loaded."""

from pkgutil import resolve_name

ENGINES = {
    "fast": "blocklora.engine.fast:FastEngine",
    "reference": "blocklora.engine.reference:ReferenceEngine",
}
"""Where to find the class of each engine, by the name of the engine."""


def load_engine(name: str) -> type:
    """Return the class of an engine."""
    return resolve_name(ENGINES[name])
