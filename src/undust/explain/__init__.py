"""Why a model draws what it draws: word maps, and traces of a generation."""

from undust.explain.trace import Trace, TraceStep, trace
from undust.explain.trace_folder import write_trace

__all__ = ["Trace", "TraceStep", "trace", "write_trace"]
