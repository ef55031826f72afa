"""The time a step takes: the law of seven coefficients, E[T_B] and lambda*."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from llminfer.base.arrays import FloatArray
from llminfer.base.errors import choice, fail, number
from llminfer.laws.engines import COEFFICIENTS, STEP_LAWS
from llminfer.laws.lengths import LengthLaw, mean_shortfall

Quantity = Any  # a number, or an array of them


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
        launch: Seconds a large step takes at least; 0 in sum.
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
        if self.launch and not self.roofline:
            raise fail("launch", self.launch, '0 unless step_law="roofline"')

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
        return self._weights(0, prompt_tokens) + self.beta + self.epsilon * pairs

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

    def step(self, p: Quantity, b: Quantity, k: Quantity, q: Quantity) -> Quantity:
        """Seconds of a step, or of each of many.

        Args:
            p: P, prompt tokens; 0 where nothing is prefilled.
            b: Sequences; 0 where nobody decodes.
            k: K, their KV tokens.
            q: Q, pairs.

        >>> law = StepTime(alpha=0.25, beta=1.0, gamma=0.5)
        >>> law.step(np.array([0, 4, 4]), np.array([2, 0, 2]), 0, 0)
        array([0.5, 2. , 2.5])
        """
        own = self._weights(b, p) + self.beta * (p > 0) + self.delta * b
        return own + self.kappa * k + self.epsilon * q

    def _weights(self, sequences: Quantity, prompt_tokens: Quantity = 0) -> Quantity:
        """What arithmetic and the reading of weights take, seconds."""
        if self.roofline:
            tokens = prompt_tokens + sequences
            return np.maximum(self._floor(tokens), self.alpha * tokens)
        return self.alpha * prompt_tokens + self.gamma * (sequences > 0)

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
        decode = outputs.expectation(b) * (float(self._weights(b)) + self.delta * b)
        if self.kappa:
            decode += self.kappa * b * (outputs.joint(prompts, b) + outputs.pairs(b))
        pairs = b * self._mean_pairs(prompts) + self._spare(prompts, b)
        return self.alpha * prompt_tokens + self.beta + decode + pairs

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

    def _spare(self, prompts: LengthLaw, b: int, *chances: float) -> float:
        """Seconds a roofline step reads, or is launched, on after its arithmetic, mean.

        Args:
            prompts: Law of prompt tokens.
            b: Places.
            *chances: Of each to prefill, and to decode; else all of them prefill.
        """

        def short(tokens: float) -> float:
            return mean_shortfall(prompts, b, tokens, *chances)

        longest, graph = max(self.gamma, self.launch), float(self.graph_tokens)
        if not self.roofline or not longest:
            return 0.0
        small = short(graph + 1.0) - short(graph) if self.launch else 1.0  # the chance
        if self.alpha <= 1e-100 * longest:  # nothing hides
            return small * self.gamma + (1.0 - small) * longest
        hidden = self.gamma / self.alpha, longest / self.alpha  # tokens
        if self.launch <= self.gamma:
            return self.alpha * short(hidden[0])
        in_graph = [short(min(h, graph)) + max(h - graph, 0.0) * small for h in hidden]
        return self.alpha * (short(hidden[1]) + in_graph[0] - in_graph[1])

    def saturation_rate(
        self, prompts: LengthLaw, outputs: LengthLaw, b: float, ahead: int = 0
    ) -> float:
        """lambda* of a continuous server that always runs ``b``, requests a second.

        A step lets b/E[O] requests go and come. Each brings its prefill and O - 1
        decode steps of its own; beta is paid when somebody came, gamma when somebody
        decodes. The chances of these two are those of geometric outputs (THEORY 9), and
        in a long flood those of any outputs that are not all multiples of a number.
        For less variable ones it is a lower bound: sequences that began together go
        together for long, for constant outputs for ever, and share their betas. Flooded
        constant outputs carry up to 1.5 times as much.

        Args:
            prompts: Law of prompt tokens.
            outputs: Law of output tokens.
            b: Sequences.
            ahead: Steps that a place stands empty between two requests: 1 where each
                step is scheduled while the one before runs.
        """
        prompt, output = prompts.expectation(), outputs.expectation()
        cycle = output + ahead  # steps from one request to the next
        own = self.alpha * prompt + self.delta * (output - 1.0)
        own += self._mean_pairs(prompts)
        if self.kappa:
            contexts = outputs.joint(prompts) - prompt - output + 1.0
            own += self.kappa * (contexts + outputs.pairs())
        enters, empty = 1.0 / cycle, ahead / cycle
        came = 1.0 - (1.0 - enters) ** b
        still = self.gamma * (1.0 - (enters + empty) ** b)
        if self.roofline:
            own += self.alpha * (output - 1.0)
            chances = enters, 1.0 - enters - empty
            still = self._spare(prompts, math.ceil(b), *chances)
            still -= self.gamma * empty**b
        freed = b / cycle
        step = self.beta * came + still + freed * own
        return float(freed / step) if step > 0.0 else float("inf")
