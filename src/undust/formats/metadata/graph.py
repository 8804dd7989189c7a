"""ComfyUI's graph: its nodes, and walks from a node upstream.

A node is `{"class_type": NAME, "inputs": {NAME: value or [node, output]}}`. Every walk visits a
node once, so that neither a cycle nor a large graph takes long.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from undust.errors import printable
from undust.formats.metadata.found import as_object

# Inputs with a prompt's text, in order of priority.
TEXTS = (
    *("text", "text_g", "text_l", "t5xxl", "clip_l", "populated_text", "prompt", "string", "value"),
    *("text_0", "wildcard_text"),
)
PARTS = re.compile(r"(?:text|string)_?(?:[a-h]|[1-9])")  # inputs with texts that are joined
NUMBERS = ("value", "seed", "noise_seed", "int", "float", "number", "Number", "Value")
MAX_CHAIN = 50  # nodes on the way of a value, far more than people build
Link = tuple[str, int]


@dataclass(frozen=True)
class Node:
    """A node of the graph."""

    name: str
    kind: str
    inputs: Mapping[str, Any]

    def links(self) -> dict[str, Link]:
        """The inputs that come from other nodes."""
        found = ((name, link_of(value)) for name, value in self.inputs.items())
        return {name: link for name, link in found if link}

    def __str__(self) -> str:
        return f"{printable(self.kind)} ({printable(self.name)})"


@dataclass
class Graph:
    """The nodes by name, with walks along their links."""

    nodes: dict[str, Node]

    def upstream(
        self,
        start: Link | None,
        along: Callable[[Node, str], bool],
        seen: set[str] | None = None,
    ) -> Iterator[Node]:
        """The node at a link and all nodes upstream of it, nearest first.

        along: whether to follow an input of a node; seen: nodes not to visit, added to.
        """
        waiting, seen = [start] if start else [], set[str]() if seen is None else seen
        for name, _ in waiting:
            if name in seen or name not in self.nodes:
                continue
            seen.add(name)
            yield (node := self.nodes[name])
            waiting += [link for key, link in node.links().items() if along(node, key)]

    def scalar(self, node: Node, *names: str) -> Any:
        """An input's number or text, also from nodes that only hold or forward such a value."""
        for name in names:
            value = node.inputs.get(name)
            if link := link_of(value):
                way = self.upstream(link, lambda each, _: len(each.links()) == 1)
                for source in islice(way, MAX_CHAIN):
                    held = (source.inputs.get(each) for each in (name, *NUMBERS, *TEXTS))
                    for each in held:
                        if isinstance(each, int | float | str) and not isinstance(each, bool):
                            return each
            elif value is not None:
                return value
        return None


def read_nodes(given: Mapping[str, Any]) -> dict[str, Node]:
    """The nodes in a JSON object; other values are skipped."""
    nodes: dict[str, Node] = {}
    for name, each in given.items():
        told = as_object(each) if isinstance(each, dict) else {}
        if isinstance(kind := told.get("class_type"), str):
            nodes[name] = Node(name, kind, as_object(told.get("inputs")))
    return nodes


def link_of(value: object) -> Link | None:
    """The node and its output that an input comes from; None for a value."""
    match value:
        case [str(name) | int(name), int(output)]:
            return str(name), output
        case _:
            return None
