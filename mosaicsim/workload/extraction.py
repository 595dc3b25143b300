r"""What a model answered, out of what it wrote.

Looked for in this order, the last of each: ``\boxed{...}``, "the answer is ...", then for a question with
options a letter, or the text of one option; for an open one a number. What cannot be read is None, which
never wins a vote; nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

from mosaicsim.workload.canonical import (
    KEPT_QUESTIONS,
    as_number,
    canonical,
    canonical_text,
    matching_options,
    numbers_in,
    plain,
)
from mosaicsim.workload.questions import Question

_END_OF_REASONING = "</think>"
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
_STATED = re.compile(
    r"""(?: \b (?:final\s|correct\s|right\s|best\s|my\s)* (?:answer|option|choice|solution)
            (?:\s to \s (?:the|this) \s (?:question|problem))?
            (?:\s* [*_]* \s* (?::|=) | \s+ (?:is|would\sbe|should\sbe|must\sbe|will\sbe)\b [\s:]*)
          | ^\s*\#{4} )
        \s* (?=(?P<answer>\S[^\n]*))""",
    re.VERBOSE | re.IGNORECASE | re.MULTILINE,
)
_DENIED = re.compile(r"(?:not|never|none of|unclear|unknown)\b", re.IGNORECASE)
_SENTENCE = re.compile(r"(?<!\d)\.(?=\s|$)|(?<=\d)\.(?=\s|$)|[;!?](?=\s|$)")
_MARK = r"[\s(\[*_`'\"$]*"
_LEADING = re.compile(
    rf"{_MARK}(?:(?:option|choice|answer|letter)\s+)?{_MARK}(?P<letter>[A-Za-z])"
    r"(?:[)\].:,;*_`'\"$]|\s*$|\s+(?:because|since|as|is|and|for|-|–|—)\b|\s+[(\[-])",
    re.IGNORECASE,
)
_BARE = re.compile(rf"{_MARK}(?P<letter>[B-HJ-Z])(?!\w)")
_MARKED = re.compile(
    r"\((?P<round>[A-Z])\)|\*\*(?P<bold>[A-Z])\b|\b(?:[Oo]ption|[Cc]hoice|[Ll]etter)\s+\(?(?P<named>[A-Z])\b"
    r"|(?:^|(?<=\s))(?P<listed>[A-Z])(?=[).:](?:\s|$))"
)
_LONE = re.compile(r"(?:^|(?<=\s))(?P<letter>[B-HJ-Z])(?=[\s,;]|$)")
_LISTED = re.compile(r"\W*([A-Z])[).:]\s*(.+)")


def after_reasoning(text: str) -> str:
    """The text after the last ``</think>``; the whole of it where there is none, as in Symbolic-MoE."""
    return text.rpartition(_END_OF_REASONING)[2].strip()


def extract_answer(text: str, question: Question) -> str | None:
    """The answer of an output, equal answers as equal strings; None where there is none.

    A letter for a question with options; for an open one the canonical number, or the canonical text where
    the gold answer is no number and the output states its answer. Of the gold only that is used.
    """
    text = after_reasoning(text)
    read = _choice if question.options else _open
    statements = [*_last(_boxed(text)), *_last(_stated(text))]
    answers = (read(statement, question) for statement in statements)
    found = next((answer for answer in answers if answer is not None), None)
    if found is not None:
        return found
    return _unstated_choice(text, question) if question.options else _unstated(text, question)


def _last(found: Iterator[str]) -> list[str]:
    return list(found)[-1:]


def _boxed(text: str) -> Iterator[str]:
    """What stands in each box, braces inside it included."""
    for match in _BOXED.finditer(text):
        depth = 1
        for end in range(match.end(), len(text)):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if not depth:
                yield text[match.end() : end]
                break


def _stated(text: str) -> Iterator[str]:
    """The rest of the line after each "the answer is", unless it says what the answer is not."""
    for match in _STATED.finditer(text):
        if not _DENIED.match(match["answer"]):
            yield match["answer"]


# questions with options


def _choice(statement: str, question: Question) -> str | None:
    """The letter of the option that a statement names, by its text or its letter."""
    statement = plain(statement)
    sentence = _first_sentence(statement)
    for phrase in (statement, sentence, sentence.rpartition("=")[2]):
        same = matching_options(phrase, question.options)
        if same:
            return question.letters[same[0]]
    return _leading_letter(statement, question) or _only_mentioned(sentence, question)


def _leading_letter(text: str, question: Question) -> str | None:
    match = _LEADING.match(text) or _BARE.match(text)
    letter = match["letter"].upper() if match else ""
    return letter if letter and letter in question.letters else None


def _unstated_choice(text: str, question: Question) -> str | None:
    """A first line that is a letter, else the last letter marked as such, else the one option mentioned."""
    same = matching_options(text, question.options)
    if same:
        return question.letters[same[0]]
    lines = _without_list(text, question) or [""]
    rest = "\n".join(lines)
    alone = len(canonical_text(lines[0])) == 1
    return (
        (_leading_letter(lines[0], question) if alone else None)
        or _last_letter(_MARKED, rest, question)
        or _leading_letter(lines[0], question)
        or _only_mentioned(rest, question)
        or _choice(lines[-1], question)
        or _last_letter(_LONE, rest, question)
    )


def _without_list(text: str, question: Question) -> list[str]:
    """The lines, less those that repeat the list of options."""

    def repeats(line: str) -> bool:
        item = _LISTED.fullmatch(line)
        return item is not None and any(
            item[1] == question.letters[i] for i in matching_options(item[2], question.options)
        )

    lines = [line for line in text.splitlines() if line.strip()]
    others = [line for line in lines if not repeats(line)]
    return others if len(lines) - len(others) > 1 else lines


def _last_letter(pattern: re.Pattern[str], text: str, question: Question) -> str | None:
    letters = (next(filter(None, match.groups())) for match in pattern.finditer(text))
    marked = [letter for letter in letters if letter in question.letters]
    return marked[-1] if marked else None


def _only_mentioned(text: str, question: Question) -> str | None:
    """The letter of the option whose text occurs, where one alone does ("Paris, Texas" hides "Paris")."""
    rest = canonical_text(text)
    found = []
    for i, option in _spelled(tuple(question.options)):
        # most options do not occur: looking for the plain text first spares compiling a pattern for each
        if option in rest:
            rest, times = re.subn(rf"(?<![\w.]){re.escape(option)}(?!\w|\.\d)", "\n", rest)
            if times:
                found.append(i)
    return question.letters[found[0]] if len(found) == 1 else None


@lru_cache(KEPT_QUESTIONS)
def _spelled(options: tuple[str, ...]) -> list[tuple[int, str]]:
    """Each option in the spelling of canonical texts, longest first."""
    longest_first = sorted(range(len(options)), key=lambda i: len(options[i]), reverse=True)
    return [(i, canonical_text(options[i])) for i in longest_first]


# open questions


def _open(statement: str, question: Question) -> str | None:
    """The number of a statement, its text where the gold answer is a text."""
    phrase = _first_sentence(statement)
    if question.gold is not None and as_number(question.gold) is None:
        return canonical(phrase) or None
    whole = as_number(phrase)
    numbers = numbers_in(phrase.rpartition("=")[2]) or numbers_in(phrase)
    if whole is not None or numbers:
        return whole or numbers[0]
    return canonical(phrase) or None if question.gold is None else None


def _unstated(text: str, question: Question) -> str | None:
    """The last number, or the whole of a text that is one line where the gold answer is a text."""
    if question.gold is not None and as_number(question.gold) is None:
        return (canonical(text) or None) if "\n" not in text else None
    numbers = numbers_in(text)
    return numbers[-1] if numbers else None


def _first_sentence(statement: str) -> str:
    """Up to the end of the sentence; a decimal point ends none."""
    end = _SENTENCE.search(statement)
    return statement[: end.start()] if end else statement
