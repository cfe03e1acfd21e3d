"""Processes that play the ranks of process groups of 1 to 4, on gloo, kept for many tests."""

import os
import tempfile
import traceback
from multiprocessing.connection import wait

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

MOST = 4
TIMEOUT = 120
# What takes long to import, which one process does for all ranks.
PRELOADED = [
    "tests.conftest",
    "torch.distributed.tensor",
    "torch.distributed.fsdp",
    "torch._dynamo",
]


class Ranks:
    """``ranks(world, function, *args)`` runs ``function(group, *args)`` on the first ranks.

    The function is one of a module, and returns nothing: it asserts. What fails on a rank fails
    here, with the rank's traceback; the processes are then started anew, since the others may wait
    for it.
    """

    def __init__(self):
        self._pipes, self._processes = [], []

    def __call__(self, world, function, *args):
        if not self._processes:
            self._start()
        for pipe in self._pipes[:world]:
            pipe.send((world, function, args))
        failures, waiting = [], {pipe: rank for rank, pipe in enumerate(self._pipes[:world])}
        while waiting:
            ready = wait(list(waiting), TIMEOUT)
            if not ready:
                failures.append(f"ranks {list(waiting.values())} do not answer")
                break
            for pipe in ready:
                rank = waiting.pop(pipe)
                failure = _answer(pipe)
                if failure:
                    failures.append(f"rank {rank} of {world}:\n{failure}")
        if failures:
            self.close()
            raise AssertionError(failures[0])

    def _start(self):
        context = mp.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        store = os.path.join(tempfile.mkdtemp(), "store")
        for rank in range(MOST):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, store, theirs), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def close(self):
        """End the processes."""
        for process in self._processes:
            process.kill()
            process.join()
        self._pipes, self._processes = [], []


def _answer(pipe):
    try:
        return pipe.recv()
    except EOFError:
        return "the process has ended"


def _serve(rank, store, pipe):
    import tests.conftest  # noqa: F401  (sets up Triton's interpreter)
    from tests.cuda import emulated

    emulated.install()
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=MOST)
    groups = {world: dist.new_group(range(world)) for world in range(1, MOST + 1)}
    while True:
        world, function, args = pipe.recv()
        torch.manual_seed(0)
        try:
            function(groups[world], *args)
        except BaseException:
            pipe.send(traceback.format_exc())
            os._exit(1)  # whoever waits for this rank learns that it need not
        pipe.send("")
