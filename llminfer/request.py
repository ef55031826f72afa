"""One request: what it asks, its class, and when each thing happened to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llminfer.base.errors import number

_FIXED = frozenset(
    {"id", "arrival_time", "prompt_length", "expected_output_length", "request_class"}
)


@dataclass(slots=True, eq=False)
class Request:
    """A request and its times, in seconds; None means not yet, and 0.0 is a time.

    What it asks is fixed when made; the times are set while it is served. Requests
    compare (``<``) in order of arrival.

    >>> request = Request(0, 1.0, prompt_length=100, expected_output_length=20)
    >>> request.first_token_time = 1.5
    >>> request.ttft
    0.5
    """

    id: int
    arrival_time: float
    prompt_length: int
    expected_output_length: int
    request_class: int = 0
    queue_entry_time: float | None = None
    processing_start_time: float | None = None
    first_token_time: float | None = None
    processing_end_time: float | None = None
    actual_output_length: int | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _FIXED and hasattr(self, name):
            raise AttributeError(f"{name}: a request's {name} is fixed when it is made")
        object.__setattr__(self, name, value)

    def __lt__(self, other: Request) -> bool:
        return (self.arrival_time, self.id) < (other.arrival_time, other.id)

    @property
    def queue_wait_time(self) -> float | None:
        """Seconds from entering the queue to the start of processing."""
        return _between(self.queue_entry_time, self.processing_start_time)

    @property
    def processing_time(self) -> float | None:
        """Seconds from the start of processing to the end."""
        return _between(self.processing_start_time, self.processing_end_time)

    @property
    def total_latency(self) -> float | None:
        """Seconds from arrival to the end."""
        return _between(self.arrival_time, self.processing_end_time)

    @property
    def total_tokens(self) -> int:
        """Prompt tokens plus the output tokens made so far."""
        return self.prompt_length + (self.actual_output_length or 0)

    @property
    def ttft(self) -> float | None:
        """Time to first token, seconds from arrival."""
        return _between(self.arrival_time, self.first_token_time)

    @property
    def tpot(self) -> float | None:
        """Seconds an output token after the first; None for a single token."""
        outputs = self.actual_output_length or 0
        decode = _between(self.first_token_time, self.processing_end_time)
        return None if decode is None or outputs < 2 else decode / (outputs - 1)


@dataclass(frozen=True)
class RequestClass:
    """What requests of one class have in common.

    What is None is as in the configuration, whose fields of the same names say more.

    Args:
        share: Its part of the arrivals; shares are relative, and need no sum of 1.
        weight: Its part of the service under WFQ, relative likewise.
        base_priority: Its level under Priority; None takes the policy's own.
        prompt_length_dist: Law of its prompt lengths.
        prompt_dist_params: Its parameters, tokens.
        output_length_dist: Law of its output lengths.
        output_dist_params: Its parameters, tokens.
        think_time: Seconds that its users think.

    >>> RequestClass(share=2.0).weight
    1.0
    """

    share: float = 1.0
    weight: float = 1.0
    base_priority: float | None = None
    prompt_length_dist: str | None = None
    prompt_dist_params: Mapping[str, Any] | None = None
    output_length_dist: str | None = None
    output_dist_params: Mapping[str, Any] | None = None
    think_time: float | Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        number("share", self.share, least=0.0)
        number("weight", self.weight, above=0.0)
        if self.base_priority is not None:
            number("base_priority", self.base_priority)


def _between(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else end - start
