"""Every process that there is, by name."""

from __future__ import annotations

from undust.diffusion.process import DISCRETE, PROCESSES, Flow, Process, zero_terminal_snr

BUILT: dict[str, Process] = {
    **{name: build() for name, build in PROCESSES.items()},
    "zero-snr": zero_terminal_snr(DISCRETE["scaled-linear"]()),
    "flow-shifted": Flow(shift=3.0),
}
