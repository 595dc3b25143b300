"""Votes: how many of a question's slots hold the same answer."""

from __future__ import annotations

from mosaicsim.workload.calls import NO_ANSWER, Ints


def vote_counts(answers: Ints) -> Ints:
    """Votes for each slot's answer, shape (questions, k) like ``answers``; 0 where there is no answer."""
    votes: Ints = (answers[:, :, None] == answers[:, None, :]).sum(axis=2)
    votes[answers == NO_ANSWER] = 0
    return votes
