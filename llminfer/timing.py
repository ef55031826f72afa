"""The time a step takes: the five-coefficient law, its presets, and E[T_B]."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Any, NamedTuple

import numpy as np

from llminfer.base.arrays import FloatArray
from llminfer.base.errors import number
from llminfer.laws.lengths import LengthLaw

Quantity = Any  # a number, or an array of them


class Preset(NamedTuple):
    """A published or fitted set of coefficients, and where it comes from."""

    alpha: float  # s per prompt token
    beta: float  # s per prefill
    gamma: float  # s per decode step
    delta: float  # s per sequence and decode step
    kappa: float  # s per KV token and decode step
    source: str
    server: str = "continuous"  # what ``SimulationConfig.from_preset`` simulates
    largest_batch: int | None = None  # fitted to batches of at most so many, if known

    @property
    def coefficients(self) -> dict[str, float]:
        """The five numbers by name.

        >>> PRESETS["report"].coefficients
        {'alpha': 0.001, 'beta': 0.05, 'gamma': 0.0005, 'delta': 0.0, 'kappa': 0.0}
        """
        return dict(zip(COEFFICIENTS, self[:5], strict=True))


COEFFICIENTS = Preset._fields[:5]

_LOG = "fit to a vLLM log, notebook 08"
_KERNELS = "fit to LLMServingSim's kernel profile"
_OPT = (1.02e-4, 1.81e-2, 1.99e-2, 3.85e-5, 6.3e-7, "DistServe's fitted profile")
_LLAMA_70B = (9.9e-5, 1.8e-3, 2.98e-2, 2.1e-4, 1.73e-7, "fit to splitwise-sim, 8 GPUs")

PRESETS: Mapping[str, Preset] = {
    "report": Preset(1e-3, 5e-2, 5e-4, 0.0, 0.0, "the course report", "static"),
    "opt-13b-a100": Preset(*_OPT, largest_batch=94),  # then up to 27% slower
    "llama-3.1-8b-rtx4090": Preset(9.1e-5, 4.2e-3, 1.7e-2, 4.1e-5, 1.42e-7, _KERNELS),
    "llama-2-70b-dgx-h100": Preset(*_LLAMA_70B),  # a lone short prompt up to 4 x slower
    "llama-3.1-8b-rtx4090-vllm": Preset(
        9.02e-5, 2.66e-3, 1.56e-2, 3.06e-5, 1.99e-7, _LOG
    ),
    "qwen3-32b-2xrtxpro6000": Preset(1.57e-4, 1.10e-2, 2.67e-2, 4.30e-5, 1.98e-7, _LOG),
}


@dataclass(frozen=True)
class StepTime:
    """T_prefill(P) = alpha P + beta and T_decode(b, K) = gamma + delta b + kappa K.

    Args:
        alpha: Seconds a prompt token.
        beta: Seconds a prefill.
        gamma: Seconds a decode step.
        delta: Seconds a sequence in a decode step.
        kappa: Seconds a KV token in a decode step.

    >>> law = StepTime(alpha=0.001, beta=0.05, gamma=0.0005)
    >>> round(law.prefill(100), 3)
    0.15
    >>> law.decode(4, 400, 20)
    0.01
    """

    alpha: float
    beta: float
    gamma: float
    delta: float = 0.0
    kappa: float = 0.0

    def __post_init__(self) -> None:
        for name, value in zip(COEFFICIENTS, astuple(self), strict=True):
            number(name, value, least=0.0)

    def prefill(self, prompt_tokens: Quantity) -> Quantity:
        """Seconds to prefill so many tokens in one step."""
        return self.alpha * prompt_tokens + self.beta

    def decode(
        self, sequences: Quantity, kv_tokens: Quantity, steps: Quantity
    ) -> Quantity:
        """Seconds for ``steps`` decode steps of ``sequences`` sequences.

        Args:
            sequences: b, the same in every step.
            kv_tokens: K of the first step; it grows by b a step.
            steps: How many.
        """
        step = self.gamma + self.delta * sequences + self.kappa * kv_tokens
        return steps * step + self.kappa * sequences * steps * (steps - 1) / 2.0

    def alone(self, prompt: FloatArray, output: FloatArray) -> FloatArray:
        """Seconds requests would take alone on an idle static server, same shape."""
        return self._alone(prompt, output, 1.0)

    def mean_batch_time(self, prompts: LengthLaw, outputs: LengthLaw, b: int) -> float:
        """E[T_b], seconds: a static batch of ``b`` requests (THEORY 7)."""
        prompt_tokens = b * prompts.expectation()
        steps = outputs.expectation(b)
        decode = steps * (self.gamma + self.delta * b + self.kappa * prompt_tokens)
        growth = self.kappa * b * outputs.pairs(b) if self.kappa else 0.0
        return self.alpha * prompt_tokens + self.beta + decode + growth

    def alone_stepwise(
        self, prompt: FloatArray, output: FloatArray, budget: float
    ) -> FloatArray:
        """Seconds requests would take alone on an idle continuous server, same shape.

        Args:
            prompt: Tokens.
            output: Tokens.
            budget: Prompt tokens a step prefills at most.
        """
        chunks = np.maximum(np.ceil(prompt / budget), 1.0)
        return self._alone(prompt, output - 1.0, chunks)

    def _alone(
        self, prompt: FloatArray, steps: FloatArray, prefills: Quantity
    ) -> FloatArray:
        """Seconds for so many prefills and decode steps of a single sequence."""
        step = self.gamma + self.delta + self.kappa * prompt
        growth = self.kappa * steps * (steps - 1.0) / 2.0
        prefill = self.alpha * prompt + self.beta * prefills
        seconds: FloatArray = prefill + steps * step + growth
        return seconds

    def saturation_rate(
        self, prompts: LengthLaw, outputs: LengthLaw, b: float, span: int = 1
    ) -> float:
        """lambda* of a continuous server that always runs ``b``, requests a second.

        A step lets b/E[O] requests go and come. Each brings its prefill and O - 1
        decode steps of its own; beta is paid when somebody came, gamma when somebody
        decodes. The chances of these two are those of geometric outputs (THEORY 9), and
        in a long flood those of any outputs that are not all multiples of a ``span``.
        For less variable ones it is a lower bound: sequences that began together go
        together for long, for constant outputs for ever, and share their betas. Flooded
        constant outputs carry up to 1.5 times as much, which is their ``span``'s value.

        Args:
            prompts: Law of prompt tokens.
            outputs: Law of output tokens.
            b: Sequences.
            span: What all outputs are multiples of, where all sequences began in one
                step and none ever waited for room: the value of constant outputs.
        """
        prompt, output = prompts.expectation(), outputs.expectation()
        own = self.alpha * prompt + self.delta * (output - 1.0)
        if self.kappa:
            contexts = (prompt - 1.0) * (output - 1.0) + outputs.pairs()
            own += self.kappa * contexts
        came = (1.0 - (1.0 - span / output) ** b) / span
        went_on = 1.0 - (span / output) ** b / span
        freed = b / output
        step = self.beta * came + self.gamma * went_on + freed * own
        return float(freed / step) if step > 0.0 else float("inf")
