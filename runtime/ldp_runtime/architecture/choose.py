"""Entry of any family: the tag `family` says which one a manifest holds."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ldp_runtime.architecture.hart import HartEntry
from ldp_runtime.architecture.infinity import InfinityEntry
from ldp_runtime.architecture.switti import SwittiEntry
from ldp_runtime.architecture.var import VarEntry

ModelEntry = Annotated[InfinityEntry | VarEntry | SwittiEntry | HartEntry, Field(discriminator="family")]
