"""Choice of a family for a model."""

from __future__ import annotations

from ldp_export.checkpoints.sources import Sources
from ldp_export.families.base import Family
from ldp_export.families.hart import HartFamily
from ldp_export.families.infinity import InfinityFamily
from ldp_export.families.switti import SwittiFamily
from ldp_export.families.var import VarFamily
from ldp_export.models.registry import HartSpec, InfinitySpec, NamedModel, SwittiSpec, VarSpec


def choose_family(spec: NamedModel, sources: Sources, size: str | None = None) -> Family:
    """Family of a model; `size` names a scale schedule other than the model's own.

    Raises:
        ConfigError: the model does not draw this size.
    """
    if isinstance(spec, SwittiSpec):
        return SwittiFamily(spec, sources, size)
    if isinstance(spec, HartSpec):
        return HartFamily(spec, sources, size)
    if isinstance(spec, VarSpec):
        return VarFamily(spec, sources, size)
    if isinstance(spec, InfinitySpec):
        return InfinityFamily(spec, sources, size)
    raise TypeError(f"no recipe for {type(spec).__name__}")
