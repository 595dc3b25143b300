"""Answers out of outputs: a table of what models write, and what holds whatever they write."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaicsim.workload.calls import NO_ANSWER
from mosaicsim.workload.canonical import as_number, canonical, canonical_text, numbers_in
from mosaicsim.workload.extraction import after_reasoning, extract_answer
from mosaicsim.workload.questions import Question
from mosaicsim.workload.votes import vote_counts

CITY = Question("city", "The capital of France?", ("Paris", "London", "Rome", "Berlin"))
WAVE = Question("wave", "What is heard?", ("A sound wave", "A light wave", "Both", "I do not know"))
PRICE = Question("price", "What is it?", ("12", "15", "1,200", "1.5"))
TEXAS = Question("texas", "Where?", ("Paris", "Paris, Texas", "Rome"))
CATS = Question("cats", "Who?", ("3 cats", "3 dogs"))
NUMBER = Question("number", "How many?", gold="12")
TEXT = Question("text", "Who?", gold="ada lovelace")
UNGRADED = Question("ungraded", "What?")

OUTPUTS = [
    # the letter alone
    (CITY, "B", "B"),
    (CITY, " B.", "B"),
    (CITY, "b", "B"),
    (CITY, "(b)", "B"),
    (CITY, "**C**", "C"),
    (CITY, "C) Rome", "C"),
    (CITY, "Option D", "D"),
    (CITY, "A", "A"),
    (CITY, "B\n\nOption A is wrong because London is large.", "B"),
    # stated
    (CITY, "The answer is B) London.", "B"),
    (CITY, "The answer is **B**.", "B"),
    (CITY, "the answer is: (b)", "B"),
    (CITY, "Answer: D", "D"),
    (CITY, "**Answer:** D", "D"),
    (CITY, "**Final Answer**: (A) Paris", "A"),
    (CITY, "The correct option is B, since London is large.", "B"),
    (CITY, "The answer is A because of the Seine.", "A"),
    (CITY, "The answer to this question is Rome.", "C"),
    (CITY, "The answer is A. No, wait. The answer is C.", "C"),
    (CITY, "The answer is not B. The answer is C", "C"),
    (CITY, "The answer is not B.", "B"),  # the only letter there is: nothing says which it is instead
    (CITY, "Let's think. France is in Europe.\nThe answer is C.\n\nI hope this helps.", "C"),
    # boxed
    (CITY, r"So it is \boxed{C}. The answer is D.", "C"),
    (CITY, r"\boxed{A} or rather \boxed{\text{B}}", "B"),
    (CITY, r"\boxed{\text{London}}", "B"),
    (CITY, r"\boxed{Madrid}. The answer is D.", "D"),
    (CITY, r"never closed \boxed{C", None),
    # by the option's text
    (CITY, "The capital is Paris.", "A"),
    (CITY, "rome", "C"),
    (CITY, "It is a city in Italy, Rome.", "C"),
    (CITY, "It could be Paris or London.", None),
    (CITY, "A) Paris\nB) London\nC) Rome\nD) Berlin\n\nIt is Rome", "C"),
    (CITY, "A) Paris\nB) London\nC) Rome\nD) Berlin", None),
    (CITY, "London is large, Rome is old.\nParis", "A"),
    (CITY, "A) is wrong, B) is wrong, so (C).", "C"),
    # nothing
    (CITY, "", None),
    (CITY, "I don't know.", None),
    (CITY, "A city in Europe, I think", None),
    (CITY, "The answer is E.", None),
    (CITY, "The answer is none of these.", None),
    # the article and the pronoun are no letters
    (WAVE, "The answer is A light wave.", "B"),
    (WAVE, "A light wave", "B"),
    (WAVE, "A sound wave travels in air", "A"),
    (WAVE, "I do not know", "D"),
    (WAVE, "The answer is I do not know", "D"),
    (WAVE, "The answer is (A).", "A"),
    # numbers among the options
    (PRICE, "The answer is 15.", "B"),
    (PRICE, "The answer is 15.0", "B"),
    (PRICE, "The answer is 1200", "C"),
    (PRICE, "so we get 1.5", "D"),
    (PRICE, "so we get $15 in all", "B"),
    (PRICE, "12 + 3 = 15", "B"),
    (PRICE, "The answer is 12 + 3 = 15.", "B"),
    (PRICE, "The answer is 16.", None),
    (PRICE, "151", None),
    (TEXAS, "It is in Paris, Texas", "B"),
    (TEXAS, "It is in Paris", "A"),
    (CATS, "The answer is 3 dogs", "B"),
    (CATS, "The answer is 3", None),
    # open, a number
    (NUMBER, "12", "12"),
    (NUMBER, "7 + 5 = 12.", "12"),
    (NUMBER, "The answer is 7 + 5 = 12.", "12"),
    (NUMBER, "The answer is 12 apples for 3 boys.", "12"),
    (NUMBER, "The answer is 1,200.0 dollars.", "1200"),
    (NUMBER, "She pays $18.50.", "18.5"),
    (NUMBER, "It is -3.50", "-3.5"),
    (NUMBER, "It is −7", "-7"),
    (NUMBER, "x = .5", "0.5"),
    (NUMBER, "25%", "25"),
    (NUMBER, "He runs 5km", "5"),
    (NUMBER, "3/4", "0.75"),
    (NUMBER, "2/6 of them", "1/3"),
    (NUMBER, r"\boxed{\frac{3}{4}}", "0.75"),
    (NUMBER, r"\boxed{12}\text{ cm}, not 13", "12"),
    (NUMBER, r"\boxed{12\text{ cm}}", "12"),
    (NUMBER, "9 * 2 = 18\n#### 18", "18"),
    (NUMBER, "1 000 000", "0"),
    (NUMBER, "1\u202f000\u202f000", "1000000"),
    (NUMBER, "1e3", "1000"),
    (NUMBER, "10-5", "5"),
    (NUMBER, "0.50 or 0.75", "0.75"),
    (NUMBER, "The numbers are 1, 2, 3", "3"),
    (NUMBER, "-0", "0"),
    (NUMBER, "Qwen2 says so", None),
    (NUMBER, "none", None),
    (NUMBER, "1/0", None),
    (NUMBER, "9" * 5000, None),
    (NUMBER, "<think>it is 5</think>\n12", "12"),
    (NUMBER, "<think>it is 5, or 6", "6"),
    # open, a text
    (TEXT, "Ada Lovelace", "ada lovelace"),
    (TEXT, "The answer is **Ada  Lovelace**.", "ada lovelace"),
    (TEXT, "She wrote of it.\nHer name was Ada Lovelace", None),
    (UNGRADED, "The answer is Paris.", "paris"),
    (UNGRADED, "The answer is 1,200 m.", "1200"),
    (UNGRADED, "It weighs 3 kg", "3"),
]


@pytest.mark.parametrize(("question", "output", "answer"), OUTPUTS)
def test_what_models_write(question: Question, output: str, answer: str | None) -> None:
    assert extract_answer(output, question) == answer


def test_text_after_the_reasoning_is_what_others_read() -> None:
    assert after_reasoning("<think>a</think> b </think>\n c ") == "c"
    assert after_reasoning(" <think>cut off") == "<think>cut off"


def test_no_answer_never_wins_a_vote() -> None:
    outputs = ["I don't know", "who can say", "The answer is C"]
    answers = [extract_answer(output, CITY) for output in outputs]
    codes = np.array([[NO_ANSWER if a is None else CITY.letters.index(a) for a in answers]])
    assert vote_counts(codes).tolist() == [[0, 0, 1]]


@given(st.fractions(max_denominator=10**6).filter(lambda f: abs(f) < 10**20))
def test_a_number_keeps_its_value_and_equal_numbers_their_spelling(value: Fraction) -> None:
    spelt = canonical(f"{value.numerator}/{value.denominator}")
    assert Fraction(spelt) == value
    assert canonical(f"{3 * value.numerator}/{3 * value.denominator}") == spelt


@given(st.integers(-(10**15), 10**15), st.integers(0, 3), st.sampled_from(["", " km", "%", " apples", "."]))
def test_a_whole_number_is_spelt_alike_however_written(value: int, zeros: int, unit: str) -> None:
    decimals = "." + "0" * zeros if zeros else ""
    for written in (f"{value}", f"{value:,}"):
        text = f"{written}{decimals}{unit}"
        assert as_number(text) == str(value)
        assert numbers_in(f"so it is {text}")[-1:] == [str(value)]


@given(st.decimals(allow_nan=False, allow_infinity=False, places=4).filter(lambda d: abs(d) < 10**12))
def test_trailing_zeros_do_not_matter(value: object) -> None:
    assert canonical(f"{value}00") == canonical(f"{value}")


@given(st.text())
def test_one_spelling_is_its_own_spelling(text: str) -> None:
    assert canonical(canonical(text)) == canonical(text)
    assert canonical_text(canonical_text(text)) == canonical_text(text)


FRAGMENTS = st.sampled_from(
    [
        "The answer is ",
        "\\boxed{",
        "}",
        "A",
        "B",
        "(C)",
        " Paris",
        "1,200",
        "-3",
        ".",
        "=",
        "\n",
        "</think>",
        "**",
    ]
)


@given(st.lists(FRAGMENTS | st.text(max_size=5), max_size=25).map("".join))
def test_whatever_is_written_an_answer_is_an_option_or_canonical(text: str) -> None:
    letter = extract_answer(text, CITY)
    assert letter is None or letter in CITY.letters
    for question in (NUMBER, TEXT, UNGRADED):
        answer = extract_answer(text, question)
        assert answer is None or answer == canonical(answer)
        assert answer != ""
    number = extract_answer(text, NUMBER)
    assert number is None or Fraction(number) is not None


LABELS = st.sampled_from("ABCD")


@given(
    LABELS, LABELS, st.sampled_from(["The answer is {}.", "Answer: {}", r"\boxed{{{}}}", "({})", "**{}**"])
)
def test_the_last_of_a_kind_counts(first: str, last: str, form: str) -> None:
    assert extract_answer(f"{form.format(first)} Hm, no.\n{form.format(last)}", CITY) == last


@given(st.permutations(CITY.options), st.sampled_from(CITY.options))
def test_an_option_s_text_stands_for_its_letter(options: list[str], chosen: str) -> None:
    question = Question("city", "?", tuple(options))
    letter = "ABCD"[options.index(chosen)]
    for form in ("{}", "The answer is {}.", "It must be {}", r"\boxed{{{}}}"):
        assert extract_answer(form.format(chosen), question) == letter


@given(st.text())
def test_the_gold_s_value_changes_nothing(text: str) -> None:
    assert extract_answer(text, NUMBER) == extract_answer(text, Question("other", "?", gold="-7.5"))
    graded = Question("city", "?", CITY.options, gold="C")
    assert extract_answer(text, graded) == extract_answer(text, CITY)
