"""The batch processor that a process of the reader's own drives."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import simpy

from llminfer.request import Request
from llminfer.timing import StepTime


class BatchProcessor:
    """Times static batches, and serves them as a SimPy process.

    Args:
        alpha: Seconds a prompt token.
        beta: Seconds a prefill.
        gamma: Seconds a decode step.
        delta: Seconds a sequence in a decode step.
        kappa: Seconds a KV token in a decode step.

    Raises:
        ConfigError: A coefficient is negative or not finite.
    """

    def __init__(
        self,
        alpha: float,
        beta: float,
        gamma: float,
        delta: float = 0.0,
        kappa: float = 0.0,
    ) -> None:
        self.step_time = StepTime(alpha, beta, gamma, delta, kappa)
        self._batches = 0
        self._requests = 0
        self._busy_time = 0.0

    def compute_prefill_time(self, batch: Sequence[Request]) -> float:
        """Seconds to prefill all prompts of ``batch`` together."""
        return float(self.step_time.prefill(sum(r.prompt_length for r in batch)))

    def compute_decode_time(self, batch: Sequence[Request]) -> float:
        """Seconds to decode ``batch``, padded to its longest output."""
        prompt_tokens = sum(r.prompt_length for r in batch)
        steps = max(r.expected_output_length for r in batch)
        return float(self.step_time.decode(len(batch), prompt_tokens, steps))

    def process_batch(
        self, env: simpy.Environment, batch: Sequence[Request]
    ) -> Generator[Any, Any, None]:
        """SimPy process: prefill, then decode; stamps the requests as it goes."""
        prefill_time = self.compute_prefill_time(batch)
        decode_time = self.compute_decode_time(batch)
        for request in batch:
            request.processing_start_time = env.now
        yield env.timeout(prefill_time)
        for request in batch:
            request.first_token_time = env.now
        yield env.timeout(decode_time)
        for request in batch:
            request.processing_end_time = env.now
            request.actual_output_length = request.expected_output_length
        self._batches += 1
        self._requests += len(batch)
        self._busy_time += prefill_time + decode_time

    def get_statistics(self) -> dict[str, float]:
        """Batches and requests processed so far, and the seconds they took."""
        return {
            "total_batches": self._batches,
            "total_requests": self._requests,
            "avg_batch_size": self._requests / max(self._batches, 1),
            "busy_time": self._busy_time,
        }
