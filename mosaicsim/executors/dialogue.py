"""What is said in a real run: prompts to the models, and answers read out of the texts that come back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Generic, TypeVar

import numpy as np

from mosaicsim.errors import UserInputError
from mosaicsim.executors.messages import CallRequest, CallResult
from mosaicsim.streams import Streams
from mosaicsim.workload.calls import NO_ANSWER, AggregatorCalls, Bools, CallTable, Ints, Outcomes
from mosaicsim.workload.chat import Chat
from mosaicsim.workload.extraction import after_reasoning, extract_answer
from mosaicsim.workload.prompts import AggregatorTemplate, PromptTemplate
from mosaicsim.workload.questions import Question

T = TypeVar("T", PromptTemplate, AggregatorTemplate)

SHORTEST_PROPOSAL = 200
"""Characters that are left of a proposal however long the aggregator's prompt is."""


@dataclass(frozen=True)
class Speaker(Generic[T]):
    """A model as it is spoken to; ``sampling`` are keyword arguments of vLLM's SamplingParams.

    ``name`` stands for it in messages; a context holds ``max_model_len`` tokens, the answer included.
    """

    name: str
    chat: Chat
    template: T
    system: str | None
    sampling: dict[str, Any]
    max_model_len: int

    @property
    def room(self) -> int:
        """Tokens that a prompt may have."""
        return self.max_model_len - int(self.sampling["max_tokens"])

    def encode(self, user: str) -> tuple[int, ...]:
        """The tokens of a prompt."""
        return self.chat.encode(user, self.system)


@dataclass(frozen=True)
class Reply:
    """What became of a call: its result, the text after the reasoning, the answer read out of it."""

    result: CallResult
    visible: str
    answer: str | None


class Dialogue:
    """The calls of a real run in words; call ``q * k + slot`` is an expert's, ``n + q`` the aggregator's.

    ``replies`` holds every call that ended, ``shortened`` the questions for which proposals had to be cut to
    fit into the aggregator's context.
    """

    def __init__(
        self,
        questions: Sequence[Question],
        experts: Sequence[str],
        speakers: Mapping[str, Speaker[PromptTemplate]],
        aggregator: Speaker[AggregatorTemplate],
        streams: Streams,
    ) -> None:
        self._questions, self._experts = questions, experts
        self._speakers, self._aggregator, self._streams = speakers, aggregator, streams
        self.replies: dict[int, Reply] = {}
        self.shortened: set[int] = set()
        self._codes: dict[str, int] = {}
        self.prompt = cache(self._prompt)

    def _prompt(self, question: int, expert: int) -> tuple[int, ...]:
        """What an expert is asked. Raises UserInputError for a prompt that its context cannot hold."""
        speaker, asked = self._speakers[self._experts[expert]], self._questions[question]
        tokens = speaker.encode(speaker.template.render(asked))
        if len(tokens) > speaker.room:
            raise UserInputError(
                f"execution.models.{speaker.name}: the prompt of question '{asked.id}' has {len(tokens):,} "
                f"tokens; max_model_len {speaker.max_model_len:,} less max_tokens "
                f"{speaker.sampling['max_tokens']:,} leaves {max(speaker.room, 0):,}"
            )
        return tokens

    def begin(self, calls: CallTable, proposers: Ints | None = None) -> None:
        """Forget what was said and take these calls.

        ``proposers``, shape (questions, any), are the calls of each question that its aggregator reads; all
        of the question's by default.
        """
        self._calls = calls
        self.replies, self.shortened = {}, set()
        self._asked_tokens: dict[int, int] = {}
        self._proposers = np.arange(len(calls)).reshape(len(self._questions), -1)
        if proposers is not None:
            self._proposers = proposers

    def request(self, call_id: int) -> CallRequest:
        """See Recorder. An aggregator's prompt is made of what its question's experts have said."""
        n = len(self._calls)
        if call_id < n:
            expert = int(self._calls.expert[call_id])
            tokens = self.prompt(int(self._calls.question[call_id]), expert)
            sampling = self._speakers[self._experts[expert]].sampling
        else:
            tokens, sampling = self._aggregator_prompt(call_id - n), self._aggregator.sampling
            self._asked_tokens[call_id] = len(tokens)
        return CallRequest(call_id, tokens, {**sampling, "logprobs": 0, "seed": self._seed(call_id)})

    def take(self, result: CallResult) -> int:
        """See Recorder. A cancelled or failed call has no answer."""
        question = self._questions[self._question_of(result.call_id)]
        answer = extract_answer(result.text, question) if result.finished else None
        self.replies[result.call_id] = Reply(result, after_reasoning(result.text), answer)
        return self.code(answer)

    def code(self, answer: str | None) -> int:
        """The code of an answer; equal answers have equal codes all through the run."""
        return NO_ANSWER if answer is None else self._codes.setdefault(answer, len(self._codes))

    def answer_of(self, code: int) -> str | None:
        """The answer with that code."""
        return next((answer for answer, known in self._codes.items() if known == code), None)

    def outcomes(self) -> Outcomes:
        """What the experts' calls turned out to be; one that did not finish has no tokens and no answer."""
        ids = range(len(self._calls))
        return Outcomes(
            output_tokens=self._tokens(ids),
            visible_tokens=np.array([self._visible_tokens(i) for i in ids], np.int64),
            answer=np.array([self.code(self._answer(i)) for i in ids], np.int64),
            correct=self._correct(ids),
        )

    def require_room(self) -> None:
        """Raise UserInputError for an aggregator's prompt that its context cannot hold however it is cut."""
        shortest = ["x" * SHORTEST_PROPOSAL] * self._proposers.shape[1]
        for question in range(len(self._questions)):
            self._fitted(question, shortest)
        self.shortened.clear()

    def asked_tokens(self, call_id: int) -> int:
        """Tokens of an aggregator's prompt."""
        if call_id not in self._asked_tokens:  # asked by the attempt that this one goes on with
            self._asked_tokens[call_id] = len(self._aggregator_prompt(call_id - len(self._calls)))
        return self._asked_tokens[call_id]

    def aggregator_calls(self) -> AggregatorCalls:
        """What the aggregator's turned out to be."""
        n = len(self._calls)
        ids = range(n, n + len(self._questions))
        asked = [self.asked_tokens(i) if i in self.replies else 0 for i in ids]
        return AggregatorCalls(np.array(asked, np.int64), self._tokens(ids), self._correct(ids))

    def template_tokens(self, question: int) -> int:
        """Tokens of the aggregator's prompt less what was proposed."""
        speaker = self._aggregator
        return len(speaker.encode(speaker.template.render(self._questions[question], [])))

    def visible_tokens(self, call_id: int) -> int:
        """Tokens of the text after the reasoning, in the expert's own."""
        return self._visible_tokens(call_id)

    def _question_of(self, call_id: int) -> int:
        n = len(self._calls)
        return int(self._calls.question[call_id]) if call_id < n else call_id - n

    def _seed(self, call_id: int) -> int:
        """A call's own seed, whoever runs it and when."""
        return int(self._streams(f"sampling.{call_id}").integers(2**31))

    def _aggregator_prompt(self, question: int) -> tuple[int, ...]:
        """The question and what was proposed, proposals cut at their start while they do not fit."""
        replies = [self.replies[i] for i in self._proposers[question].tolist() if i in self.replies]
        return self._fitted(question, [reply.visible for reply in replies if reply.result.finished])

    def _fitted(self, question: int, proposals: list[str]) -> tuple[int, ...]:
        asked, speaker = self._questions[question], self._aggregator
        while len(tokens := speaker.encode(speaker.template.render(asked, proposals))) > speaker.room:
            longest = max(map(len, proposals), default=0)
            if longest <= SHORTEST_PROPOSAL:
                raise UserInputError(
                    f"execution.models.aggregator: the prompt of question '{asked.id}' has {len(tokens):,} "
                    f"tokens even with the proposals cut; max_model_len {speaker.max_model_len:,} leaves "
                    f"{speaker.room:,}"
                )
            self.shortened.add(question)
            keep = max(longest * 3 // 4, SHORTEST_PROPOSAL)
            proposals = [text[-keep:] for text in proposals]
        return tokens

    def _answer(self, call_id: int) -> str | None:
        return self.replies[call_id].answer if call_id in self.replies else None

    def _correct(self, ids: Sequence[int]) -> Bools:
        golds = [self._questions[self._question_of(i)].gold for i in ids]
        answers = [self._answer(i) for i in ids]
        return np.array([g is not None and a == g for g, a in zip(golds, answers, strict=True)], np.bool_)

    def _tokens(self, ids: Sequence[int]) -> Ints:
        return np.array(
            [self.replies[i].result.output_tokens if i in self.replies else 0 for i in ids], np.int64
        )

    def _visible_tokens(self, call_id: int) -> int:
        reply = self.replies.get(call_id)
        if reply is None:
            return 0
        if reply.visible == reply.result.text.strip():
            return reply.result.output_tokens
        chat = self._speakers[self._experts[int(self._calls.expert[call_id])]].chat
        return min(chat.count(reply.visible), reply.result.output_tokens)
