"""Tasks in other processes: of this machine, or of a cluster that joblib is told of.

A result is handed on as soon as it is there. What a worker was doing when it died,
killed or out of memory, is done again by another. A worker whose parent was killed
ends by itself.
"""

import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import Any

import cloudpickle
from joblib.externals.loky.process_executor import TerminatedWorkerError
from joblib.parallel import Parallel, delayed, get_active_backend

from llminfer.base.errors import whole

_NOT_THEIRS = {"llminfer", "__main__", *sys.stdlib_module_names}


def as_finished(
    task: Callable[..., Any], jobs: Mapping[int, Any], n_jobs: int | None, *shared: Any
) -> Iterator[tuple[int, Any]]:
    """The number of each job and what came of it, in the order in which they end.

    Args:
        task: What to do, a function.
        jobs: By number, its arguments.
        n_jobs: Processes; 1 is this one, None (or -1) takes as many as
            ``joblib.parallel_config`` says, or else one a core.
        *shared: More arguments, the same for all: a cluster is sent them once.

    Raises:
        RuntimeError: Workers die, again and again.

    >>> sorted(as_finished(pow, {0: [3], 1: [4]}, 1, 2))
    [(0, 9), (1, 16)]
    """
    backend, told = get_active_backend()
    all_of_them = n_jobs is None or (isinstance(n_jobs, int) and n_jobs == -1)
    n = (told or -1) if all_of_them else whole("n_jobs", n_jobs, 1, 1024)
    if len(jobs) < 2 or n == 1:
        yield from ((i, task(*job, *shared)) for i, job in jobs.items())
        return
    left, tries = dict(jobs), 0
    while left and tries < 3:  # times that workers die and nothing is finished
        calls = [(i, task, _packed(job)) for i, job in left.items()]
        try:
            for i, result in _started(n, backend, calls, shared):
                del left[i]
                yield i, result
            tries = 3  # a cluster has tried on several workers what is left
        except (TerminatedWorkerError, CancelledError):
            tries = tries + 1 if len(left) == len(calls) else 0
            warnings.warn("a worker died: what it did is done again", stacklevel=2)
    if left:
        kept = f"{len(left)} of {len(jobs)} runs are left, the others are kept"
        raise RuntimeError(f"workers died again and again, out of memory? {kept}")


def _packed(job: Any) -> Any:
    """Arguments as bytes, with the code of the user's own modules as it is now.

    A worker may have imported it before an edit, or on a cluster never.
    """
    parts = [getattr(its, "func", its) for its in job]
    kin = [k for p in parts for k in (p, *getattr(p, "__mro__", type(p).__mro__))]
    for name in {getattr(k, "__module__", "") for k in kin} & sys.modules.keys():
        if name.partition(".")[0] not in _NOT_THEIRS:
            cloudpickle.register_pickle_by_value(sys.modules[name])
    return cloudpickle.dumps(job)


def _done(i: int, task: Callable[..., Any], packed: bytes, *shared: Any) -> Any:
    """In a worker: a job's number, and what came of it."""
    return i, task(*cloudpickle.loads(packed), *shared)


def _started(n: int, backend: Any, calls: list[Any], shared: Any) -> Any:
    """What came of each, in ``n`` processes, or as joblib is told."""
    if hasattr(backend, "client"):
        return _on_cluster(backend.client, calls, shared)
    way = "generator_unordered" if backend.supports_return_generator else "list"
    ends = {"initializer": _end_with, "initargs": [os.getpid()]}
    # one by one: who is killed within a long message leaves its reader waiting for ever
    parallel = Parallel(n, return_as=way, batch_size=1, **ends)
    return parallel(delayed(_done)(*call, *shared) for call in calls)


def _end_with(parent: int) -> None:
    """In a worker: end it soon after its parent, which may not live to tell it."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    if os.getppid() in (parent, 1):  # else a server in between has forked it
        threading.Thread(target=watch, daemon=True).start()


def _on_cluster(client: Any, calls: list[Any], shared: Any) -> Iterator[Any]:
    """As they finish, on a Dask cluster; joblib waits for ever where Dask gives up."""
    from distributed import KilledWorker, as_completed

    sent = client.scatter(shared, broadcast=True, hash=False) if shared else ()
    runs = (client.submit(_done, *call, *sent, pure=False) for call in calls)
    call_of, blamed = dict(zip(runs, calls, strict=True)), []
    for future in as_completed(list(call_of)):
        try:
            yield future.result()
        except KilledWorker:
            blamed.append(call_of[future])
    for call in blamed:  # with them what only waited where they ran: now each alone
        with suppress(KilledWorker):
            yield client.submit(_done, *call, *sent, pure=False).result()
