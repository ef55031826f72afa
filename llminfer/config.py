"""One frozen description of a run, checked when it is made."""

import copy
import dataclasses
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from llminfer.base.errors import build, choice, fail, inside
from llminfer.base.frozen import Classes, Params, frozen_params
from llminfer.base.settings import Settings
from llminfer.laws.arrivals import ArrivalRate, arrival_law
from llminfer.laws.engines import LAW, PRESETS
from llminfer.laws.fields import CHECKS, MAY_BE_NONE
from llminfer.laws.lengths import LAW_FIELDS, LengthLaw, by_class, length_laws
from llminfer.laws.prefixes import Longer, SharedPrefixes
from llminfer.policies import POLICIES, SchedulingPolicy, get_policy
from llminfer.request import RequestClass
from llminfer.servers.batch_control import BatchController, batch_controller
from llminfer.timing import StepTime


def _params(**values: Any) -> Any:
    return field(default_factory=lambda: Params(values))


@dataclass(frozen=True, slots=True, repr=False)
class SimulationConfig(Settings):
    """What a run simulates. Everything is checked here, before anything runs.

    No number is above 1e15, and what must be above 0 is at least 1e-15, so that all
    that is made of them is finite.

    Args:
        arrival_rate: Base arrival rate, requests a second.
        arrival_pattern: How the rate varies: constant, step, sinusoidal or ramp.
        arrival_pattern_params: The pattern's parameters.
        arrival_cv: Coefficient of variation of the gaps; 1 is Poisson.
        arrival_gaps: Gaps to draw from instead, in any unit, a tenth of them in a row;
            ``Workload.law`` gives those of a log.
        max_concurrency: Most requests that are unanswered at once: the others wait at
            the client until they are sent, which is when their latency begins.
        clients: Users, each of whom sends a request when he has thought about the
            last answer; None sends them by the clock, at ``arrival_rate``.
        think_time: Seconds from an answer to the same user's next request: a number,
            or a law such as ``{"dist": "exponential", "mean": 5.0}``; others are
            lognormal (mu, sigma), uniform (min, max) and constant (value).
        turns: Requests in a conversation of a user, whose prompts repeat all that was
            said in it: a number or a law, ``{"dist": "geometric", "mean": 4}``.
        queue_limit: Who finds so many waiting is refused; None refuses nobody.
        patience: Seconds from sending to the first token after which a request is
            given up: a number or a law, as ``think_time``; None is for ever.
        request_timeout: The same to the last token.
        prompt_length_dist: Law of prompt lengths.
        prompt_dist_params: Its parameters, tokens.
        shared_prefixes: What a prompt of that law follows on: one of ``count`` system
            prompts of ``tokens`` tokens, the k-th with a chance in proportion to
            k^-``zipf``, which is 0 unless given; empty for none.
        output_length_dist: Law of output lengths.
        output_dist_params: Its parameters, tokens.
        batch_size: Most requests in a batch; under control, at the start.
        batch_timeout: Longest wait for a batch to fill, seconds; 0 goes at once with
            what is there, None waits for a full batch.
        batch_control: What sets the batch limit: static, queue, rate or latency.
        batch_control_params: The controller's parameters.
        scheduling_policy: A policy's name, or a policy of your own.
        scheduling_policy_params: The policy's parameters.
        request_classes: By name, each a dict of ``share``, ``weight`` and
            ``base_priority``; numbered from 0 in this order. Shares are relative. A
            class may bring its own of the four fields of length laws above, and its
            own ``think_time``: it has the others of all.
        alpha: Prefill, seconds a prompt token.
        beta: Prefill, seconds a batch.
        gamma: Decode, seconds a step.
        delta: Decode, seconds a sequence and step.
        kappa: Decode, seconds a KV token and step.
        epsilon: Prefill, seconds a pair of a prompt token and one it attends to.
        step_law: How these make a step's time: ``sum``, or ``roofline``, where a step
            reads the weights for gamma seconds and its arithmetic, alpha a token that
            is prefilled or decodes, hides behind that until it takes longer.
        launch: Seconds a roofline step takes at least, if it is large.
        graph_tokens: Tokens up to which it is not, since an engine launches it as one
            CUDA graph: in vLLM twice ``max_num_seqs``, at most 512.
        server: ``static`` runs a batch to completion; ``continuous`` changes it from
            step to step, never waits for a batch to fill, and so has no use for
            ``batch_timeout``. All that follow, up to ``router``, are settings of the
            continuous one alone, and a static one refuses them.
        max_batched_tokens: Most tokens computed in a step.
        kv_blocks: Blocks of KV memory; None is without limit.
        block_size: Tokens in a block.
        chunked_prefill: Prefill a long prompt in parts, beside sequences that decode;
            False prefills whole prompts in steps that decode nothing.
        reserve_full_prompt: Admit a request only where its whole prompt fits into the
            free blocks; False asks for the first part alone.
        prefix_caching: Compute only what is not in a block that others with the same
            prefix, or the request itself before it was preempted, have left behind.
        async_scheduling: Compose each step while the one before runs, as vLLM does.
        replicas: Servers behind one router.
        router: Which server takes a request: round_robin, random, least_loaded
            (fewest requests there), shortest_queue (fewest tokens there), session
            (where its user or first segment went; they take turns) or longest_prefix
            (where most of its prompt is cached, then fewest requests).
        num_requests: Measured and warm-up requests together.
        warmup_requests: The first so many by arrival are not measured.
        random_seed: One seed for all streams; None draws a fresh one.

    Raises:
        ConfigError: A field cannot be run; names it, its value and what would do.

    What has parameters, with their defaults; the others must be given:

    Laws of lengths, ``prompt_dist_params`` and ``output_dist_params``, tokens::

        lognormal           mu, sigma, min=1, max=None
        uniform             min, max
        truncated_normal    mu, sigma, min, max
        powerlaw            alpha, min, max
        bimodal             short_min, short_max, long_min, long_max, short_prob
        geometric           mean, max=None
        constant            value
        empirical           values, weights=None
        paired              values, weights=None

    ``paired`` is of outputs alone: each beside the prompt it came with.

    Patterns of arrivals, ``arrival_pattern_params``, seconds and requests a second::

        constant
        step                step_time, step_rate
        sinusoidal          amplitude, period, phase=0.0
        ramp                end_rate, duration

    Policies, ``scheduling_policy_params``::

        FCFS
        SJF
        Predicted-SJF       prediction_sigma=0.0
        Priority            base_priority=0.0, aging_rate=0.1, urgency_weight=1.0
        SJF-Aging           aging_rate=0.1
        Class-RR
        WFQ

    Controllers of the batch limit, ``batch_control_params``, seconds::

        static
        queue               min_size=1, max_size=128, interval=300.0, k=1.0
        rate                min_size=1, max_size=128, interval=300.0, window=None,
                            headroom=1.25
        latency             target, min_size=1, max_size=128, interval=300.0,
                            window=None, step=1.0, backoff=0.9

    >>> SimulationConfig(batch_control="queue", batch_control_params={"k": 0.5})
    SimulationConfig(batch_control='queue', batch_control_params={'k': 0.5})
    """

    arrival_rate: float = 10.0
    arrival_pattern: str = "constant"
    arrival_pattern_params: Mapping[str, Any] = _params()
    arrival_cv: float = 1.0
    arrival_gaps: tuple[float, ...] | None = None
    max_concurrency: int | None = None
    clients: int | None = None
    think_time: float | Mapping[str, Any] = 0.0
    turns: int | Mapping[str, Any] | None = None
    queue_limit: int | None = None
    patience: float | Mapping[str, Any] | None = None
    request_timeout: float | Mapping[str, Any] | None = None
    prompt_length_dist: str = "lognormal"
    prompt_dist_params: Mapping[str, Any] = _params(mu=4, sigma=1.5)
    shared_prefixes: Mapping[str, Any] = _params()
    output_length_dist: str = "truncated_normal"
    output_dist_params: Mapping[str, Any] = _params(mu=100, sigma=30, min=10, max=500)
    batch_size: int = 32
    batch_timeout: float | None = None
    batch_control: str = "static"
    batch_control_params: Mapping[str, Any] = _params()
    scheduling_policy: str | SchedulingPolicy = "FCFS"
    scheduling_policy_params: Mapping[str, Any] = _params()
    request_classes: Mapping[str, Mapping[str, Any]] = Classes()
    alpha: float = 0.001
    beta: float = 0.05
    gamma: float = 0.0005
    delta: float = 0.0
    kappa: float = 0.0
    epsilon: float = 0.0
    step_law: str = "sum"
    launch: float = 0.0
    graph_tokens: int = 512
    server: str = "static"
    max_batched_tokens: int = 2048
    kv_blocks: int | None = None
    block_size: int = 16
    chunked_prefill: bool = True
    reserve_full_prompt: bool = True
    prefix_caching: bool = False
    async_scheduling: bool = False
    replicas: int = 1
    router: str = "round_robin"
    num_requests: int = 10000
    warmup_requests: int = 500
    random_seed: int | None = None

    def __post_init__(self) -> None:
        for name, checked in CHECKS.items():
            if (value := getattr(self, name)) is not None or name not in MAY_BE_NONE:
                object.__setattr__(self, name, checked(name, value))
        self._check_server()
        if self.warmup_requests >= self.num_requests:
            must = f"below num_requests={self.num_requests}, which counts warm-up too"
            raise fail("warmup_requests", self.warmup_requests, must)
        if self.arrival_gaps is not None and self.arrival_cv != 1.0:
            raise fail("arrival_cv", self.arrival_cv, "1 beside arrival_gaps")
        self._check_classes()
        self.arrivals, self.step_time, self.policy(), self.controller()

    def __hash__(self) -> int:
        values = (getattr(self, f.name) for f in fields(self))
        # A policy of the user's own may have no hash.
        plain = (type(v) if isinstance(v, SchedulingPolicy) else v for v in values)
        return hash(tuple(plain))

    def _check_classes(self) -> None:
        thinks = [self.think_time, *(its.think_time for its in self.classes)]
        if self.clients is None and (self.turns is not None or any(thinks)):
            raise fail("clients", None, "given beside think_time and turns")
        if self.classes and not sum(its.share for its in self.classes) > 0.0:
            must = "of shares with a sum above 0"
            raise fail("request_classes", self.request_classes, must)
        prompts, outputs = self.prompts, self.outputs
        for number, name in enumerate(self.request_classes or [""]):
            with inside(name and f"request_classes.{name}"):
                outputs.of_class(number).partner(prompts.of_class(number))

    def _check_server(self) -> None:
        if self.server == "static":
            for name, usual in _CONTINUOUS.items():
                if (value := getattr(self, name)) != usual:
                    must = f'{usual!r} unless server="continuous", which alone has it'
                    raise fail(name, value, must)
        elif self.max_batched_tokens < self.largest_batch:
            must = f"at least the batch limit, {self.largest_batch}: each may decode"
            raise fail("max_batched_tokens", self.max_batched_tokens, must)
        elif self.router == "longest_prefix" and not self.prefix_caching:
            raise fail("prefix_caching", False, "True for router longest_prefix")
        elif self.replicas > 1 and self.batch_control != "static":
            must = "static for several replicas"
            raise fail("batch_control", self.batch_control, must)

    @property
    def arrivals(self) -> ArrivalRate:
        """lambda(t)."""
        params = self.arrival_pattern_params
        return arrival_law(self.arrival_pattern, self.arrival_rate, params)

    @property
    def prompts(self) -> LengthLaw:
        """The law of prompt lengths, what they share included; of all classes."""
        return self._lengths("prompt", self.prefixes)

    @property
    def prefixes(self) -> SharedPrefixes | None:
        """The law of what prompts begin with."""
        given, name = self.shared_prefixes, "shared_prefixes"
        return build(SharedPrefixes, name, given, name) if given else None

    @property
    def outputs(self) -> LengthLaw:
        """The law of output lengths, of all classes."""
        return self._lengths("output")

    @property
    def _computed(self) -> LengthLaw:
        """The law of what is computed of prompts: not what they share, once cached."""
        return self._lengths("prompt") if self.prefix_caching else self.prompts

    def _lengths(self, which: str, begin: SharedPrefixes | None = None) -> LengthLaw:
        """The law of prompt or output lengths, behind what they begin with."""
        name, params = (getattr(self, which + end) for end in LAW_FIELDS)
        laws = length_laws(which, name, params, self.request_classes)
        if begin is not None:
            laws = [Longer(law, begin.tokens) for law in laws]
        return by_class(laws, [its.share for its in self.classes])

    @property
    def sheds(self) -> bool:
        """May requests be refused or given up, so that no overload lasts?"""
        limits = self.queue_limit, self.patience, self.request_timeout
        return limits != (None, None, None)

    @property
    def step_time(self) -> StepTime:
        """The seven coefficients as a law of step times."""
        return StepTime(**{name: getattr(self, name) for name in LAW})

    @property
    def classes(self) -> tuple[RequestClass, ...]:
        """The request classes by their numbers."""
        return tuple(
            build(RequestClass, f"class {name}", params, f"request_classes.{name}")
            for name, params in self.request_classes.items()
        )

    def controller(self) -> BatchController | None:
        """A fresh controller of the batch limit, or None for a static one."""
        return batch_controller(self.batch_control, self.batch_control_params)

    def policy(self) -> SchedulingPolicy:
        """A fresh policy that knows this configuration's coefficients and seed.

        A policy of your own is copied, so that no run sees what another has left.
        """
        params = self.scheduling_policy_params
        if isinstance(self.scheduling_policy, SchedulingPolicy):
            if params:
                must = "empty when scheduling_policy is an object"
                raise fail("scheduling_policy_params", dict(params), must)
            return copy.deepcopy(self.scheduling_policy)
        choice("scheduling_policy", self.scheduling_policy, POLICIES)
        takes = inspect.signature(POLICIES[self.scheduling_policy]).parameters
        shared = ("alpha", "beta", "gamma", "random_seed")
        own = {name: getattr(self, name) for name in shared if name in takes}
        if "request_classes" in takes:
            own["request_classes"] = self.classes
        return get_policy(self.scheduling_policy, **{**own, **params})

    def stable_rate(self, batch_size: int) -> float:
        """lambda*(B) of one server at a batch limit B, requests a second.

        Static: B/E[T_B]. Continuous: a saturated server that always runs B (THEORY 9),
        or fewer if KV memory or the token budget have no room for them; then it is an
        upper bound, without what preemption computes again and what is held for later.
        It takes what a prefix cache finds to cost nothing.

        >>> round(SimulationConfig().stable_rate(4), 2)
        5.09
        """
        prompts, outputs, law = self._computed, self.outputs, self.step_time
        if self.server == "static":
            time = law.mean_batch_time(prompts, outputs, batch_size)
            return batch_size / time if time > 0.0 else float("inf")
        sequences = min(float(batch_size), self._most_sequences())
        ahead = int(self.async_scheduling)
        return law.saturation_rate(prompts, outputs, sequences, ahead=ahead)

    def _most_sequences(self) -> float:
        """Sequences that memory and budget of a continuous server have room for."""
        prompt, output = self._computed.expectation(), self.outputs.expectation()
        most = float("inf")
        if self.kv_blocks is not None:
            held = self.outputs.joint(self.prompts) + self.outputs.pairs()
            held /= output  # tokens, mean over its steps
            most = self.kv_blocks * self.block_size / held
        if self.chunked_prefill:
            computed = (prompt + output - 1.0) / output  # tokens a step
            most = min(most, self.max_batched_tokens / computed)
        return most

    @property
    def largest_batch(self) -> int:
        """The greatest batch limit of a run: batch_size, or the controller's.

        >>> SimulationConfig(batch_size=4).largest_batch
        4
        """
        controller = self.controller()
        return self.batch_size if controller is None else controller.max_size

    @property
    def max_stable_rate(self) -> float:
        """lambda* of all servers at the largest batch: more overloads them."""
        return self.replicas * self.stable_rate(self.largest_batch)

    @property
    def offered_load(self) -> float:
        """Mean arrival rate of the run over lambda*(B); stable below 1.

        Users who wait for their answers arrive as fast as they are served: NaN.

        >>> round(SimulationConfig(batch_size=4).offered_load, 2)  # far too much
        1.96
        """
        rate = self.arrivals.mean(self.num_requests)
        return rate / self.max_stable_rate if self.clients is None else float("nan")

    @property
    def peak_load(self) -> float:
        """Greatest arrival rate of the run over lambda*(B); NaN of users who wait."""
        if self.clients is not None:
            return float("nan")
        horizon = self.num_requests / self.arrivals.mean(self.num_requests)
        return self.arrivals.peak(horizon) / self.max_stable_rate

    @classmethod
    def from_preset(cls, preset: str, **changes: Any) -> Self:
        """A configuration with the coefficients and the server of one of ``PRESETS``.

        Raises:
            ConfigError: Unknown preset or field, or a bad value.

        >>> SimulationConfig.from_preset("opt-13b-a100").gamma
        0.0199
        """
        its = PRESETS[choice("preset", preset, PRESETS)]
        given = {"server": its.server, **changes}
        if given["server"] == "continuous":
            given.setdefault("async_scheduling", its.async_scheduling)
        return cls(**{**its.coefficients, **given})

    def replace(self, **changes: Any) -> Self:
        """A copy with ``changes``; ``prompt_dist_params.sigma`` names a parameter.

        A change to the static server drops what only the continuous one has.

        Raises:
            ConfigError: Unknown field, or a bad value.

        >>> SimulationConfig(batch_size=4).replace(batch_size=8)
        SimulationConfig(batch_size=8)
        """
        whole_fields = {k: v for k, v in changes.items() if "." not in k}
        self.check_names(whole_fields)
        for dotted in (k for k in changes if "." in k):
            owner, _, name = dotted.partition(".")
            if not owner.endswith("_params"):
                raise fail(dotted, changes[dotted], "a field or a parameter of one")
            self.check_names({owner: None})
            old = frozen_params(owner, whole_fields.get(owner, getattr(self, owner)))
            whole_fields[owner] = {**old, name: changes[dotted]}
        server = changes.get("server")
        if isinstance(server, str) and server == "static" != self.server:
            whole_fields = {**_CONTINUOUS, **whole_fields}
        return dataclasses.replace(self, **whole_fields)


# what only that server has, from max_batched_tokens to router, and its default
_CONTINUOUS = {f.name: f.default for f in fields(SimulationConfig)[-12:-3]}
