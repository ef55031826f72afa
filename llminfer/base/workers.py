"""Tasks in other processes: of this machine, or of a cluster that joblib is told of.

A result is handed on as soon as it is there. What a worker was doing when it died,
killed or out of memory, is done again by another. A worker whose parent was killed
ends by itself.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError
from functools import partial
from typing import Any

import cloudpickle
from joblib import Parallel, delayed, effective_n_jobs
from joblib.externals.loky.backend.process import LokyProcess
from joblib.externals.loky.process_executor import TerminatedWorkerError
from joblib.parallel import get_active_backend

from llminfer.base.errors import whole

_TRIES = 3  # times that workers die with nothing finished in between

_NOT_THEIRS = {"llminfer", "__main__", *sys.stdlib_module_names}

Numbered = Iterator[tuple[int, Any]]


def as_finished(
    task: Callable[..., Any],
    jobs: Mapping[int, tuple[Any, ...]],
    n_jobs: int | None = None,
    *shared: Any,
) -> Numbered:
    """The number of each job and what came of it, in the order in which they end.

    Args:
        task: What to do, a function.
        jobs: By number, its arguments.
        n_jobs: Processes; 1 is this one, None takes as many as
            ``joblib.parallel_config`` says or else one a core.
        *shared: More arguments, the same for all: a cluster is sent them once.

    Raises:
        RuntimeError: Workers die, again and again.

    >>> sorted(as_finished(pow, {0: (3,), 1: (4,)}, 1, 2))
    [(0, 9), (1, 16)]
    """
    backend, told = get_active_backend()
    n = (told or -1) if n_jobs is None else whole("n_jobs", n_jobs, 1)
    client = getattr(backend, "client", None)  # of a Dask cluster
    if len(jobs) < 2 or n == 1 or (client is None and effective_n_jobs(n) == 1):
        yield from ((i, task(*job, *shared)) for i, job in jobs.items())
        return
    left, tries = dict(jobs), 0
    while left and tries < _TRIES:
        calls = [(i, task, _packed(job)) for i, job in left.items()]
        how = _here(n, calls, shared) if client is None else _on(client, calls, shared)
        try:
            for i, result in how:
                del left[i]
                yield i, result
            tries = _TRIES  # a cluster has tried on several workers what is left
        except (TerminatedWorkerError, CancelledError):
            tries = tries + 1 if len(left) == len(calls) else 0
            said = "a worker died, killed or out of memory: its runs are made again"
            warnings.warn(said, stacklevel=2)
    if left:
        raise RuntimeError(
            "workers died again and again, as they do for lack of memory: what is "
            f"finished is kept, {len(left)} of {len(jobs)} runs are left"
        )


def _packed(job: tuple[Any, ...]) -> bytes:
    """Arguments for another process, code of the user's as it is here and now.

    A worker has perhaps imported it before an edit, or on a cluster never.
    """
    parts = [getattr(its, "func", its) for its in job if callable(its)]
    homes = {c.__module__ for part in parts for c in getattr(part, "__mro__", [part])}
    with contextlib.ExitStack() as afterwards:
        for name in homes & sys.modules.keys():
            if name.partition(".")[0] not in _NOT_THEIRS:
                cloudpickle.register_pickle_by_value(sys.modules[name])
                forget = cloudpickle.unregister_pickle_by_value
                afterwards.callback(forget, sys.modules[name])
        return bytes(cloudpickle.dumps(job))


def _done(
    i: int, task: Callable[..., Any], packed: bytes, *shared: Any
) -> tuple[int, Any]:
    """In a worker: a job's number, and what came of it."""
    return i, task(*pickle.loads(packed), *shared)


def _here(n: int, calls: Iterable[Any], shared: tuple[Any, ...]) -> Numbered:
    """As they finish, in ``n`` processes, or as joblib is told."""
    ends = {"initializer": _end_with, "initargs": (os.getpid(),)}
    at_once = get_active_backend()[0].supports_return_generator
    parallel = Parallel(
        n, return_as="generator_unordered" if at_once else "list", **ends
    )
    return iter(parallel(delayed(_done)(*call, *shared) for call in calls))


def _end_with(parent: int) -> None:
    """In a worker: end it soon after its parent, which may not live to tell it."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    if isinstance(multiprocessing.current_process(), LokyProcess):
        threading.Thread(target=watch, daemon=True).start()


def _on(client: Any, calls: Iterable[Any], shared: tuple[Any, ...]) -> Numbered:
    """As they finish, on a Dask cluster; joblib waits for ever where Dask gives up."""
    from distributed import KilledWorker, as_completed

    sent = client.scatter(list(shared), broadcast=True, hash=False) if shared else []
    submit = partial(client.submit, _done, pure=False)
    for future in as_completed([submit(*call, *sent) for call in calls]):
        with contextlib.suppress(KilledWorker):
            yield future.result()
