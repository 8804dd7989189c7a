"""Guidance: a denoiser made from denoisers, one wrapper a file; they stack in any order."""

from undust.diffusion.guidance.adaptive import AdaptiveGuidance
from undust.diffusion.guidance.autoguidance import Autoguidance
from undust.diffusion.guidance.base import (
    CLOSE,
    ConditionedDenoiser,
    EvalState,
    Guidance,
    GuidanceRequest,
    GuidedRun,
    Scale,
)
from undust.diffusion.guidance.cfg_pp import CFGPlusPlus
from undust.diffusion.guidance.classifier_free import ClassifierFree
from undust.diffusion.guidance.composable import Composable
from undust.diffusion.guidance.difference import DifferenceGuidance
from undust.diffusion.guidance.interval import Interval
from undust.diffusion.guidance.known_region import KnownRegion
from undust.diffusion.guidance.lambda_guidance import LambdaGuidance
from undust.diffusion.guidance.lambda_posterior import PosteriorSampling
from undust.diffusion.guidance.perpendicular import Perpendicular
from undust.diffusion.guidance.perturbed_attention import IdentityMap, PerturbedAttention
from undust.diffusion.guidance.projected import Projected
from undust.diffusion.guidance.prompt_schedule import PromptSchedule
from undust.diffusion.guidance.regional import Regional
from undust.diffusion.guidance.registry import GUIDANCES, GuidanceContext, GuidanceMethod, guidance
from undust.diffusion.guidance.rescaled import Rescaled
from undust.diffusion.guidance.scales import ScaleTable, spread
from undust.diffusion.guidance.smoothed_energy import BlurredQueries, SmoothedEnergy
from undust.diffusion.guidance.threshold import DynamicThreshold

__all__ = [
    "CLOSE",
    "GUIDANCES",
    "AdaptiveGuidance",
    "Autoguidance",
    "BlurredQueries",
    "CFGPlusPlus",
    "ClassifierFree",
    "Composable",
    "ConditionedDenoiser",
    "DifferenceGuidance",
    "DynamicThreshold",
    "EvalState",
    "Guidance",
    "GuidanceContext",
    "GuidanceMethod",
    "GuidanceRequest",
    "GuidedRun",
    "IdentityMap",
    "Interval",
    "KnownRegion",
    "LambdaGuidance",
    "Perpendicular",
    "PerturbedAttention",
    "PosteriorSampling",
    "Projected",
    "PromptSchedule",
    "Regional",
    "Rescaled",
    "Scale",
    "ScaleTable",
    "SmoothedEnergy",
    "guidance",
    "spread",
]
