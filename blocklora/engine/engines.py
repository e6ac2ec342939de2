"""The engines there are; each is imported when it is asked for."""

from importlib import import_module

ENGINES = {
    "fast": "blocklora.engine.fast:FastEngine",
    "reference": "blocklora.engine.reference:ReferenceEngine",
}
"""By name, where the class is."""


def load_engine(name: str) -> type:
    """Return the class of an engine."""
    module, _, attribute = ENGINES[name].partition(":")
    return getattr(import_module(module), attribute)
