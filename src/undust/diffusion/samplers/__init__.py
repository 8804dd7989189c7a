"""The samplers: from noise to a picture along a falling list of σ, a file for each family."""

from undust.diffusion.samplers import (
    adams,
    adaptive,
    churn,
    consistency,
    dpm,
    dpmpp,
    er_sde,
    euler,
    gradient_estimation,
    heun,
    lms,
    pndm,
    predictor_corrector,
    sde,
)
from undust.diffusion.samplers.corrected import corrected
from undust.diffusion.samplers.registry import SAMPLERS, Sampler, SamplerStep, sampler

__all__ = [
    "SAMPLERS",
    "Sampler",
    "SamplerStep",
    "corrected",
    "sampler",
    "adams",
    "adaptive",
    "churn",
    "consistency",
    "dpm",
    "dpmpp",
    "er_sde",
    "euler",
    "gradient_estimation",
    "heun",
    "lms",
    "pndm",
    "predictor_corrector",
    "sde",
]
