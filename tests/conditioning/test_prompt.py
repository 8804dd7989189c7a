"""Weights of prompts: the syntax as it is documented, and properties of any text."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from undust.conditioning.prompt import Fragment, escape, foreign, parse
from undust.errors import UndustError

SYNTAX = st.text(alphabet="ab ()[]\\:1.-+K") | st.lists(
    st.sampled_from(["BREAK", "(", ")", "[", "]", ":1.3)", ":2 )", "\\", " ", "a", "한", "\n"])
).map("".join)


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("a cat", [("a cat", 1)]),
        ("", []),
        ("a (red) cat", [("a ", 1), ("red", 1.1), (" cat", 1)]),
        ("((red))", [("red", 1.1**2)]),
        ("[red]", [("red", 1 / 1.1)]),
        ("[[red]]", [("red", 1.1**-2)]),
        ("[(red)]", [("red", 1)]),
        ("(red:1.3)", [("red", 1.3)]),
        ("(red: 0.5 )", [("red", 0.5)]),
        ("(red:.5)(blue:2.)(green:3)", [("red", 0.5), ("blue", 2), ("green", 3)]),
        ("(red:-1)(blue:+1)", [("red", -1), ("blue", 1)]),
        ("(a (red:1.5) cat:2)", [("a ", 2), ("red", 3), (" cat", 2)]),
        ("((red:1.5))", [("red", 1.1 * 1.5)]),
        ("([red:1.5)", [("red", 1.5 / 1.1)]),  # a number is of the round bracket
        # Each kind of bracket is closed by its own.
        ("(a [b) c] d", [("a ", 1.1), ("b", 1), (" c", 1 / 1.1), (" d", 1)]),
        # What is never closed counts to the end; what closes nothing is text.
        ("a (b c", [("a ", 1), ("b c", 1.1)]),
        ("a [b (c", [("a ", 1), ("b ", 1 / 1.1), ("c", 1)]),
        ("a) b] c:1.3)", [("a) b] c:1.3)", 1)]),
        ("(a]) b", [("a]", 1.1), (" b", 1)]),
        # What is no number is text.
        ("(a:b)", [("a:b", 1.1)]),
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
        ("(a:1e3)", [("a:1e3", 1.1)]),
        ("(a:)", [("a:", 1.1)]),
        ("a: 1.5, b", [("a: 1.5, b", 1)]),
        (r"a \(b\) \[c\] \\d", [(r"a (b) [c] \d", 1)]),
        (r"(a\):1.3)", [("a)", 1.3)]),
        (r"(\(a:1.3\))", [("(a:1.3)", 1.1)]),
        ("\\a \\", [("\\a \\", 1)]),
        (r"\BREAK \BREAKS", [(r"BREAK \BREAKS", 1)]),
        ("BREAKFAST breakage break _BREAK", [("BREAKFAST breakage break _BREAK", 1)]),
        # A bracket that changes nothing cuts nothing.
        ("un(dust:1.0)ed", [("undusted", 1)]),
        ("(a)(b)", [("ab", 1.1)]),
        ("()", []),
    ],
)
def test_what_a_prompt_says(prompt, said):
    (part,) = parse(prompt)
    assert [text for text, _ in part] == [text for text, _ in said]
    assert [weight for _, weight in part] == pytest.approx([weight for _, weight in said])


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("a BREAK b", [[("a ", 1)], [(" b", 1)]]),
        ("a\nBREAK, b", [[("a\n", 1)], [(", b", 1)]]),
        ("BREAK", [[], []]),
        ("a BREAK BREAK b", [[("a ", 1)], [(" ", 1)], [(" b", 1)]]),
        ("(a BREAK b:2) c", [[("a ", 2)], [(" b", 2), (" c", 1)]]),
    ],
)
def test_break_begins_a_part(prompt, parts):
    assert parse(prompt) == parts


@given(st.text())
@example("(a:1.3)")
@example("a BREAK b")
@example("\\BREAK \\\\( BREAKs")
@example("\\")
def test_what_is_escaped_is_what_it_is(text):
    assert parse(escape(text)) == [[Fragment(text, 1)] if text else []]


@given(st.text() | SYNTAX)
def test_any_text_parses(text):
    for part in parse(text):
        assert all(math.isfinite(weight) and said for said, weight in part)
        assert all(one.weight != other.weight for one, other in pairwise(part))


@given(SYNTAX)
def test_nothing_is_lost(text):
    """What is no sign of the syntax is said, in order."""
    syntax = r"\bBREAK\b|[\\()\[\]:0-9.+\s-]"
    said = "".join(fragment.text for part in parse(text) for fragment in part)
    assert re.sub(r"BREAK", "", re.sub(syntax, "", said)) == re.sub(r"BREAK|" + syntax, "", text)


@given(st.text().filter(lambda text: not re.search(r"[()\[\]\\]|\bBREAK\b", text)))
def test_text_without_syntax_is_one_fragment(text):
    assert parse(text) == [[Fragment(text, 1)] if text else []]


LEAF = st.text(alphabet="abc ,", min_size=1, max_size=5)
TREE = st.recursive(
    LEAF,
    lambda inner: st.tuples(
        st.sampled_from(["()", "[]"]) | st.floats(-9, 9).map(lambda w: round(w, 3)),
        st.lists(inner, min_size=1, max_size=3),
    ),
    max_leaves=12,
)


@given(st.lists(TREE, max_size=5))
def test_weights_multiply(trees):
    def write(tree) -> str:
        if isinstance(tree, str):
            return tree
        how, inner = tree
        text = "".join(map(write, inner))
        return how[0] + text + how[1] if isinstance(how, str) else f"({text}:{how:f})"

    def weigh(tree, weight: float) -> list[tuple[str, float]]:
        if isinstance(tree, str):
            return [(letter, weight) for letter in tree]
        how, inner = tree
        factor = {"()": 1.1, "[]": 1 / 1.1}.get(how, how)
        return [pair for each in inner for pair in weigh(each, weight * factor)]

    expected = [pair for tree in trees for pair in weigh(tree, 1.0)]
    (part,) = parse("".join(map(write, trees)))
    found = [(letter, weight) for text, weight in part for letter in text]
    assert [letter for letter, _ in found] == [letter for letter, _ in expected]
    assert [w for _, w in found] == pytest.approx([w for _, w in expected], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    "prompt", ["(" * 800 + "a", f"(a:{'9' * 31})", f"(a:{'9' * 5000})", "((a:0):" + "9" * 400 + ")"]
)
def test_a_weight_stays_finite(prompt):
    with pytest.raises(UndustError, match="the weight of 'a' is ") as error:
        parse(prompt)
    assert len(str(error.value)) < 100


@pytest.mark.parametrize(
    "prompt",
    [
        "(" * 10**5,
        "(a)" * 20_000,
        "[(a])" * 20_000,
        "(" * 10**5 + "[" * 10**5 + ")" * 10**5,
        ":" + "1" * 10**6,
        ":1." + " " * 10**6,
        "BREAK " * 20_000,
        "\\" * 10**5,
        " " * 10**6,
    ],
    ids=lambda prompt: prompt[:6],
)
def test_no_prompt_takes_quadratic_time(prompt):
    parse(prompt)


@pytest.mark.parametrize("mark", ["{", "{|", "__a", "a++b", "<random:", "[:", "（", "1::a", " AND"])
def test_no_prompt_takes_long_to_look_through(mark):
    foreign(mark * (10_000 // len(mark)))  # as long as a prompt may be


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        (
            "a cat <lora:ink:0.8>",
            "the prompt's <lora:ink:0.8> is read as plain text; a LoRA is loaded",
        ),
        ("a [cat:dog:0.5] here", r"\[cat:dog:0\.5\] is read as plain text; a change of prompt"),
        ("[cat|dog]", r"\[cat\|dog\] is read as plain text"),
        ("a cat AND a dog", "AND is read as plain text; a second prompt"),
        ("(cat:1,3)", r":1,3\) is read as plain text; a weight has a point"),
        (
            "a cat++ on a mat",
            r"'s cat\+\+ is read as plain text; a weight is written \(cat:1\.3\)$",
        ),
        ("dog, cat--, bird", "'s cat-- is read as plain text; a weight is written"),
        ("a cat+++", r"'s cat\+\+\+ is read"),
        ("고양이++", r"'s 고양이\+\+ is read"),
        ("猫++", r"'s 猫\+\+ is read"),
        ("a (smiling cat)++ here", r"'s \)\+\+ is read as plain text; a weight"),
        ("a (smiling cat)1.3", r"'s \)1\.3 is read as plain text; a weight"),
        (
            '("a cat", "a dog").blend(1, 0.5)',
            r"\.blend\( is read as plain text; prompts are combined",
        ),
        (
            "a {red|blue} cat",
            r"'s \{red\|blue\} is read as plain text; each choice can be a prompt",
        ),
        ("a {2$$red|blue|} cat", r"\{2\$\$red\|blue\|\} is read as plain text; each choice"),
        ("a __colour__ cat", "'s __colour__ is read as plain text; each choice"),
        ("a __animals/cats-1*__, b", r"__animals/cats-1\*__ is read as plain text"),
        ("<random:red,blue> cat", "<random:red,blue> is read as plain text; each choice"),
        ("a {{masterpiece}}", r"'s \{masterpiece\} is read as plain text; a weight"),
        ("1.5::a cat::, b", "5::a cat:: is read as plain text; a weight"),
        ("cat::2 dog::-1", "t::2 is read as plain text; a weight"),
        (
            "bad, embedding:easy-negative",
            "embedding:easy-negative is read as plain text; an embedding",
        ),
        (
            "(embedding:EasyNegative:1.2)",
            "embedding:EasyNegative is read as plain text; an embedding",
        ),
        ("｛猫｜犬｝", "｛猫｜犬｝ is read as plain text; .* with ASCII brackets"),
        ("（猫：1.3）", "（猫：1.3） is read as plain text; .* with ASCII brackets"),
        ("(cat：1.3)", r"：1\.3\) is read as plain text; .* with ASCII brackets"),
        ("a cat --ar 16:9 --v 6", "--ar is read as plain text; options are not part"),
        ("this one AND That one", "'s AND is read as plain text; a second prompt"),
    ],
)
def test_what_other_tools_read_otherwise_is_told(prompt: str, said: str):
    (line,) = foreign(prompt)
    assert re.search(said, line)


@given(st.text(alphabet="ab()[]:|,.<>0123 \\", max_size=40).map(escape))
def test_what_is_escaped_is_not_foreign(prompt: str):
    assert not [line for line in foreign(prompt) if "then" in line]


@pytest.mark.parametrize(
    "prompt",
    [
        *("a [cat], (dog:1.3)", "HANDS", "10:30 (morning)", r"\[a:b:1\]"),
        *("a C++ book", "g++ and C++17", "Notepad++, open", "A++ energy label", "10++", "18+ only"),
        *("a cat -- sitting", "a cat--sitting", "well-known (semi)-transparent", "a cat BREAK dog"),
        *("BLACK AND WHITE", "A CAT AND A DOG", "R AND D", "black and white", "BRAND new SAND"),
        *("snake_case __ names", "____", "3:4", "std::vector", "cat:: dog", "an embedding: words"),
        *(
            "a face {} with nothing",
            "{}",
            "a | b",
            "猫：犬",
            "$5 -- a lot",
            "a--b --",
            "e-mail --no",
        ),
        *("(((cat)))", r"\(a\)", "a (cat), (dog) and (bird).", "version 1.3", "mother-in-law's"),
        *(
            "",
            "웃는 고양이",
            "a smiling cat (front view:1.2), 4k",
            "he said: (yes)",
            "5 - 3 + 2 = 4",
        ),
    ],
)
def test_what_all_read_alike_is_not_told(prompt: str):
    assert foreign(prompt) == []
