"""Continuous batching at iteration level, as vLLM does it, with equal iterations covered in one span.

Between two structural changes (admission, finish, preemption, cancel) every decode iteration is the same
batch one token longer, so a span of n iterations costs an arithmetic series and is one step of the loop here.
The state that makes this possible is small: the batch size B, the context sum C, a heap of finish steps
counted on the engine's own iteration counter S, and a histogram of context length modulo the block size,
which gives the iteration at which the KV cache runs out in closed form.

What one iteration does (``tests/naive_engine.py`` says the same thing step by step):

* ``v1`` (vLLM's V1 scheduler): decodes first, each taking one token of ``max_num_batched_tokens``; a sequence
  that needs a KV block when none is free preempts the last admitted one, which loses its KV and returns to
  the head of the queue; if nothing was preempted, waiting calls are admitted first come first served while
  budget, ``max_num_seqs`` and KV for the *whole* prompt allow, the last of them possibly by a chunk only.
* ``v0`` (vLLM 0.7): if a waiting call can be admitted, an iteration of whole prompts alone, in which decodes
  stall; otherwise a decode iteration, with the same preemption rule.

A preempted call recomputes prompt and generated tokens when it returns. With ``prefix_caching``, calls
of one prompt group share the full blocks of their prompt while one of them holds these blocks, and a
preempted call finds again what is left of its own: free blocks are taken from the head of a queue, and a
call's join its end last block first, as in vLLM's block pool, so what was computed first is lost last.

The engine owns no clock: its time starts at 0 and a generator hands out the next moment of interest, so
the same code runs a session in one go or in step with SimPy.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf, sqrt
from typing import Literal

from mosaicsim.errors import InfeasibleError
from mosaicsim.executors.cached_blocks import CachedBlocks
from mosaicsim.hardware.latency import StepTables

_SHIFT = 32
_MASK = (1 << _SHIFT) - 1
"""A heap entry is ``finish_step << _SHIFT | call``: one integer compares faster than a tuple."""

_NOT_RUNNING = -1


@dataclass(frozen=True)
class EngineConfig:
    """An engine's resolved settings, in vLLM's names.

    ``num_gpu_blocks`` blocks of ``block_size`` tokens; ``watermark_blocks`` stay free when a call is
    admitted beside others. ``v0`` prefills whole prompts, so there a prompt above
    ``max_num_batched_tokens`` runs alone.
    """

    policy: Literal["v0", "v1"]
    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int
    num_gpu_blocks: int
    watermark_blocks: int = 0
    prefix_caching: bool = False


@dataclass
class EngineStats:
    """Seconds of engine time by state, and counts; ``tail_since`` is when the current tail began."""

    prefill_s: float = 0.0
    decode_s: float = 0.0
    tail_s: float = 0.0
    tail_since: float = inf
    preemptions: int = 0
    spans: int = 0


class Engine:
    """One continuous-batching engine and the calls it was given, as columns.

    Calls are known by their row. ``start``, ``first_token`` and ``finish`` hold engine seconds (-1.0 until
    they happen), ``preempted`` how often a call lost its KV, ``cancelled`` which calls were cancelled before
    they finished, ``withdrawn`` which were taken back. ``generated`` is up to date for
    calls that are neither running nor finished: see :meth:`tokens_generated`. From ``clock`` on, ``batch``
    sequences decode in iterations of ``step_s``; an ``idle`` engine has nothing to do.
    """

    def __init__(self, config: EngineConfig, tables: StepTables, *, reactive: bool = False) -> None:
        """Make an idle engine. A ``reactive`` one pauses at each finish so that the caller can answer it."""
        self.config = config
        self.stats = EngineStats()
        self.prompt: list[int] = []
        self.output: list[int] = []
        self.start: list[float] = []
        self.first_token: list[float] = []
        self.finish: list[float] = []
        self.generated: list[int] = []
        self.preempted: list[int] = []
        self.cancelled: set[int] = set()
        self.withdrawn: set[int] = set()
        self.finished: list[int] = []
        self.clock = 0.0
        self.batch, self.step_s, self.idle = 0, 0.0, True
        self._tables = tables
        self._reactive = reactive
        self._group: list[int] = []
        self._finish_step: list[int] = []
        self._arrivals: deque[tuple[float, int]] = deque()
        self._cancels: list[int] = []
        self._ahead: set[int] = set()
        self._leaving: set[int] = set()
        self._loop = self._run()
        next(self._loop)

    def add(
        self,
        prompt_tokens: Sequence[int],
        output_tokens: Sequence[int],
        groups: Sequence[int] | None = None,
        arrive: Sequence[float] | None = None,
        *,
        generated: Sequence[int] | None = None,
        ahead: bool = False,
    ) -> range:
        """Queue calls and return their rows, which wait from ``arrive`` on (engine seconds, default 0).

        ``groups`` marks calls with an identical prompt by an equal number (negative: no twin). Arrivals must
        not precede those added before. Calls added ``ahead`` wait before those that wait then. Of calls that
        come from another engine so many tokens are ``generated`` (default 0): they are computed anew.
        Raises InfeasibleError for a call that no empty KV cache can hold.
        """
        self._check_fits(prompt_tokens, output_tokens)
        n = len(prompt_tokens)
        rows = range(len(self.prompt), len(self.prompt) + n)
        self.prompt.extend(prompt_tokens)
        self.output.extend(output_tokens)
        self._group.extend([-1] * n if groups is None else groups)
        self._finish_step.extend([_NOT_RUNNING] * n)
        for times in (self.start, self.first_token, self.finish):
            times.extend([-1.0] * n)
        self.generated.extend([0] * n if generated is None else generated)
        self.preempted.extend([0] * n)
        times_rows = list(zip([0.0] * n if arrive is None else arrive, rows, strict=True))
        if ahead:
            self._ahead.update(rows)
            times_rows.reverse()
        self._arrivals.extend(times_rows)
        return rows

    def cancel(self, row: int) -> None:
        """Drop a call at the end of the iteration in progress; a finished call stays finished."""
        self._cancels.append(row)

    def withdraw(self, row: int, *, started: bool = False) -> bool:
        """Take back a call that has not started; False, and nothing happens, if it has, or has ended.

        One that has ``started`` is taken at the end of the iteration in progress, unless it ends with it:
        ``finish`` is set then, and it is ``withdrawn`` or not.
        """
        if self.finish[row] >= 0 or row in self.withdrawn or row in self._leaving:
            return False
        if self.start[row] >= 0 and not started:
            return False
        (self.withdrawn if self.start[row] < 0 else self._leaving).add(row)
        self._cancels.append(row)
        return True

    def advance(self, until: float = inf) -> float:
        """Run every iteration that ends by ``until`` and return the next moment of interest.

        Calls added or cancelled since the last call take effect at the end of the iteration that was in
        progress at *its* ``until``. Returns ``inf`` when nothing is left to do. A reactive engine returns its
        own ``clock`` right after calls finished; ``finished`` lists them, and calls that were cancelled,
        until the caller empties it.
        """
        return self._loop.send(until)

    def tokens_generated(self, row: int) -> int:
        """Tokens a call has produced: all of them when it finished, what it had when it was taken out."""
        if row in self.cancelled or row in self.withdrawn or self.finish[row] < 0:
            return self.generated[row]
        return self.output[row]

    def _check_fits(self, prompt_tokens: Sequence[int], output_tokens: Sequence[int]) -> None:
        capacity = self.config.num_gpu_blocks * self.config.block_size
        # the last token is sampled but never written to the cache
        largest = max(map(int.__add__, prompt_tokens, output_tokens), default=0) - 1
        if largest > capacity:
            raise InfeasibleError(
                f"a call needs {largest} tokens of KV cache, the engine has {capacity} "
                f"({self.config.num_gpu_blocks} blocks of {self.config.block_size})"
            )

    def _run(self) -> Generator[float, float, None]:
        """The loop: form an iteration or a span, wait for leave to run it, run it, retire what finished.

        Yields the end of what it is about to run and is sent the time up to which it may run. All state is
        local because the loop body runs several times per call and a local costs a third of an attribute.

        t: engine seconds, S: decode iterations so far, B: decode sequences, C: sum of the context lengths of
        the next decode iteration, F: free blocks, hist[p]: sequences that take a block when S % block_size
        is p (stored twice in a row, so that a window is one slice).
        """
        cfg, tables, stats = self.config, self._tables, self.stats
        v1, sharing, reactive = cfg.policy == "v1", cfg.prefix_caching, self._reactive
        max_seqs, budget, bs = cfg.max_num_seqs, cfg.max_num_batched_tokens, cfg.block_size
        watermark, quarter = cfg.watermark_blocks, cfg.max_num_seqs / 4
        dec_base, dec_ctx = tables.decode_base, tables.decode_context
        mix_base, mix_ctx, mix_pair = tables.mixed_base, tables.mixed_context, tables.mixed_pair
        tokens_s = tables.tokens
        prefill_s = tables.prefill if v1 else tables.prefill_alone
        prompt, output, group, finish_step = self.prompt, self.output, self._group, self._finish_step
        start, first_token, finish = self.start, self.first_token, self.finish
        generated, preempted = self.generated, self.preempted
        arrivals, cancels, finished = self._arrivals, self._cancels, self.finished
        ahead = self._ahead

        waiting: deque[int] = deque()
        order: list[int] = []  # running calls as admitted, with leftovers of those that have ended since
        fin: list[int] = []  # heap of finish steps, with leftovers of calls preempted or cancelled since
        hist = [0] * (2 * bs)
        holders: dict[int, int] = {}
        cached = CachedBlocks()
        findable = cached.runs  # empty but for preempted calls that wait: checked first, for speed
        t, S, B, C, F = 0.0, 0, 0, 0, cfg.num_gpu_blocks
        partial, partial_left = _NOT_RUNNING, 0

        def release(row: int, blocks: int) -> int:
            """Blocks that become free when a holder of ``blocks`` leaves: shared ones only with the last."""
            g = group[row]
            if not sharing or g < 0:
                return blocks
            holders[g] -= 1
            return blocks - (prompt[row] - 1) // bs if holders[g] else blocks

        def drop(row: int) -> None:
            """Take a running call out of the batch, its progress kept in ``generated``."""
            nonlocal B, C, F
            generated[row] = output[row] - (finish_step[row] - S)
            finish_step[row] = _NOT_RUNNING
            ctx = prompt[row] + generated[row]
            phase = (S + 1 - ctx) % bs
            hist[phase] -= 1
            hist[phase + bs] -= 1
            B -= 1
            C -= ctx
            F += release(row, (ctx + bs - 2) // bs)

        def drop_partial() -> int:
            """Take the half-prefilled call out of the batch and return its row."""
            nonlocal F, partial
            row, partial = partial, _NOT_RUNNING
            F += release(row, -(-(prompt[row] + generated[row]) // bs))
            return row

        def preempt(row: int, computed: int, free: int) -> None:
            """Send a call just dropped back to the head of the queue; ``free`` blocks were free before."""
            preempted[row] += 1
            stats.preemptions += 1
            waiting.appendleft(row)
            if sharing:
                shared = (prompt[row] - 1) // bs if holders.get(group[row]) else 0
                cached.append(row, shared, computed // bs, freed=F - free, free=free)

        def prefill_beyond(tokens: int) -> float:
            """Seconds for a prompt longer than the table, which only v0 runs in one iteration."""
            return prefill_s[-1] + (tokens + 1 - len(prefill_s)) * (prefill_s[-1] - prefill_s[-2])

        def steps_to(moment: float) -> int:
            """Fewest decode iterations (at least 1) after which the clock has reached ``moment``."""
            x, half = moment - t, dec_ctx * B / 2
            linear = dec_base[B] + dec_ctx * C - half
            k = max(1, int(2 * x / (linear + sqrt(linear * linear + 4 * half * x)))) if x > 0 else 1
            while k * linear + half * k * k < x:
                k += 1
            return k

        horizon = yield inf
        while True:
            if cancels:
                for row in cancels:
                    if finish[row] >= 0:
                        self._leaving.discard(row)
                        continue
                    if finish_step[row] >= 0:
                        drop(row)
                    elif row == partial:
                        drop_partial()
                    elif row in waiting:
                        waiting.remove(row)
                    finish[row] = t
                    if row in self._leaving:
                        self._leaving.remove(row)
                        self.withdrawn.add(row)
                    if row in self.withdrawn:
                        continue
                    self.cancelled.add(row)
                    if reactive:
                        finished.append(row)
                cancels.clear()
            while arrivals and arrivals[0][0] <= t:
                row = arrivals.popleft()[1]
                if finish[row] < 0:
                    (waiting.appendleft if row in ahead else waiting.append)(row)
            if not B and not waiting and partial < 0:
                self.clock, self.idle = t, True
                while not cancels and (not arrivals or arrivals[0][0] > horizon):
                    now = horizon
                    horizon = yield arrivals[0][0] if arrivals else inf
                if not cancels:
                    t = arrivals[0][0]
                elif t < now < inf:
                    t = now
                continue

            # form the iteration: go on with a chunk, admit; or preempt for the decodes
            fresh: list[int] = []  # calls whose prefill ends with this iteration
            tokens = behind = taken = 0
            pairs = 0.0
            need = hist[S % bs]
            if not v1 or need <= F:
                if findable and v1:
                    cached.take(need)
                    taken = need
                if partial >= 0:
                    tokens = min(partial_left, budget - B)
                    behind = prompt[partial] + generated[partial] - partial_left
                    if mix_pair:
                        pairs = tokens * (behind + tokens / 2)
                    partial_left -= tokens
                    if not partial_left:
                        fresh.append(partial)
                        partial = _NOT_RUNNING
                if waiting and B + len(fresh) < max_seqs:
                    left = budget - tokens - B if v1 else budget
                    slots = max_seqs - B - len(fresh)
                    room = F - need if v1 else F
                    while waiting and left > 0 and slots:
                        row = waiting[0]
                        new = prompt[row] + generated[row]
                        blocks = -(-new // bs)
                        held = past = 0
                        if sharing:
                            if holders.get(group[row]):
                                held = (prompt[row] - 1) // bs
                                blocks -= held
                            past = (cached.found(row, held) if findable else held) * bs
                            new -= past
                        if blocks > room - watermark and (B or fresh or blocks > room):
                            break
                        if new > left and not v1 and fresh:
                            break
                        waiting.popleft()
                        if sharing and group[row] >= 0:
                            holders[group[row]] = holders.get(group[row], 0) + 1
                        if start[row] < 0:
                            start[row] = t
                        F -= blocks
                        room -= blocks
                        slots -= 1
                        if findable:
                            cached.take(blocks - cached.claim(row, held))
                        if new > left and v1:
                            partial, partial_left = row, new - left
                            new = left
                        else:
                            fresh.append(row)
                        behind += past
                        if mix_pair:
                            pairs += new * (past + new / 2)
                        tokens += new
                        left -= new
            if need > F and not tokens:
                while need > F:
                    free = F
                    if partial >= 0:
                        computed = prompt[partial] + generated[partial] - partial_left
                        preempt(drop_partial(), computed, free)
                        continue
                    row = order.pop()
                    while finish_step[row] < 0:
                        row = order.pop()
                    drop(row)
                    preempt(row, prompt[row] + generated[row] - 1, free)
                    need = hist[S % bs]

            stats.spans += 1
            if tokens:
                share = prefill_s[tokens] if tokens < len(prefill_s) else prefill_beyond(tokens)
                share += mix_ctx * behind + mix_pair * pairs
                if v1:
                    share += tokens_s[B + tokens] - tokens_s[B]
                    dt = share + tokens_s[B] + mix_base[B] + mix_ctx * C
                else:
                    dt = share + mix_base[0]
                while t + dt > horizon:
                    self.clock, self.batch, self.step_s, self.idle = t, B if v1 else 0, dt, False
                    horizon = yield t + dt
                t += dt
                stats.prefill_s += share
                stats.decode_s += dt - share
                if v1:
                    F -= need
                    S += 1
                    C += B
            else:
                while finish_step[fin[0] & _MASK] != fin[0] >> _SHIFT:
                    heappop(fin)
                n = (fin[0] >> _SHIFT) - S
                if F < (n // bs + 1) * B:
                    cycles, spare = divmod(F, B)
                    k, p = cycles * bs, S % bs
                    while k < n and hist[p] <= spare:
                        spare -= hist[p]
                        k += 1
                        p += 1
                    n = min(n, k)
                base, moment = dec_base[B], inf
                while True:
                    if arrivals and not waiting and B < max_seqs:
                        moment = min(moment, arrivals[0][0])
                    dt = n * (base + dec_ctx * (C + B * (n - 1) / 2))
                    if moment < t + dt:
                        n = min(n, steps_to(moment))
                        dt = n * (base + dec_ctx * (C + B * (n - 1) / 2))
                    if t + dt <= horizon:
                        break
                    self.clock, self.batch, self.step_s, self.idle = t, B, base + dec_ctx * C, False
                    moment = horizon
                    horizon = yield t + dt
                    if not cancels:
                        moment = inf
                if B < quarter and not waiting and not arrivals:
                    stats.tail_s += dt
                    stats.tail_since = min(stats.tail_since, t)
                else:
                    stats.decode_s += dt
                    stats.tail_since = inf
                p = S % bs
                grown = n // bs * B + sum(hist[p : p + n % bs])
                F -= grown
                if findable:
                    cached.take(grown - taken)
                t += dt
                S += n
                C += n * B

            # retire what finished, then let the fresh ones join the decodes
            last = S << _SHIFT | _MASK
            while fin and fin[0] <= last:
                row = heappop(fin) & _MASK
                if finish_step[row] != S:
                    continue
                finish_step[row] = _NOT_RUNNING
                ctx = prompt[row] + output[row]
                phase = (S + 1 - ctx) % bs
                hist[phase] -= 1
                hist[phase + bs] -= 1
                B -= 1
                C -= ctx
                F += release(row, (ctx + bs - 2) // bs) if sharing else (ctx + bs - 2) // bs
                finish[row] = t
                if reactive:
                    finished.append(row)
            for row in fresh:
                g = generated[row] + 1
                if g == 1:
                    first_token[row] = t
                ctx = prompt[row] + g
                if g == output[row]:
                    finish[row] = t
                    F += release(row, (ctx + bs - 2) // bs)
                    if reactive:
                        finished.append(row)
                    continue
                ends = S + output[row] - g
                finish_step[row] = ends
                heappush(fin, ends << _SHIFT | row)
                order.append(row)
                phase = (S + 1 - ctx) % bs
                hist[phase] += 1
                hist[phase + bs] += 1
                B += 1
                C += ctx
            if finished:
                self.clock, self.batch, self.step_s, self.idle = t, B, dec_base[B] + dec_ctx * C, False
                horizon = yield t
