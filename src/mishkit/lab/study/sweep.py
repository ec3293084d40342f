"""Run many trials: where the finished ones are kept, and who runs the others.

All runners are functions of trials that yield each trial with its result as soon as it is finished:
`one_by_one` in this process, `spread` over all devices of one launch, `in_processes` on one
machine, and `on_ray` on a cluster. Since a trial is a pure function of its settings, they differ
only in times, and in the last digits where `spread` sums gradients in another order.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from lightning_fabric import Fabric

from ..._missing import install
from .. import LabError
from ..common.files import whole_file
from . import trial
from .settings import Trial
from .training import Stopped
from .trial import Watcher

Done = tuple[Trial, dict[str, Any]]
Runner = Callable[[Sequence[Trial]], Iterator[Done]]
"""Yields trials with their results, in any order; raises `Stopped` after Ctrl-C."""

SETTINGS, TRIALS, LOCK = "sweep.json", "trials.jsonl", "sweep.lock"


class Store:
    """The finished trials of a sweep, in two files in its folder.

    sweep.json holds the settings that all trials share. trials.jsonl holds one finished trial per
    line, and lines are only ever appended. A line cut short by a crash is dropped.

    Raises
    ------
    LabError
        if the folder holds a sweep with other settings, or files that can't be read
    """

    def __init__(self, folder: Path, shared: Mapping[str, Any], *, fresh: bool = False) -> None:
        self.folder = folder
        self._path = folder / TRIALS
        self._results: dict[str, dict[str, Any]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        settings_file = folder / SETTINGS
        if not fresh and self._path.exists() and self._path.stat().st_size:
            _refuse_others(folder, settings_file, shared)
            self._read()
            return
        if not fresh and settings_file.exists():
            _settings_in(settings_file)
        with whole_file(self._path) as file:
            file.write("")
        with whole_file(settings_file) as file:
            file.write(json.dumps(dict(shared), indent=1) + "\n")

    def __contains__(self, job: Trial) -> bool:
        return job.id in self._results

    def __getitem__(self, job: Trial) -> dict[str, Any]:
        return self._results[job.id]

    def add(self, job: Trial, result: dict[str, Any]) -> None:
        """Store a trial permanently."""
        line = json.dumps({"trial": job.id, "settings": job.to_json(), "result": result})
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise LabError(f"{self._path} can't be written: {error.strerror or error}") from error
        self._results[job.id] = result

    def _read(self) -> None:
        text = self._path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        if len(whole) < len(text):
            os.truncate(self._path, len(whole))
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                record = json.loads(line)
                trial.check_result(record["result"])
                self._results[record["trial"]] = record["result"]
            except (ValueError, KeyError, TypeError):
                raise LabError(
                    f"{self._path}, line {number}, is no trial; --fresh begins anew"
                ) from None


def _refuse_others(folder: Path, settings_file: Path, shared: Mapping[str, Any]) -> None:
    stored = _settings_in(settings_file)
    current = json.loads(json.dumps(dict(shared)))
    for name in (*current, *(stored.keys() - current.keys())):
        if stored.get(name) != current.get(name):
            raise LabError(
                f"{folder} holds a sweep with {name} {stored.get(name)}, not {current.get(name)}: "
                "--output another folder, or --fresh to begin anew"
            )


def _settings_in(settings_file: Path) -> dict[str, Any]:
    """The settings of the sweep in a folder; LabError if the file isn't one of ours."""
    try:
        settings = json.loads(settings_file.read_text(encoding="utf-8"))
        if not isinstance(settings, dict) or "mishkit" not in settings:
            raise ValueError
    except (OSError, ValueError):
        raise LabError(
            f"{settings_file} holds no settings of a sweep: --output another folder, or --fresh to "
            "begin anew"
        ) from None
    checked: dict[str, Any] = settings
    return checked


def one_by_one(watcher: Watcher, is_stopping: Callable[[], bool]) -> Runner:
    """Run trials in this process."""

    def runner(trials: Sequence[Trial]) -> Iterator[Done]:
        for job in trials:
            yield job, trial.run(job.to_json(), watcher=watcher, is_stopping=is_stopping)

    return runner


def spread(fabric: Fabric, watcher: Watcher, is_stopping: Callable[[], bool]) -> Runner:
    """Run each trial on all devices of `fabric`. For the first process; the others `follow`."""

    def runner(trials: Sequence[Trial]) -> Iterator[Done]:
        for job in trials:
            settings = fabric.broadcast(job.to_json())
            yield (
                job,
                trial.run(settings, fabric=fabric, watcher=watcher, is_stopping=is_stopping),
            )

    return runner


def follow(fabric: Fabric, is_stopping: Callable[[], bool]) -> None:
    """Run the same trials as the first process, until it calls `dismiss`."""
    while (settings := fabric.broadcast(None)) is not None:
        try:
            trial.run(settings, fabric=fabric, is_stopping=is_stopping)
        except (Stopped, LabError):  # the first process has had the same error
            return


def dismiss(fabric: Fabric) -> None:
    """Tell the followers that there are no more trials."""
    fabric.broadcast(None)


@contextmanager
def in_processes(workers: int, is_stopping: Callable[[], bool]) -> Iterator[Runner]:
    """Run trials in this many processes on this machine."""
    # A forked process would believe that it has torch's threads, which don't exist there.
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    pool = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(stop,))

    def runner(trials: Sequence[Trial]) -> Iterator[Done]:
        running = {pool.submit(_work, job.to_json()): job for job in trials}
        while running:
            finished, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
            for future in finished:
                yield running.pop(future), future.result()
            if is_stopping():
                raise Stopped

    try:
        yield runner
    except BrokenProcessPool:
        raise LabError("a worker process died; is there memory for so many?") from None
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


_stop: Any = None


def _begin(stop: Any) -> None:
    global _stop
    _stop = stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process handles Ctrl-C


def _work(settings: dict[str, Any]) -> dict[str, Any]:
    return trial.run(settings, is_stopping=_stop.is_set)


@contextmanager
def on_ray(
    address: str, workers: int, threads: int, gpus: int, is_stopping: Callable[[], bool]
) -> Iterator[Runner]:
    """Run trials on a Ray cluster; "local" starts one here, for `workers` trials at a time."""
    try:
        import ray
    except ModuleNotFoundError:
        raise LabError(f"ray is not installed: {install('ray', 'ray')}") from None
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if address == "local":
        options.update(num_cpus=workers * threads, include_dashboard=False)
    try:
        ray.init(address=address, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise LabError(f"Ray at {address}: {' '.join(str(error).split())}") from None
    # A trial is rerun if its machine went down, but not after an error of its own.
    run = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=2)(trial.run)
    running: dict[Any, Trial] = {}

    def runner(trials: Sequence[Trial]) -> Iterator[Done]:
        running.update({run.remote(job.to_json()): job for job in trials})
        while running:
            finished, _ = ray.wait(list(running), timeout=0.2)
            for reference in finished:
                yield running.pop(reference), ray.get(reference)
            if is_stopping():
                raise Stopped

    try:
        yield runner
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, LabError):
            raise LabError(str(error.cause)) from None
        raise
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
        ray.shutdown()


class StopRequest:
    """While entered, the first Ctrl-C sets a flag; the second one interrupts as usual."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._before: Any = None
        self._installed = False

    def is_set(self) -> bool:
        return self._event.is_set()

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # Python forbids it elsewhere
            self._before = signal.signal(signal.SIGINT, self._handle)
            self._installed = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._event.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)
