"""The specification of the engine, one iteration at a time: slow, plain, and the oracle of the fast one."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil

from mosaicsim.executors.engine import EngineConfig
from mosaicsim.hardware.latency import StepTables


@dataclass
class Sequence:
    row: int
    prompt: int
    output: int
    group: int
    arrive: float
    generated: int = 0
    computed: int = 0
    blocks: int = 0
    decoding: bool = False
    start: float = -1.0
    first_token: float = -1.0
    finish: float = -1.0
    preempted: int = 0
    cancelled: bool = False

    @property
    def tokens(self) -> int:
        return self.prompt + self.generated


@dataclass
class NaiveEngine:
    config: EngineConfig
    tables: StepTables
    arriving: list[Sequence] = field(default_factory=list)
    waiting: list[Sequence] = field(default_factory=list)
    running: list[Sequence] = field(default_factory=list)
    t: float = 0.0
    most_blocks: int = 0
    most_running: int = 0
    free_queue: list[tuple[int, int] | None] = field(default_factory=list)
    """Free blocks, next to be taken first: the (row, block) whose KV is still in them, or None."""

    def __post_init__(self) -> None:
        self.free_queue = [None] * self.config.num_gpu_blocks

    def run(self, sequences: list[Sequence], cancels: dict[int, float]) -> None:
        """Run all to the end; ``cancels`` maps a row to the moment its cancel is asked for."""
        self.arriving = sorted(sequences, key=lambda s: s.arrive)
        pending = sorted((moment, row) for row, moment in cancels.items())
        by_row = {s.row: s for s in sequences}
        while True:
            while pending and pending[0][0] <= self.t:
                self.cancel(by_row[pending.pop(0)[1]])
            while self.arriving and self.arriving[0].arrive <= self.t:
                sequence = self.arriving.pop(0)
                if not sequence.cancelled:
                    self.waiting.append(sequence)
            if self.running or self.waiting:
                self.step()
            elif self.arriving or pending:
                self.t = min([s.arrive for s in self.arriving[:1]] + [m for m, _ in pending[:1]])
            else:
                return

    def used_blocks(self) -> int:
        """Blocks in use; the full prompt blocks of a group are held once."""
        total = 0
        groups: dict[int, int] = {}
        for s in self.running:
            total += s.blocks
            if self.shares(s):
                groups[s.group] = groups.get(s.group, 0) + 1
                if groups[s.group] > 1:
                    total -= self.shared_blocks(s)
        return total

    def free_blocks(self) -> int:
        return self.config.num_gpu_blocks - self.used_blocks()

    def shares(self, s: Sequence) -> bool:
        return self.config.prefix_caching and s.group >= 0

    def shared_blocks(self, s: Sequence) -> int:
        return (s.prompt - 1) // self.config.block_size

    def blocks_for(self, tokens: int) -> int:
        return ceil(tokens / self.config.block_size)

    def cancel(self, s: Sequence) -> None:
        if s.finish >= 0:
            return
        s.cancelled, s.finish = True, self.t
        if s in self.running:
            self.running.remove(s)
            self.release(s)
        elif s in self.waiting:
            self.waiting.remove(s)

    def held_by_twins(self, s: Sequence) -> int:
        if self.shares(s) and any(r.group == s.group for r in self.running if r is not s):
            return self.shared_blocks(s)
        return 0

    def release(self, s: Sequence) -> None:
        """Give back the blocks of a sequence that is out of ``running``, last block first."""
        full = s.computed // self.config.block_size if self.config.prefix_caching else 0
        blocks = reversed(range(self.held_by_twins(s), s.blocks))
        self.free_queue += [(s.row, i) if i < full else None for i in blocks]

    def reuse(self, s: Sequence) -> int:
        """Take what ``s`` finds of its own out of the free queue; how many of its first blocks are computed."""
        found = self.found(s)
        reused = [(s.row, i) for i in range(self.held_by_twins(s), found)]
        left = [block for block in self.free_queue if block not in reused]
        self.free_queue = [None if block and block[0] == s.row else block for block in left]
        return found

    def found(self, s: Sequence) -> int:
        found = self.held_by_twins(s)
        while (s.row, found) in self.free_queue:
            found += 1
        return found

    def preempt_last(self) -> None:
        victim = self.running.pop()
        self.release(victim)
        victim.computed = victim.blocks = 0
        victim.decoding = False
        victim.preempted += 1
        self.waiting.insert(0, victim)

    def grow_decodes(self) -> bool:
        """Give each decode the block its next token needs; whether somebody was preempted for it."""
        preempted = False
        i = 0
        while i < len(self.running):
            s = self.running[i]
            if s.decoding:
                while self.blocks_for(s.tokens) > s.blocks:
                    if self.free_blocks() > 0:
                        s.blocks += 1
                        self.free_queue.pop(0)
                        continue
                    self.preempt_last()
                    preempted = True
                    if s not in self.running:
                        break
            i += 1
        return preempted

    def admit(self, budget: int, chunked: bool) -> list[tuple[Sequence, int]]:
        admitted: list[tuple[Sequence, int]] = []
        while self.waiting and budget > 0 and len(self.running) < self.config.max_num_seqs:
            s = self.waiting[0]
            need = self.blocks_for(s.tokens) - self.held_by_twins(s)
            spare = self.free_blocks() - need
            if spare < 0 or (spare < self.config.watermark_blocks and self.running):
                break
            new = s.tokens - self.found(s) * self.config.block_size
            if new > budget and not chunked and admitted:
                break
            chunk = min(new, budget) if chunked else new
            self.waiting.pop(0)
            reused = self.reuse(s) - self.held_by_twins(s)
            del self.free_queue[: need - reused]
            self.running.append(s)
            s.blocks = self.blocks_for(s.tokens)
            s.computed = s.tokens - new
            if s.start < 0:
                s.start = self.t
            admitted.append((s, chunk))
            budget -= chunk
        return admitted

    def step(self) -> None:
        if self.config.policy == "v1":
            preempted = self.grow_decodes()
            decodes = [s for s in self.running if s.decoding]
            budget = self.config.max_num_batched_tokens - len(decodes)
            prefills: list[tuple[Sequence, int]] = []
            for s in self.running:
                if s not in decodes:
                    chunk = min(s.tokens - s.computed, budget)
                    prefills.append((s, chunk))
                    budget -= chunk
            if not preempted:
                prefills += self.admit(budget, chunked=True)
        else:
            decodes = list(self.running)
            prefills = self.admit(self.config.max_num_batched_tokens, chunked=False)
            if prefills:
                decodes = []
            else:
                self.grow_decodes()
                decodes = list(self.running)
        self.execute(decodes, prefills)

    def execute(self, decodes: list[Sequence], prefills: list[tuple[Sequence, int]]) -> None:
        batch = len(decodes)
        context = sum(s.tokens for s in decodes)
        tokens = sum(chunk for _, chunk in prefills)
        tables = self.tables
        if tokens:
            context += sum(s.computed for s, _ in prefills)
            pairs = sum(chunk * (s.computed + chunk / 2) for s, chunk in prefills)
            self.t += tables.mixed_s(batch, tokens, context, pairs)
        else:
            self.t += tables.decode_s(batch, context)
        assert len(self.free_queue) == self.free_blocks()
        self.most_blocks = max(self.most_blocks, self.used_blocks())
        self.most_running = max(self.most_running, len(self.running))
        for s, chunk in prefills:
            s.computed += chunk
        for s in decodes:
            s.computed += 1
        for s in list(self.running):
            if s.computed == s.tokens:
                s.generated += 1
                s.decoding = True
                if s.generated == 1:
                    s.first_token = self.t
                if s.generated == s.output:
                    s.finish = self.t
                    self.running.remove(s)
                    self.release(s)
