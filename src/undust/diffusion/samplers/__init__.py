"""The samplers: from pure noise to a picture along a falling list of σ, one family a file."""

from undust.diffusion.samplers import dpmpp, euler, heun
from undust.diffusion.samplers.registry import SAMPLERS, Sampler, Step, sampler

__all__ = ["SAMPLERS", "Sampler", "Step", "sampler", "dpmpp", "euler", "heun"]
