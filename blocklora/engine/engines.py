"""The engines there are; each is imported when it is asked for."""

from pkgutil import resolve_name

ENGINES = {
    "fast": "blocklora.engine.fast:FastEngine",
    "reference": "blocklora.engine.reference:ReferenceEngine",
}
"""By name, where the class is."""


def load_engine(name: str) -> type:
    """Return the class of an engine."""
    return resolve_name(ENGINES[name])
