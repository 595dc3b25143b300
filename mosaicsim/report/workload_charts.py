"""Charts of what had to be computed: lengths, popularity of experts, agreement of their answers."""

from __future__ import annotations

import textwrap

import numpy as np
from matplotlib.axes import Axes

from mosaicsim.analysis.result import Result
from mosaicsim.report.facts import Bucket, CallCounts, agreement, call_counts, experts_of, lengths_of
from mosaicsim.report.style import (
    GREY,
    INK,
    STATES,
    axes_or_new,
    expert_colours,
    lighter,
    percent,
    rows_only,
    say,
)
from mosaicsim.workload.calls import Floats, Ints


def lengths(result: Result, ax: Axes | None = None) -> Axes:
    """Output tokens of each expert's calls: the distribution on a log axis, its mean and 99th percentile."""
    found = {name: lengths_of(result, name) for name in experts_of(result)}
    found = dict(sorted(((n, x) for n, x in found.items() if len(x)), key=lambda item: -item[1].mean()))
    ax = axes_or_new(ax, 1.6 + 0.5 * len(found))
    colours = expert_colours(experts_of(result))
    ax.set_xscale("log")
    for y, (name, tokens) in enumerate(found.items()):
        _ridge(ax, y, tokens, colours[name])
    rows_only(ax, [f"{name}\n{len(tokens):,} calls" for name, tokens in found.items()])
    ax.set_ylim(len(found) - 0.75, -0.95)
    ax.set_xlim(right=6 * max(tokens.max() for tokens in found.values()))
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    ax.set_xlabel("output tokens of a call")
    say(
        ax,
        _length_finding(found),
        "density over log length, all replicates · dot: mean · line: from the median to the 99th percentile",
    )
    return ax


def _ridge(ax: Axes, y: int, tokens: Ints, colour: str) -> None:
    """One expert: a smoothed histogram of the log-lengths, and its marks below."""
    at, density = _density(tokens)
    ax.fill_between(at, y - 0.82 * density / density.max(), y, color=lighter(colour, 0.35), linewidth=0)
    ax.plot([np.median(tokens), np.percentile(tokens, 99)], [y + 0.11] * 2, color=colour, linewidth=1.6)
    ax.plot(tokens.mean(), y + 0.11, "o", color=colour, markersize=5, markeredgecolor="white")
    high = np.percentile(tokens, 99)
    ax.annotate(
        f"mean {tokens.mean():,.0f}, p99 {high:,.0f}", (high, y + 0.11), xytext=(5, -1),
        textcoords="offset points", va="center", fontsize=8, color=INK,
    )  # fmt: skip


def _density(tokens: Ints) -> tuple[Floats, Floats]:
    """Histogram of the logs, smoothed by a narrow bell: (token counts, density), each of shape (bins,)."""
    logs = np.log10(np.maximum(tokens, 1))
    low, high = logs.min() - 0.15, logs.max() + 0.15
    counts, edges = np.histogram(logs, np.linspace(low, high, 121))
    bell = np.exp(-0.5 * (np.arange(-9, 10) / 3) ** 2)
    return 10 ** ((edges[1:] + edges[:-1]) / 2), np.convolve(counts, bell / bell.sum(), mode="same")


def _length_finding(found: dict[str, Ints]) -> str:
    longest, shortest = next(iter(found)), list(found)[-1]
    if longest == shortest:
        return f"{longest} writes {found[longest].mean():,.0f} tokens a call"
    ratio = found[longest].mean() / found[shortest].mean()
    return (
        f"{longest} writes {found[longest].mean():,.0f} tokens a call, {ratio:.0f} times as many as "
        f"{shortest} ({found[shortest].mean():,.0f})"
    )


def popularity(result: Result, ax: Axes | None = None) -> Axes:
    """Calls of each expert, most first, and the share of all output tokens they come to."""
    counts, colours = call_counts(result), expert_colours(experts_of(result))
    order = np.argsort(-counts.calls, kind="stable")
    names = [counts.experts[i] for i in order]
    ax = axes_or_new(ax, 1.5 + 0.34 * len(names))
    written = np.array([lengths_of(result, name).sum() for name in names], np.float64)
    shares, total = written / written.sum(), counts.calls.sum()
    for y, (name, calls) in enumerate(zip(names, counts.calls[order], strict=True)):
        ax.barh(y, calls, 0.72, color=colours[name], linewidth=0)
        ax.annotate(
            f"{calls:,.0f} calls ({percent(calls / total)}), {percent(shares[y])} of the tokens",
            (calls, y), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8,
        )  # fmt: skip
    rows_only(ax, names)
    ax.set_ylim(len(names) - 0.45, -0.55)
    ax.set_xlim(0, counts.calls.max() * 1.35)
    ax.set_xlabel("calls, mean of the replicates" if len(result.workloads) > 1 else "calls")
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    of_each = ", means of the replicates" if len(result.workloads) > 1 else ""
    say(
        ax,
        _popularity_finding(counts, names),
        f"max/min {counts.max_min:.2f}, coefficient of variation {counts.cv:.2f}{of_each}",
    )
    return ax


def _popularity_finding(counts: CallCounts, ranked: list[str]) -> str:
    calls = dict(zip(counts.experts, counts.calls.tolist(), strict=True))
    called = [name for name in ranked if calls[name]]
    most, least = called[0], called[-1]
    if most == least:
        return f"Every call goes to {most}"
    return f"{most} is called {calls[most] / calls[least]:.3g} times as often as {least}"


def agreement_buckets(result: Result, ax: Axes | None = None) -> Axes:
    """Questions by how many of their calls agree: its cost, how often it is right, who skips it."""
    buckets = agreement(result)
    ax = axes_or_new(ax, 1.3 + 0.4 * len(buckets))
    columns = _columns(buckets)
    left = 1 - 0.092 * (len(columns) - 1)
    for y, bucket in enumerate(buckets):
        ax.barh(y, bucket.share, 0.6, color=lighter(STATES["decode"], 0.28 * y), linewidth=0)
        share = f"{bucket.share:.1%}" if bucket.share >= 0.0005 else "<0.1%"
        ax.annotate(
            share, (bucket.share, y), xytext=(4, 0), textcoords="offset points", va="center",
            fontsize=9, fontweight="bold",
        )  # fmt: skip
    rows_only(ax, [bucket.name for bucket in buckets])
    ax.set_xlim(0, max(bucket.share for bucket in buckets) / (left - 0.2))
    ax.spines["bottom"].set_visible(False)
    ax.tick_params(axis="x", length=0, labelbottom=False)
    for x, (header, cells) in zip(np.linspace(left, 1, len(columns)), columns.items(), strict=True):
        _column(ax, float(x), header, cells)
    say(ax, _agreement_finding(buckets), room=max(header.count("\n") for header in columns) + 1)
    return ax


def _columns(buckets: list[Bucket]) -> dict[str, list[str]]:
    """Figures of each bucket by header; a gate that skips nothing has no column."""
    columns = {
        "tokens\na call": [f"{bucket.tokens:,.0f}" for bucket in buckets],
        "plurality\nright": [f"{bucket.plurality_right:.1%}" for bucket in buckets],
        "aggregator\nright": [f"{bucket.aggregator_right:.1%}" for bucket in buckets],
    }
    for gate in buckets[0].skipped:
        shares = [bucket.skipped[gate] for bucket in buckets]
        if any(shares):
            words = gate.replace("(", " (")
            header = "skipped by\n" + textwrap.fill(words, 12, break_long_words=False)
            columns[header] = ["all" if s == 1 else percent(s) if s else "none" for s in shares]
    return columns


def _column(ax: Axes, x: float, header: str, cells: list[str]) -> None:
    """A column of text that ends at ``x``, in fractions of the axes."""
    ax.annotate(
        header, (x, 1), xytext=(0, 3), xycoords="axes fraction", textcoords="offset points", ha="right",
        va="bottom", fontsize=8, color=GREY,
    )  # fmt: skip
    for y, cell in enumerate(cells):
        ax.annotate(cell, (x, y), xycoords=("axes fraction", "data"), ha="right", va="center", fontsize=9)


def _agreement_finding(buckets: list[Bucket]) -> str:
    answered = [bucket for bucket in buckets if bucket.votes] or buckets
    first, last = answered[0], answered[-1]
    how_many = f"All {first.k}" if first.votes == first.k else f"{first.votes} of {first.k}"
    agreed = f"{how_many} calls agree on {first.share:.0%} of the questions"
    if first is last:
        return agreed
    return f"{agreed}; the {last.name} questions take {last.tokens / first.tokens:.1f} times as many tokens"
