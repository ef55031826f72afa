"""The time a step takes: the law of seven coefficients, its presets, and E[T_B]."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.signal import fftconvolve

from llminfer.base.arrays import FloatArray
from llminfer.base.errors import choice, number
from llminfer.laws.lengths import LengthLaw

Quantity = Any  # a number, or an array of them
_MOST_SPARE = 2**20  # tokens; no step computes so many while it reads the weights


class Preset(NamedTuple):
    """A named engine: how long its steps take, how it schedules, who says so."""

    alpha: float  # s per prompt token
    beta: float  # s per prefill
    gamma: float  # s per step that decodes, or that reads the weights
    delta: float  # s per sequence that decodes
    kappa: float  # s per KV token it attends to
    epsilon: float  # s per pair of a prefilled token and one it attends to
    step_law: str
    source: str
    async_scheduling: bool = False
    server: str = "continuous"  # what ``SimulationConfig.from_preset`` simulates
    largest_batch: int | None = None  # fitted to batches of at most so many, if known
    launch: float = 0.0  # s per step of more than ``graph_tokens`` tokens, at least
    graph_tokens: int = 512  # tokens of a step that is launched as one CUDA graph

    @property
    def coefficients(self) -> dict[str, Any]:
        """The law of its step times, as fields of a configuration.

        >>> PRESETS["report"].coefficients  # doctest: +NORMALIZE_WHITESPACE
        {'alpha': 0.001, 'beta': 0.05, 'gamma': 0.0005,
         'delta': 0.0, 'kappa': 0.0, 'epsilon': 0.0, 'launch': 0.0,
         'step_law': 'sum', 'graph_tokens': 512}
        """
        return {name: getattr(self, name) for name in LAW}


COEFFICIENTS = (*Preset._fields[:6], "launch")
LAW = (*COEFFICIENTS, "step_law", "graph_tokens")
STEP_LAWS = ("sum", "roofline")

_LOG = "fit to a vLLM log, notebook 08"
_LOGS = "joint fit to four vLLM logs, notebook 08"
_KERNELS = "fit to LLMServingSim's kernel profile"
_OPT = (1.02e-4, 1.81e-2, 1.99e-2, 3.85e-5, 6.3e-7, 1.42e-8, "sum")
_LLAMA_70B = (9.9e-5, 1.8e-3, 2.98e-2, 2.1e-4, 1.73e-7, 0.0, "sum")
_LLAMA_4090 = (9.1e-5, 4.2e-3, 1.7e-2, 4.1e-5, 1.42e-7, 0.0, "sum")
_VLLM_4090 = (9.19e-5, 1.30e-2, 1.81e-2, 3.77e-5, 1.24e-7, 9.84e-9, "roofline")
_VLLM_6000 = (1.46e-4, 1.24e-2, 2.69e-2, 5.53e-5, 1.85e-7, 2.84e-8, "roofline")
_VLLM_H200 = (2.05e-5, 1.62e-3, 4.83e-3, 1.96e-5, 3.51e-8, 1.25e-9, "roofline")

PRESETS: Mapping[str, Preset] = {
    "report": Preset(
        1e-3, 5e-2, 5e-4, 0.0, 0.0, 0.0, "sum", "the course report", server="static"
    ),
    # larger batches take up to 27% longer
    "opt-13b-a100": Preset(*_OPT, "DistServe's fitted profile", largest_batch=94),
    "llama-3.1-8b-rtx4090": Preset(*_LLAMA_4090, _KERNELS),
    # a lone short prompt takes up to 4 times as long
    "llama-2-70b-dgx-h100": Preset(*_LLAMA_70B, "fit to splitwise-sim, 8 GPUs"),
    "llama-3.1-8b-rtx4090-vllm": Preset(*_VLLM_4090, _LOG, True, largest_batch=48),
    "qwen3-32b-2xrtxpro6000": Preset(*_VLLM_6000, _LOG, True, largest_batch=128),
    "llama-3.1-8b-h200": Preset(
        *_VLLM_H200, _LOGS, True, largest_batch=28, launch=1.44e-2
    ),
}


@dataclass(frozen=True)
class StepTime:
    """The time of a step that prefills P tokens while b sequences decode.

    With K the KV tokens that those attend to, and Q the pairs of prefilled tokens with
    what they attend to, n (c + n/2) for n tokens after c others of a prompt:

        sum       alpha P + beta [P > 0] + gamma [b > 0] + delta b + kappa K + epsilon Q
        roofline  max(gamma, alpha (P + b), launch [P + b > graph_tokens])
                  + beta [P > 0] + delta b + kappa K + epsilon Q

    In ``roofline`` the weights are read once a step, gamma, and arithmetic hides behind
    that until it takes longer (Williams et al. 2009). A step of more tokens than the
    engine has recorded CUDA graphs for is launched kernel by kernel, and takes at
    least as long as that.

    Args:
        alpha: Seconds a prompt token.
        beta: Seconds a prefill.
        gamma: Seconds a decode step.
        delta: Seconds a sequence in a decode step.
        kappa: Seconds a KV token in a decode step.
        epsilon: Seconds a pair.
        step_law: sum or roofline.
        launch: Seconds a large step takes at least, in roofline.
        graph_tokens: Tokens up to which a step is not large.

    >>> law = StepTime(alpha=0.001, beta=0.05, gamma=0.0005)
    >>> round(law.prefill(100), 3)
    0.15
    >>> law.decode(4, 400, 20)
    0.01
    >>> float(StepTime(0.001, 0.0, 0.25, step_law="roofline").prefill(100))
    0.25
    """

    alpha: float
    beta: float
    gamma: float
    delta: float = 0.0
    kappa: float = 0.0
    epsilon: float = 0.0
    step_law: str = "sum"
    launch: float = 0.0
    graph_tokens: int = 512

    def __post_init__(self) -> None:
        for name in COEFFICIENTS:
            number(name, getattr(self, name), least=0.0)
        choice("step_law", self.step_law, STEP_LAWS)

    @property
    def roofline(self) -> bool:
        """Whether arithmetic hides behind the reading of weights."""
        return self.step_law == "roofline"

    def prefill(self, prompt_tokens: Quantity, pairs: Quantity = 0.0) -> Quantity:
        """Seconds to prefill so many tokens in a step of their own.

        Args:
            prompt_tokens: P.
            pairs: Q; half the squares of whole prompts.
        """
        tokens = self.alpha * prompt_tokens
        if self.roofline:
            tokens = np.maximum(self._floor(prompt_tokens), tokens)
        return tokens + self.beta + self.epsilon * pairs

    def decode(
        self, sequences: Quantity, kv_tokens: Quantity, steps: Quantity
    ) -> Quantity:
        """Seconds for ``steps`` decode steps of ``sequences`` sequences.

        Args:
            sequences: b, the same in every step.
            kv_tokens: K of the first step; it grows by b a step.
            steps: How many.
        """
        step = self._weights(sequences) + self.delta * sequences
        step = step + self.kappa * kv_tokens
        return steps * step + self.kappa * sequences * steps * (steps - 1) / 2.0

    def growth(self, sequences: Quantity, chunk: Quantity) -> Quantity:
        """Seconds by which a step is longer than the last, with the same batch.

        Args:
            sequences: b.
            chunk: Tokens of one long prompt that each of these steps prefills.
        """
        return self.kappa * sequences + self.epsilon * chunk * chunk

    def _weights(self, sequences: Quantity) -> Quantity:
        """What a decode step takes beside delta and kappa, seconds."""
        if self.roofline:
            return np.maximum(self._floor(sequences), self.alpha * sequences)
        return self.gamma

    def _floor(self, tokens: Quantity) -> Quantity:
        """What a roofline step of so many tokens takes at least, seconds."""
        large = max(self.gamma, self.launch)
        return np.where(np.greater(tokens, self.graph_tokens), large, self.gamma)

    def alone(self, prompt: FloatArray, output: FloatArray) -> FloatArray:
        """Seconds requests would take alone on an idle static server, same shape."""
        return self._alone(prompt, output, np.inf)

    def mean_batch_time(self, prompts: LengthLaw, outputs: LengthLaw, b: int) -> float:
        """E[T_b], seconds: a static batch of ``b`` requests (THEORY 7)."""
        prompt_tokens = b * prompts.expectation()
        steps = outputs.expectation(b)
        step = float(self._weights(b)) + self.delta * b + self.kappa * prompt_tokens
        growth = self.kappa * b * outputs.pairs(b) if self.kappa else 0.0
        pairs = b * self._mean_pairs(prompts) + self._spare(b, prompts)
        return self.alpha * prompt_tokens + self.beta + steps * step + growth + pairs

    def alone_stepwise(
        self, prompt: FloatArray, output: FloatArray, budget: float
    ) -> FloatArray:
        """Seconds requests would take alone on an idle continuous server, same shape.

        Args:
            prompt: Tokens.
            output: Tokens.
            budget: Prompt tokens a step prefills at most.
        """
        return self._alone(prompt, output - 1.0, budget)

    def _alone(
        self, prompt: FloatArray, steps: FloatArray, budget: float
    ) -> FloatArray:
        """Seconds for one prompt, in chunks, and so many decode steps after it."""
        chunk = np.minimum(budget, prompt)
        full = np.ceil(prompt / chunk) - 1.0  # chunks before the last
        last = self.prefill(prompt - full * chunk, prompt * prompt / 2.0)
        decode = self.decode(1.0, prompt, steps)
        seconds: FloatArray = full * self.prefill(chunk) + last + decode
        return seconds

    def _mean_pairs(self, prompts: LengthLaw) -> float:
        """Seconds that epsilon adds to a request, mean: E[P^2]/2 pairs."""
        if not self.epsilon:
            return 0.0
        square = prompts.variance() + prompts.expectation() ** 2
        return self.epsilon * square / 2.0

    def _spare(
        self, b: int, prompts: LengthLaw, enters: float = 1.0, decodes: float = 0.0
    ) -> float:
        """E[(gamma - alpha S)+]: seconds a roofline step reads on after its arithmetic.

        S counts the tokens of ``b`` places, each of which prefills a prompt, decodes,
        or stands empty. Only sums below gamma/alpha matter, so that the distribution
        of S is needed just so far: the b-th power of a truncated generating function.
        Where the step is large, launch stands for gamma.

        Args:
            b: Places.
            prompts: Law of prompt tokens.
            enters: A place's chance to prefill.
            decodes: Its chance to decode.
        """
        if not self.roofline:
            return 0.0
        mean = b * (enters * prompts.expectation() + decodes)
        longest = max(self.gamma, self.launch)
        if self.alpha * _MOST_SPARE <= longest:
            return max(float(self._floor(mean)) - self.alpha * mean, 0.0)
        few = np.arange(int(longest / self.alpha) + 1.0)
        one = enters * -np.diff(prompts.survival(np.append(-1.0, few)))
        one[:1] += 1.0 - enters - decodes
        one[1:2] += decodes
        total = np.eye(1, len(few))[0]
        for bit in bin(b)[2:]:
            total = fftconvolve(total, total)[: len(few)]
            if bit == "1":
                total = fftconvolve(total, one)[: len(few)]
        return float(total @ np.maximum(self._floor(few) - self.alpha * few, 0.0))

    def saturation_rate(
        self,
        prompts: LengthLaw,
        outputs: LengthLaw,
        b: float,
        span: int = 1,
        ahead: int = 0,
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
            ahead: Steps that a place stands empty between two requests: 1 where each
                step is scheduled while the one before runs.
        """
        prompt, output = prompts.expectation(), outputs.expectation()
        cycle = output + ahead  # steps from one request to the next
        own = self.alpha * prompt + self.delta * (output - 1.0)
        own += self._mean_pairs(prompts)
        if self.kappa:
            contexts = (prompt - 1.0) * (output - 1.0) + outputs.pairs()
            own += self.kappa * contexts
        enters, empty = span / cycle, ahead / cycle
        came = (1.0 - (1.0 - enters) ** b) / span
        still = self.gamma * (1.0 - (enters + empty) ** b / span)
        if self.roofline:
            own += self.alpha * (output - 1.0)
            places = math.ceil(b)
            still = self._spare(places, prompts, enters, 1.0 - enters - empty) / span
            spare = float(self._floor(b)) - self.alpha * b
            still += (1.0 - 1.0 / span) * max(spare, 0.0)
            still -= self.gamma * empty**b
        freed = b / cycle
        step = self.beta * came + still + freed * own
        return float(freed / step) if step > 0.0 else float("inf")
