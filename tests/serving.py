"""The two ways to run a static server, for tests that hold them together."""

import numpy as np
import simpy

from llminfer import LLMInferenceServer


def by_columns(config, workload):
    """The record of a server that reads the workload."""
    env = simpy.Environment()
    server = LLMInferenceServer(env, config, workload)
    env.process(server.run())
    env.run()
    return server.record


def by_hand(config, workload):
    """The record of a server to which a client brings one request after another."""
    env = simpy.Environment()
    server = LLMInferenceServer(env, config)

    def client():
        for request in workload.requests():
            if request.arrival_time > env.now:
                yield env.timeout(request.arrival_time - env.now)
            server.enqueue_request(request)

    env.process(client())
    env.process(server.run())
    env.run()
    return server.record


def differing(one, other):
    """Columns of two records that are not the same to the last bit."""
    return [
        name
        for name in vars(one)
        if not np.array_equal(getattr(one, name), getattr(other, name))
    ]
