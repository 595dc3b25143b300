"""Prompt templates: text with {question}, {options} and {category}, and {answers} for the aggregator."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mosaicsim.errors import ScenarioError, nearest
from mosaicsim.workload.questions import Question

DEFAULT_PROMPT = """{question}

{options}

Think step by step, then end with the line "The answer is X.", where X is the letter of the right option, \
or the answer itself where there are no options."""

DEFAULT_AGGREGATOR_PROMPT = """{question}

{options}

Several experts were asked. Their answers, which may be wrong:

{answers}

Weigh them, then end with the line "The answer is X.", where X is the letter of the right option, \
or the answer itself where there are no options."""

NOTHING_SAID = "(no answer)"
"""What the aggregator reads in place of an empty proposal."""

_PLACE = re.compile(r"\{\{|\}\}|\{(\w+)\}")


class _Template:
    """Text with named places. ``{{`` and ``}}`` are braces; so are braces around anything but a word."""

    required: tuple[str, ...]
    optional: tuple[str, ...]

    def __init__(self, text: str, where: str) -> None:
        """Take the text; ``where`` is its place in the scenario, for messages.

        Raises ScenarioError: the text names an unknown variable, or lacks a required one.
        """
        self.text, self.where = text, where
        accepted = (*self.required, *self.optional)
        named = [match[1] for match in _PLACE.finditer(text) if match[1] is not None]
        listed = ", ".join(f"{{{name}}}" for name in accepted)
        for name in named:
            if name not in accepted:
                raise ScenarioError(
                    f"{where}: unknown template variable '{{{name}}}'{nearest(name, accepted)}; accepted: "
                    f"{listed} (write {{{{{name}}}}} for the word in braces)"
                )
        for name in self.required:
            if name not in named:
                raise ScenarioError(f"{where}: the template has no '{{{name}}}'; accepted: {listed}")

    def _filled(self, values: dict[str, str]) -> str:
        def put(match: re.Match[str]) -> str:
            return values[match[1]] if match[1] is not None else match[0][0]

        lines = [line for line in self.text.splitlines() if not self._is_empty(line, values)]
        return _PLACE.sub(put, re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip())

    @staticmethod
    def _is_empty(line: str, values: dict[str, str]) -> bool:
        """Whether the line is a place for which this question has nothing, as options."""
        place = _PLACE.fullmatch(line.strip())
        return place is not None and place[1] is not None and not values[place[1]]


class PromptTemplate(_Template):
    """What an expert is asked."""

    required = ("question",)
    optional = ("options", "category")

    def __init__(self, text: str = DEFAULT_PROMPT, where: str = "template") -> None:
        super().__init__(text, where)

    def render(self, question: Question) -> str:
        """The prompt for one question."""
        return self._filled(_values(question))


class AggregatorTemplate(_Template):
    """What the aggregator is asked."""

    required = ("question", "answers")
    optional = ("options", "category")

    def __init__(self, text: str = DEFAULT_AGGREGATOR_PROMPT, where: str = "aggregator.template") -> None:
        super().__init__(text, where)

    def render(self, question: Question, proposals: Sequence[str]) -> str:
        """The prompt for one question and the experts' texts (after their reasoning)."""
        numbered = (f"{n}. {text.strip() or NOTHING_SAID}" for n, text in enumerate(proposals, start=1))
        return self._filled({**_values(question), "answers": "\n\n".join(numbered)})


def _values(question: Question) -> dict[str, str]:
    options = (f"{letter}) {text}" for letter, text in zip(question.letters, question.options, strict=True))
    return {"question": question.text, "options": "\n".join(options), "category": question.category}
