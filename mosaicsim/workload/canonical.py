"""One spelling for each answer, so that equal answers are equal strings and can be counted as votes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache

KEPT_QUESTIONS = 4096
"""Questions whose options are kept in their one spelling: each is compared with many outputs."""

LONGEST_NUMBER = 40
"""Characters. A longer number is no answer, but a model that repeats itself."""

NUMBER = re.compile(
    r"""(?<![\w.])(?P<sign>(?<!\))-|\+)?[$€£]?    # not inside a word; a minus after a number subtracts
    (?:\\[dt]?frac\{(?P<over>\d+)\}\{(?P<under>\d+)\}
      |(?P<top>(?:\d{1,3}(?:[,\u00a0\u202f\u2009]\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][+-]?\d\d?(?!\d))?
        |\.\d+)
       (?:\s?/\s?(?P<bottom>\d+)(?![\d/]))?)""",
    re.VERBOSE,
)
r"""A number as people and models write it: 1,200 or 1200.0, -3, .5, 1e3, 3/4, \frac{3}{4}, $18.50, 5km."""

_PLACES = 150
"""Decimals of the longest number with the smallest exponent, and more."""

_MINUS = str.maketrans("−–‐‑", "----")
_MARKUP = re.compile(r"\\(?:text|mathrm|mathbf|textbf)\{([^{}]*)\}|\\[(),;!\[\]]|\\(?=[$%])|[*_`]+")


def numbers_in(text: str) -> list[str]:
    """Every number of the text, in order, each in its one spelling."""
    found = (_canonical_number(match) for match in NUMBER.finditer(plain(text)))
    return [number for number in found if number is not None]


def as_number(text: str) -> str | None:
    """The number that the text is, its unit left out ("$18.50", "25 %", "5 km"); None for another text."""
    text = plain(text).lstrip(" $").rstrip(" .$")
    match = NUMBER.match(text)
    if match is None or not re.fullmatch(r"\s?(?:[^\W\d]+|[%°][CF]?)?", text[match.end() :]):
        return None
    return _canonical_number(match)


def canonical_text(text: str) -> str:
    """The text in lower case, without markup, without punctuation around it or an article before it."""
    words = " ".join(plain(text).casefold().split())
    bare = words.lstrip(" ,;:!?'\"“”‘’()[]{}$").rstrip(" .,;:!?'\"“”‘’()[]{}$")
    shorter = re.sub(r"^(?:an?|the) (?=.)", "", bare) or words
    return shorter if shorter == text else canonical_text(shorter)


def canonical(text: str) -> str:
    """The one spelling of an answer: of its value where it is a number, else of its words."""
    words = canonical_text(text)
    return as_number(text) or as_number(words) or words


def matching_options(text: str, options: Sequence[str]) -> list[int]:
    """Which options the text is: by its words, else by its value where one option alone has it."""
    words, value = canonical_text(text), as_number(text)
    spelled = _spelled(tuple(options))
    same = [i for i, (its_words, _) in enumerate(spelled) if its_words == words]
    if same or value is None:
        return same
    equal = [i for i, (_, its_value) in enumerate(spelled) if its_value == value]
    return equal if len(equal) == 1 else []


@lru_cache(KEPT_QUESTIONS)
def _spelled(options: tuple[str, ...]) -> tuple[tuple[str, str | None], ...]:
    """Words and value of each option."""
    return tuple((canonical_text(option), as_number(option)) for option in options)


def plain(text: str) -> str:
    """The text without the marks of LaTeX and Markdown, and with one sign for minus."""
    return _MARKUP.sub(lambda mark: mark[1] or "", text).translate(_MINUS).strip()


def _canonical_number(match: re.Match[str]) -> str | None:
    """A decimal without trailing zeros, else a fraction in lowest terms; None where there is no value."""
    top, bottom = match["over"] or match["top"], match["under"] or match["bottom"] or "1"
    if max(len(top), len(bottom)) > LONGEST_NUMBER or not int(bottom):
        return None
    value = Fraction(Decimal(re.sub(r"[^\d.eE+-]", "", top))) / int(bottom)
    return _written(-value if match["sign"] == "-" else value)


def _written(value: Fraction) -> str:
    if 10**_PLACES % value.denominator:
        return f"{value.numerator}/{value.denominator}"
    digits = str(abs(value.numerator) * (10**_PLACES // value.denominator)).zfill(_PLACES + 1)
    decimals = digits[-_PLACES:].rstrip("0")
    return f"{'-' * (value < 0)}{digits[:-_PLACES]}{'.' * bool(decimals)}{decimals}"
