"""How guides are written, read, kept in recipes, and refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from undust.diffusion.guidance import GUIDANCES
from undust.errors import UndustError
from undust.pictures import to_data
from undust.recipe.guidance import read_guidance, settings_of
from undust.recipe.recipe import Recipe

LEAST: dict[str, Any] = {"prompt": "a cat", "seed": 1, "width": 64, "height": 32}
MASK = to_data(Image.new("L", (4, 2), 255), (4, 2))
EVERY = {
    "adaptive": "adaptive:threshold=0.95",
    "and": "and:prompt=a red, round ball,weight=-0.5",
    "apg": "apg:eta=0.2,norm=10,momentum=-0.75",
    "autoguidance": "autoguidance:model=some/where,scale=2",
    "cfg++": "cfg++:scale=0.3",
    "interval": "interval:low=0.3,high=5",
    "pag": "pag:scale=2",
    "perp-neg": "perp-neg:weight=0.5",
    "region": f"region:prompt=a dog,mask={MASK}",
    "rescale": "rescale:share=0.5,output=epsilon",
    "scales": "scales:values=8 2.5 1",
    "seg": "seg:scale=2,blur=1.5",
    "then": "then:prompt=a dog,after=0.25",
    "threshold": "threshold:percentile=0.9,limit=2",
}
NEEDED = {"and", "autoguidance", "region", "scales", "then"}  # settings that have no default


def test_every_guide_is_here():
    assert set(EVERY) == set(GUIDANCES)


@pytest.mark.parametrize("name", EVERY)
def test_a_guide_in_words_in_json_and_in_a_recipe(name: str):
    guide = read_guidance(EVERY[name])
    assert guide.method is GUIDANCES[name]
    values = json.loads(json.dumps(guide.model_dump(), allow_nan=False))
    assert values["name"] == name
    assert read_guidance(values) == guide
    recipe = Recipe.read({**LEAST, "sampler": "euler", "guides": [EVERY[name]]})
    assert recipe.guides == (guide,)
    assert Recipe.read(json.loads(json.dumps(recipe.model_dump(), allow_nan=False))) == recipe


@pytest.mark.parametrize("values", ["8,2.5,1", "8, 2.5, 1", "8 2.5 1"])
def test_a_list_has_commas_or_spaces(values: str):
    assert read_guidance(f"scales:values={values}") == read_guidance(EVERY["scales"])


@pytest.mark.parametrize("name", sorted(GUIDANCES.keys() - NEEDED))
def test_a_name_alone_takes_the_defaults(name: str):
    assert read_guidance(name) == settings_of(GUIDANCES[name])()


@pytest.mark.parametrize("name", GUIDANCES)
def test_every_guide_says_what_it_does(name: str):
    assert 20 < len(GUIDANCES[name].summary) < 90
    assert all(f in settings_of(GUIDANCES[name]).summary() for f in GUIDANCES[name].settings)


def test_words_become_settings():
    ball: Any = read_guidance("and:prompt=a red, round ball, shiny,weight=-0.5")
    assert (ball.prompt, ball.weight) == ("a red, round ball, shiny", -0.5)
    equal: Any = read_guidance("and:prompt=1+1=2")
    assert equal.prompt == "1+1=2"
    scales: Any = read_guidance("scales:values=8 2.5 1")
    assert scales.values == (8.0, 2.5, 1.0)


def test_a_recipe_without_guides_is_written_as_before_there_were_any():
    recipe = Recipe.read(LEAST)
    assert recipe.guides == ()
    assert "guides" not in recipe.model_dump()
    assert "guides" not in recipe.model_dump_json()


def test_recipes_with_other_guides_are_not_painted_together():
    plain, guided = Recipe.read(LEAST), Recipe.read({**LEAST, "guides": ["pag"]})
    assert plain.settings != guided.settings
    assert hash(guided.settings) == hash(Recipe.read({**LEAST, "guides": ["pag"]}).settings)


@pytest.mark.parametrize(
    ("guides", "said"),
    [
        (["apgg"], "unknown guide 'apgg'; did you mean 'apg'"),
        ([""], "unknown guide ''"),
        ([{}], "unknown guide ''"),
        ([None], "guides: None is not valid; expected NAME or NAME:key=value"),
        (["apg:ets=1"], "unknown setting of guide apg 'ets'; did you mean 'eta'"),
        (["apg:eta"], "guide apg: eta: has to be a valid number, .*not ''"),
        (["apg:eta=much"], "guide apg: eta: has to be a valid number, .*not 'much'"),
        (["apg:eta=nan"], "guide apg: eta: has to be a finite number"),
        (["apg:norm=0"], "guide apg: norm: has to be greater than 0"),
        (["apg:momentum=-1"], "guide apg: momentum: has to be greater than -1"),
        (["cfg++:scale=1.5"], r"guide cfg\+\+: scale: has to be less than or equal to 1"),
        (["and"], "guide and: prompt is missing"),
        (["region:prompt=x"], "guide region: mask is missing"),
        (["scales:values="], "guide scales: values: "),
        (["scales:values=1 x"], r"guide scales: values\.1: has to be a valid number"),
        (["then:prompt=x"], "guide then: give either after=.* or sigma="),
        (["then:prompt=x,after=0.5,sigma=1"], "guide then: give either after=.* or sigma="),
        (["then:prompt=x,after=1.5"], "guide then: after: has to be less than or equal to 1"),
        (["rescale:output=eps"], "unknown prediction 'eps'"),
        (["seg:blur=0"], "guide seg: blur: has to be greater than 0"),
        (["threshold:percentile=2"], "guide threshold: percentile"),
        (["apg", "perp-neg"], "guides: apg and perp-neg exclude one another"),
        (["scales:values=1", "cfg++"], r"guides: scales and cfg\+\+ exclude one another"),
        (["cfg++"], r"guide cfg\+\+: it is for the samplers ddim and euler, not deis"),
        ("apg", "guides: "),
        (["pag"] * 65, "guides: .*at most 64"),
    ],
)
def test_what_is_no_guide_is_named(guides: object, said: str):
    with pytest.raises(UndustError, match=said) as error:
        Recipe.read({**LEAST, "guides": guides})
    assert "\n" not in str(error.value)


VALUES = st.none() | st.booleans() | st.floats() | st.text() | st.lists(st.floats())


@given(
    st.sampled_from(list(GUIDANCES)),
    st.dictionaries(st.sampled_from(["prompt", "scale", "values", "mask"]) | st.text(), VALUES),
)
def test_anything_in_a_file_is_a_guide_or_a_line_that_says_why_not(name: str, fields: Any):
    try:
        guide = read_guidance({**fields, "name": name})
    except UndustError:
        return
    assert read_guidance(json.loads(json.dumps(guide.model_dump(), allow_nan=False))) == guide
