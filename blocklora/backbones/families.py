"""The families of backbones there are, a line each."""

from collections.abc import Mapping

from blocklora.backbones.family import Family
from blocklora.backbones.published import PUBLISHED
from blocklora.miniature.family import MINIATURE

FAMILIES: Mapping[str, Family] = {
    source: family
    for family in (
        PUBLISHED,
        MINIATURE,
    )
    for source in family.sources
}
"""By the values of `source` in study files."""
