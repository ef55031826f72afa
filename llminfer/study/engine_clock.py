"""What the rules compose when steps begin and end as an engine's own did.

A simulated run differs from a measured one in what its steps hold or in how long they
take, and each brings the other about. With the clock of the engine only the rules can
differ.
"""

import math
from typing import Any

import numpy as np
import pandas as pd

from llminfer.base.errors import fail
from llminfer.config import SimulationConfig
from llminfer.data import ServedLog
from llminfer.servers.event_log import RequestTimes
from llminfer.servers.queues import waiting_queue
from llminfer.servers.scheduler import Scheduler

COLUMNS = ["prefill_tokens", "decode_seqs", "decode_kv"]


def composed(log: ServedLog, steps: pd.DataFrame) -> pd.DataFrame:
    """What each step of an engine holds by the rules of the continuous server.

    A step is composed when the engine composed its own, of the requests that were in
    the engine's queue by then, and its tokens come out when the engine's did.

    Args:
        log: A run of one engine, with its settings.
        steps: Its steps, of ``read_steps``, from the run's first to its last.

    Returns:
        The ``COLUMNS`` of ``read_steps``, a row a step.

    Raises:
        ConfigError: The log has no settings, or those of several engines.
    """
    if log.settings.get("replicas") != 1:
        raise fail("settings", dict(log.settings), "those of one engine")
    limits: dict[str, Any] = {"num_requests": len(log), "warmup_requests": 0}
    config = SimulationConfig(**{**log.settings, **limits})
    waiting = waiting_queue(config.policy(), log.workload, every=True, live=False)
    # A server with the engine's settings, whose own times are not used.
    server = Scheduler(config, RequestTimes.of(log.workload, config), waiting)
    queued, rows = np.sort(log.queued_time), []
    for begin, done in steps[["begin", "done"]].itertuples(index=False):
        arrived = int(np.searchsorted(queued, begin, side="right"))
        server.begin(begin, arrived, math.inf)
        if server.steps > 1:
            server.shorten(server.began)  # to its first step
        decodes = server.decodes
        kv = server.kv_tokens if decodes else 0
        rows.append((server.tokens, decodes, kv))
        server.end = done
        server.finish()
    return pd.DataFrame(rows, columns=COLUMNS, index=steps.index)
