"""How each family of models is cut into stages, or why it is not."""

from __future__ import annotations

from p2p_mesh.core.families.cutting import Cutting, study
from p2p_mesh.core.families.family import CERTIFIED
from p2p_mesh.core.families.recipe import Needs, Recipe

__all__ = ["CERTIFIED", "Cutting", "Needs", "Recipe", "study"]
