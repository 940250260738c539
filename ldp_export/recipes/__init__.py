"""What a build does differently for each family of models. One module a family, behind `recipes.base.Recipe`."""

from __future__ import annotations

from ldp_runtime.errors import ConfigError

from ldp_export.models.registry import ModelSpec, NamedModel
from ldp_export.models.sources import Sources
from ldp_export.recipes.base import Recipe


def recipe_for(spec: NamedModel, sources: Sources, size: str | None = None) -> Recipe:
    """The recipe of a model's family; `size` names a scale schedule other than the model's own.

    Raises:
        ConfigError: a size that the model does not draw.
    """
    from ldp_export.recipes.infinity import InfinityRecipe

    if not isinstance(spec, ModelSpec):
        raise ConfigError(f"{spec.name} is a class-conditional model, for which there are no engines yet")
    return InfinityRecipe(spec, sources, size)
