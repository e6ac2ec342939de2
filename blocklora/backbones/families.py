"""The list of all families of backbones."""

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
"""Each family by the values of `source` that it has in study files."""
