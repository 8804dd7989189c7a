"""The forward processes: discrete ones, from a table of β, and continuous ones, from a formula."""

from undust.diffusion.process.base import PROCESSES, Process
from undust.diffusion.process.continuous import EDM, VE, ContinuousVP, Flow, SubVP
from undust.diffusion.process.discrete import DISCRETE, VP, zero_terminal_snr

__all__ = [
    "DISCRETE",
    "PROCESSES",
    "Process",
    "VP",
    "zero_terminal_snr",
    "ContinuousVP",
    "SubVP",
    "VE",
    "EDM",
    "Flow",
]
