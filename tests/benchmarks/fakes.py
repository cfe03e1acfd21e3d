"""A GPU that is none: what the benchmark asks of torch.cuda, answered and written down."""

import torch


class Device:
    """Time passes in it by the steps it is told of; the host is always ahead, unless it syncs."""

    def __init__(self):
        self.log = []
        self.milliseconds = 0.0
        self.tick = 0.0  # of each event
        self.caught_up = False

    def install(self, monkeypatch):
        names = {
            "Event": lambda enable_timing: Event(self, enable_timing),
            "_sleep": lambda cycles: self.log.append("lead"),
            "synchronize": lambda: self.log.append("synchronize"),
            "empty_cache": lambda: self.log.append("empty cache"),
        }
        for name, fake in names.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        return self

    def step(self, milliseconds=2.0):
        """Stands for a kernel."""
        self.log.append("step")
        self.milliseconds += milliseconds


class Event:
    def __init__(self, device, enable_timing):
        assert enable_timing
        self.device = device

    def record(self):
        self.device.log.append("record")
        self.device.milliseconds += self.device.tick
        self.at = self.device.milliseconds

    def query(self):
        return self.device.caught_up

    def synchronize(self):
        self.device.log.append("wait")

    def elapsed_time(self, end):
        return end.at - self.at
