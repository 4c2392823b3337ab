"""Globs against a reference that tries every way, and their relations against the strings they match."""

import itertools
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_middleware.globs import Glob, matcher

ALPHABET = "ab/.\n+$é"
texts = st.text(ALPHABET + "AÀ\u2028{", max_size=12)
globs = st.text(ALPHABET + "*?", min_size=1, max_size=8)
few = st.text("ab*?", min_size=1, max_size=5)
WORDS = ["".join(word) for size in range(6) for word in itertools.product("abc", repeat=size)]


def reference(glob: str, text: str) -> bool:
    """The definition, read aloud."""

    @cache
    def matches(i: int, j: int) -> bool:
        if i == len(glob):
            return j == len(text)
        if glob[i] == "*":
            return matches(i + 1, j) or (j < len(text) and matches(i, j + 1))
        return j < len(text) and glob[i] in ("?", text[j]) and matches(i + 1, j + 1)

    return matches(0, 0)


def matches(glob: str, text: str) -> bool:
    return matcher([Glob(glob)]).fullmatch(text) is not None


@given(globs, texts)
def test_case_11_a_glob_matches_whole_strings_as_defined(glob: str, text: str) -> None:
    assert matches(glob, text) == reference(glob, text)


@given(st.lists(globs, min_size=1, max_size=4), texts)
def test_several_globs_match_what_one_of_them_does(several: list[str], text: str) -> None:
    expected = any(reference(glob, text) for glob in several)
    assert (matcher(map(Glob, several)).fullmatch(text) is not None) == expected


@given(texts.filter(lambda text: text and "{" not in text))
def test_case_11_a_name_matches_itself_and_no_other(name: str) -> None:
    assert matches(name, name)
    assert not any(matches(name, other) for other in (name + "a", "a" + name, name.swapcase() + "x", name + "\n"))


@given(few, few)
def test_covering_is_never_claimed_in_vain(wide: str, narrow: str) -> None:
    if Glob(wide).covers(Glob(narrow)):
        assert all(reference(wide, word) for word in WORDS if reference(narrow, word))


@given(few, few)
def test_overlapping_globs_have_a_string_in_common(one: str, two: str) -> None:
    found = any(reference(one, word) and reference(two, word) for word in WORDS)
    overlap = Glob(one).overlaps(Glob(two))
    assert overlap == Glob(two).overlaps(Glob(one))
    if len(one.replace("*", "")) + len(two.replace("*", "")) <= 5:
        assert overlap == found, "a shortest common string is no longer than both together"


@given(few)
def test_a_glob_covers_and_overlaps_itself(glob: str) -> None:
    assert Glob(glob).covers(Glob(glob))
    assert Glob(glob).overlaps(Glob(glob))
    assert Glob("*").covers(Glob(glob))


@pytest.mark.parametrize(
    ("glob", "template", "covers", "overlaps"),
    [
        ("file:///srv/*", "file:///srv/{path}", True, True),
        ("file:///srv/*", "file:///{path}", False, True),
        ("file:///srv/*", "file:///{+path}{?q*}", False, True),
        ("file:///srv/*", "secret://{x}", False, False),
        ("file:///srv/a", "file:///srv/{x}", False, True),
        ("file:///srv/?", "file:///srv/{x}", False, True),
        ("*/key", "{a}/{b}", False, True),
        ("x://a*b", "x://a{v}b", True, True),
        ("x://a", "x://{broken", False, True),
        ("x://aXb", "x://a*b", False, False),
        ("x://a*b", "x://a*b", True, True),
    ],
)
def test_a_template_stands_for_all_that_it_may_expand_to(
    glob: str, template: str, covers: bool, overlaps: bool
) -> None:
    expanded = Glob.of_template(template)
    assert Glob(glob).covers(expanded) == covers
    assert Glob(glob).overlaps(expanded) == overlaps


@pytest.mark.parametrize("glob", ["*a" * 40 + "b", "?*" * 30 + "b", "*" * 200 + "b", "*?a" * 30 + "b"])
def test_case_39_no_glob_backtracks(glob: str) -> None:
    """Exponential or high polynomial matching would not come to an end."""
    assert not matches(glob, "a" * 8000)
    assert not Glob(glob).covers(Glob.of_template("a" * 8000))
    assert not Glob(glob).overlaps(Glob.of_template("a" * 8000))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("!admin_*", "effect: deny"),
        ("[ab]", "use [?] for one character"),
        ("a]", "use [?] for one character"),
        ("{a,b}", "write several globs"),
        ("a\\*", "no escapes"),
        ("a\ufffe", "no character"),
    ],
)
def test_what_other_dialects_read_otherwise_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Glob(text)


def test_globs_that_mean_the_same_are_equal() -> None:
    assert Glob("a*?b") == Glob("a?*b") == Glob("a**?*b")
    assert len({Glob("a*"), Glob("a**")}) == 1
    assert repr(Glob("a*")) == "Glob('a*')"
