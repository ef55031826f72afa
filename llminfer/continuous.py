"""Continuous batching: the batch changes from step to step, as vLLM schedules."""

from __future__ import annotations

import math
from array import array
from collections.abc import Generator
from typing import Any

import numpy as np
import simpy

from llminfer.config import SimulationConfig
from llminfer.lines import waiting_line
from llminfer.record import RunRecord
from llminfer.scheduler import Requests, Scheduler
from llminfer.workload import Workload

Process = Generator[simpy.Event, Any, None]


class ContinuousBatchingServer:
    def __init__(
        self, env: simpy.Environment, config: SimulationConfig, workload: Workload
    ) -> None:
        self.env = env
        self.config = config
        self.workload = workload
        n = len(workload)
        blank = array("d", bytes(8 * n))
        self.requests = Requests(
            array("d", workload.arrival_time.tobytes()),
            array("q", workload.prompt_length.tobytes()),
            array("q", workload.output_length.tobytes()),
            blank[:],
            blank[:],
            blank[:],
        )
        self.scheduler = Scheduler(
            config, self.requests, waiting_line(config.policy(), workload)
        )

    def run(self) -> Process:
        arrival = array("d", self.workload.arrival_time.tobytes())
        arrival.append(math.inf)
        scheduler, env = self.scheduler, self.env
        begin, finish, add, timer = (
            scheduler.begin,
            scheduler.finish,
            scheduler.line.add,
            env.timeout,
        )
        arrived = 0
        n = len(self.workload)
        now = env.now
        clock = env.now
        next_arrival = arrival[0]
        while True:
            while next_arrival <= now:
                add(arrived)
                arrived += 1
                next_arrival = arrival[arrived]
            end = begin(now, arrived, next_arrival)
            if end == math.inf:
                if next_arrival == math.inf:
                    break
                now = next_arrival
                continue
            delay = end - clock
            if delay < 0.0:
                delay = 0.0
            clock += delay
            yield timer(delay)
            finish()
            now = end
