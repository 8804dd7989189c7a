"""The guides that a recipe can ask for beside its guidance scale: their names and settings.

In words a guide is NAME or NAME:key=value,key=value, as in "apg:eta=0,norm=10"; in a recipe's JSON
it is an object with a name. The formulas stand in `undust.diffusion.guidance`.
"""

from undust.generation.guides import around, mixing, prompts
from undust.generation.guides.base import GUIDANCES, Guide, checked, read_guide

__all__ = [
    "GUIDANCES",
    "Guide",
    "around",
    "checked",
    "mixing",
    "prompts",
    "read_guide",
]
