"""Why a model draws what it draws: its parts shown and removed, word maps, and traces."""

from undust.explain.explanation import Explanation, explain_model
from undust.explain.explanation_folder import write_explanation
from undust.explain.trace import Trace, TraceStep, trace
from undust.explain.trace_folder import write_trace

__all__ = [
    "Explanation",
    "Trace",
    "TraceStep",
    "explain_model",
    "trace",
    "write_explanation",
    "write_trace",
]
