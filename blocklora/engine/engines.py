"""The available training engines; a module is imported only when its engine is loaded."""

from pkgutil import resolve_name

ENGINES = {
    "fast": "blocklora.engine.fast:FastEngine",
    "reference": "blocklora.engine.reference:ReferenceEngine",
}
"""The module and the class of each engine, by the name of the engine."""


def load_engine(name: str) -> type:
    """Return the class of the engine with this name."""
    return resolve_name(ENGINES[name])
