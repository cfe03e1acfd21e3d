"""Kernels by chance: who does what to shared memory at which step, and whether that is a race."""

from itertools import combinations
from typing import NamedTuple

import numpy as np

# As in selftest.cpp.
NOTHING, LOAD, STORE, STORE_TO_PEER, WARP_BARRIER, BLOCK_BARRIER, CLUSTER_BARRIER = range(7)
WORDS = 8

STEPS, BLOCKS, THREADS, WARP = 20, 2, 64, 32
# Threads that meet in a barrier, and the share of steps at which they do.
BARRIERS = {
    WARP_BARRIER: (WARP, 0.4),
    BLOCK_BARRIER: (THREADS, 0.3),
    CLUSTER_BARRIER: (THREADS * BLOCKS, 0.1),
}
ACCESSES = 0.008  # the share of all steps of all threads


class Access(NamedTuple):
    """One thread's, to a word of a block's memory."""

    step: int
    block: int
    thread: int
    owner: int
    word: int
    writes: bool


class Script(NamedTuple):
    """What is done, and to which word, by (step, block, thread)."""

    kinds: np.ndarray
    words: np.ndarray

    @classmethod
    def by_chance(cls, random):
        kinds = random.choice([LOAD, LOAD, STORE, STORE_TO_PEER], (STEPS, BLOCKS, THREADS))
        kinds[random.random(kinds.shape) > ACCESSES] = NOTHING
        for barrier, (threads, share) in BARRIERS.items():
            groups = kinds.reshape(STEPS, -1, threads)
            groups[random.random(groups.shape[:2]) < share] = barrier
        kinds[[0, -1]] = CLUSTER_BARRIER
        return cls(kinds, random.integers(0, WORDS, kinds.shape))

    def numbers(self):
        """For the kernel."""
        return (self.kinds * WORDS + self.words).astype(np.float32)

    def grid(self):
        """Blocks, threads, bytes of shared memory, blocks of a cluster."""
        return BLOCKS, 1, THREADS, 4 * WORDS, BLOCKS

    def has_race(self):
        """By the definition: some two accesses with no barrier that both threads meet between."""
        return any(self._race(*pair) for pair in combinations(self._accesses(), 2))

    def _accesses(self):
        for step, block, thread in np.argwhere((self.kinds >= LOAD) & (self.kinds < WARP_BARRIER)):
            kind, word = (table[step, block, thread] for table in self)
            owner = block ^ 1 if kind == STORE_TO_PEER else block
            yield Access(step, block, thread, owner, word, kind != LOAD)

    def _race(self, first, second):
        if (first.owner, first.word) != (second.owner, second.word):
            return False
        if not (first.writes or second.writes):
            return False
        if (first.block, first.thread) == (second.block, second.thread):
            return False
        between = self.kinds[first.step + 1 : second.step, first.block, first.thread]
        return not (between >= _least_barrier(first, second)).any()


def _least_barrier(first, second):
    """Barriers are numbered by how many threads they join."""
    if first.block != second.block:
        return CLUSTER_BARRIER
    return WARP_BARRIER if first.thread // WARP == second.thread // WARP else BLOCK_BARRIER
