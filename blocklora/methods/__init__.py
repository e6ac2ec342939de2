"""The available methods; to add a method, add a line here."""

from collections.abc import Mapping

from blocklora.methods.base import Method
from blocklora.methods.low_rank import LowRankAdapter
from blocklora.methods.zero_shot import ZeroShot

METHODS: Mapping[str, Method] = {
    method.kind: method
    for method in (
        ZeroShot(),
        LowRankAdapter(),
    )
}
"""The methods by the value of `kind` in study files."""
