"""Guidance: a denoiser made from denoisers, one wrapper a file; they stack in any order."""

from undust.diffusion.guidance.away import Away
from undust.diffusion.guidance.base import CLOSE, Branch, Guidance, Run, Scale
from undust.diffusion.guidance.cfg_pp import cfg_pp
from undust.diffusion.guidance.classifier_free import ClassifierFree
from undust.diffusion.guidance.composable import Composable
from undust.diffusion.guidance.interval import Interval
from undust.diffusion.guidance.known_region import KnownRegion
from undust.diffusion.guidance.perpendicular import Perpendicular
from undust.diffusion.guidance.projected import Projected
from undust.diffusion.guidance.prompt_schedule import PromptSchedule
from undust.diffusion.guidance.regional import Regional
from undust.diffusion.guidance.rescaled import Rescaled
from undust.diffusion.guidance.scales import Table, spread
from undust.diffusion.guidance.threshold import DynamicThreshold

__all__ = [
    "CLOSE",
    "Away",
    "Branch",
    "ClassifierFree",
    "Composable",
    "DynamicThreshold",
    "Guidance",
    "Interval",
    "KnownRegion",
    "Perpendicular",
    "Projected",
    "PromptSchedule",
    "Regional",
    "Rescaled",
    "Run",
    "Scale",
    "Table",
    "cfg_pp",
    "spread",
]
