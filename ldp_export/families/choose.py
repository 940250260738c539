"""What a build does differently for each family of models. One module a family, behind `recipes.base.Recipe`."""

from __future__ import annotations

from ldp_export.checkpoints.sources import Sources
from ldp_export.families.base import Recipe
from ldp_export.families.infinity import InfinityRecipe
from ldp_export.families.var import VarRecipe
from ldp_export.models.registry import ModelSpec, NamedModel, VarSpec


def recipe_for(spec: NamedModel, sources: Sources, size: str | None = None) -> Recipe:
    """The recipe of a model's family; `size` names a scale schedule other than the model's own.

    Raises:
        ConfigError: a size that the model does not draw.
    """
    if isinstance(spec, VarSpec):
        return VarRecipe(spec, sources, size)
    if isinstance(spec, ModelSpec):
        return InfinityRecipe(spec, sources, size)
    raise TypeError(f"no recipe for {type(spec).__name__}")
