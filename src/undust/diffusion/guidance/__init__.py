"""Guidance: a denoiser made from a denoiser, one wrapper a file."""

from undust.diffusion.guidance.classifier_free import ClassifierFree

__all__ = ["ClassifierFree"]
