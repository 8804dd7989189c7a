from __future__ import annotations

import tomllib
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from undust.formats import toml_text

VALUES = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(st.dictionaries(st.text(), VALUES, max_size=5))
@settings(max_examples=50)
def test_the_standard_library_reads_the_same(tree: dict[str, Any]):
    assert tomllib.loads(toml_text.dumps(tree)) == tree


def test_it_reads_like_a_recipe():
    tree = {"kind": "diffusion", "run": {"steps": 10, "x": None}, "maps": [{"column": "a"}]}
    assert toml_text.dumps(tree) == (
        'kind = "diffusion"\n\n[run]\nsteps = 10\n\n[[maps]]\ncolumn = "a"\n'
    )
