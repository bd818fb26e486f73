"""ReplicasExecutor: several processes on this machine, each with cores of its own, that share one mapped checkpoint."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from itertools import groupby
from multiprocessing.connection import Connection, wait
from pathlib import Path

from mindone.models.share4v.checkpoint import Checkpoint
from mindone.models.share4v.child_process import start_python
from mindone.models.share4v.cpu_cores import Core, cpu_quota, default_threads, usable_cores
from mindone.models.share4v.kernels.numa_placement import check_placement
from mindone.models.share4v.load_options import LoadOptions

from ..options import AUTO, CaptioningSettings, ExecutorOptions, ModelChoice
from ..state.records import JobError, Record
from ..state.tasks import Task
from .replica import ReplicaSetup, main

CORES_PER_REPLICA = 8  # of `auto`; fewer than twice as many are used by one process
_MAX_DEATHS = 3  # times in a row that a replica may end before its next record
_MAX_AHEAD = 64  # batches of all replicas that may be given after the oldest unfinished task; as in the captioner
_END_SECONDS = 5.0  # within which a replica must end after its pipe was closed
_log = logging.getLogger(__name__)


def replica_count(choice: ModelChoice, options: ExecutorOptions) -> int:
    """Return the number of replicas that a job asks for, or that suits this machine.

    The latter is 1 below 16 cores, and for a checkpoint that is not converted: each replica would have weights of its
    own. Otherwise it is one for every 8 cores of a NUMA node. If each has a copy of the weights on its own node, it is
    one for each node, and if they alternate over the nodes, 1.
    """
    if options.replicas != AUTO:
        return int(options.replicas)
    cores, quota = usable_cores(), cpu_quota()
    if choice.numa == "local":
        return len({core.node for core in cores})
    if choice.numa == "interleave":  # which is for one process
        return 1
    count = automatic_count(cores, quota)
    return count if count > 1 and shares_weights(choice) else 1


def automatic_count(cores: Sequence[Core], quota: float | None) -> int:
    """Return the number of replicas for some cores, and for a quota of CPU time.

    Example:
        >>> from mindone.models.share4v.cpu_cores import Core
        >>> automatic_count([Core(cpu // 24, (cpu,)) for cpu in range(48)], None)
        6
    """
    usable = default_threads(cores, quota, {})
    if usable < 2 * CORES_PER_REPLICA:
        return 1
    if usable < len(cores):
        return usable // CORES_PER_REPLICA
    nodes = [core.node for core in cores]
    return sum(max(1, nodes.count(node) // CORES_PER_REPLICA) for node in set(nodes))


def shares_weights(choice: ModelChoice) -> bool:
    """Return whether the processes that load a model map its weights from one file, so that they need memory once.

    Raises:
        CheckpointError: its files are damaged.
    """
    if not Path(choice.model).is_dir():  # a name, whose files are those of its authors, or GGUF, which is repacked
        return False
    return (
        Checkpoint.open(choice.model, LoadOptions.pick(asdict(choice)), weights=False).config.quantization is not None
    )


def shares_of(cores: Sequence[Core], count: int, quota: float | None = None) -> list[list[Core]]:
    """Divide cores, those of a NUMA node together, among `count` replicas: no two nodes for one, if there are enough.

    With fewer replicas than nodes, each gets a node of its own if a quota of CPU time leaves it no use for more cores.

    Example:
        >>> from mindone.models.share4v.cpu_cores import Core
        >>> [len(share) for share in shares_of([Core(cpu // 12, (cpu,)) for cpu in range(20)], 3)]
        [6, 6, 8]
    """
    nodes = [list(group) for _, group in groupby(cores, key=lambda core: core.node)]
    if count < len(nodes):
        largest = sorted(range(len(nodes)), key=lambda number: -len(nodes[number]))[:count]
        is_enough = quota is not None and len(nodes[largest[-1]]) >= quota / count
        nodes = [nodes[number] for number in sorted(largest)] if is_enough else [list(cores)]
    parts = [1] * len(nodes)
    for _ in range(count - len(nodes)):
        fullest = max(range(len(nodes)), key=lambda number: len(nodes[number]) / parts[number])
        parts[fullest] += 1
    return [
        node[part * len(node) // all_parts : (part + 1) * len(node) // all_parts]
        for node, all_parts in zip(nodes, parts, strict=True)
        for part in range(all_parts)
    ]


class ReplicasExecutor:
    """Gives the tasks to replicas, which caption them; arguments as in `Executor`.

    A replica that is killed is started again, and its unfinished tasks are given again. Only this process writes the
    job's files. If it ends in any way, so do the replicas.

    Attributes:
        count: number of replicas.
        in_flight: maximum number of unfinished tasks of a replica.

    Raises:
        ValueError: there are fewer cores than replicas.
    """

    def __init__(
        self, *, choice: ModelChoice, settings: CaptioningSettings, options: ExecutorOptions, state: Path
    ) -> None:
        self.count = replica_count(choice, options)
        check_count(self.count, choice.numa)
        self._setup = choice, settings, state
        self.in_flight = 2 * settings.batch_size + 16  # of a replica: decoding, encoding, prefetched
        if self.count > 1 and choice.numa is not None:
            _log.warning("each of the %d processes copies the weights into memory of its NUMA node", self.count)
        elif self.count > 1 and not shares_weights(choice):
            _log.warning(
                "%s is not a converted checkpoint, so each of the %d processes has its own copy of the weights: "
                "convert it once (share4v convert), and they share one",
                choice.model,
                self.count,
            )

    def run(self, tasks: Iterable[Task]) -> Iterator[Record]:
        """Yield the records of all replicas as they arrive.

        Raises:
            JobError: a replica was killed several times in a row.
            Exception: what a replica raises, as this process would.
        """
        cores, quota = usable_cores(), cpu_quota()
        team: list[Replica] = []
        try:
            for number, own in enumerate(shares_of(cores, self.count, quota)):
                threads = default_threads(own, None if quota is None else quota / self.count)
                team.append(Replica(self._setup, number, own, threads))
            if self.count > 1:
                _log.warning("captioning in %d processes with %d threads each", self.count, team[0].threads)
            yield from self._records(team, Backlog(tasks, _MAX_AHEAD * self.count * self._setup[1].batch_size))
        finally:
            for replica in team:
                replica.close()

    def _records(self, team: Sequence[Replica], backlog: Backlog) -> Iterator[Record]:
        while True:
            while (replica := min(team, key=lambda one: len(one.unfinished))).has_room(self.in_flight):
                task = backlog.take()
                if task is None:
                    break
                replica.give(task)
            if not any(replica.unfinished for replica in team):
                return
            ready = wait([replica.connection for replica in team])
            for replica in team:
                record = replica.receive(backlog) if replica.connection in ready else None
                if record is not None:
                    yield record


class Backlog:
    """The tasks that no replica has; those of a killed replica come first.

    Args:
        tasks: consumed lazily.
        ahead: number of tasks that may be taken after the oldest unfinished one, whose record the others wait for.
    """

    def __init__(self, tasks: Iterable[Task], ahead: int) -> None:
        self._tasks, self._ahead = iter(tasks), ahead
        self._returned: deque[Task] = deque()
        self._unfinished: dict[int, int] = {}  # number of an input -> how many tasks were taken before; oldest first
        self._taken = 0

    def take(self) -> Task | None:
        """Return the next task; None if there is none, or if too many wait for the oldest one."""
        if self._returned:
            return self._returned.popleft()
        if self._unfinished and self._taken - next(iter(self._unfinished.values())) >= self._ahead:
            return None
        task = next(self._tasks, None)
        if task is not None:
            self._unfinished[task.item.number] = self._taken
            self._taken += 1
        return task

    def give_back(self, tasks: Iterable[Task]) -> None:
        """Take the tasks of a replica that was killed."""
        self._returned.extend(tasks)

    def finish(self, record: Record) -> None:
        """Note that a task is done."""
        del self._unfinished[record.number]


class Replica:
    """A process with a model, and the tasks that it was given.

    Args:
        setup: model, settings and state directory.
        number: of the replica, from 0.
        cores: on which it runs.
        threads: of its kernels.

    Attributes:
        unfinished: its tasks without a record, by the input's number.
    """

    def __init__(
        self,
        setup: tuple[ModelChoice, CaptioningSettings, Path],
        number: int,
        cores: Sequence[Core],
        threads: int,
    ) -> None:
        self.number, self.threads = number, threads
        self.unfinished: dict[int, Task] = {}
        self._setup, self._deaths = setup, 0
        self._cpus = {cpu for core in cores for cpu in core.cpus}
        self.connection: Connection
        self._process: subprocess.Popen[bytes]
        self._start()

    def has_room(self, most: int) -> bool:
        """Return whether it has fewer than so many unfinished tasks."""
        return len(self.unfinished) < most

    def give(self, task: Task) -> None:
        """Send a task; if the process has ended, `receive` will find out."""
        self.unfinished[task.item.number] = task
        with suppress(OSError):
            self.connection.send(task)

    def receive(self, backlog: Backlog) -> Record | None:
        """Return the record that has arrived; None if the process has ended, and was started again.

        Raises:
            JobError: it ended several times in a row.
            Exception: what ended the replica.
        """
        try:
            message = self.connection.recv()
        except (EOFError, OSError):
            self._replace(backlog)
            return None
        if isinstance(message, Exception):
            raise message
        record: Record = message
        self._deaths = 0
        del self.unfinished[record.number]
        backlog.finish(record)
        return record

    def close(self) -> None:
        """End the process: it ends by itself when its pipe is closed, or is killed if it does not."""
        self.connection.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _start(self) -> None:
        choice, settings, state = self._setup
        self.connection, self._process = start_python(main.__module__, {"OMP_NUM_THREADS": str(self.threads)})
        self._pin()  # before it imports anything that starts threads
        with suppress(OSError):  # it has ended already, which `receive` finds out
            self.connection.send(ReplicaSetup(choice=choice, settings=settings, state=state, number=self.number))

    def _pin(self) -> None:
        if not hasattr(os, "sched_setaffinity"):
            return
        try:
            os.sched_setaffinity(self._process.pid, self._cpus)
        except ProcessLookupError:  # it has ended already, which `receive` finds out
            return
        except OSError as error:  # a sandbox forbids it, or the CPUs were taken from this process meanwhile
            if self._setup[0].numa == "local":
                self.close()
                raise JobError(
                    "numa 'local' (--numa) needs processes that can be pinned to the cores of a NUMA node, and the "
                    f"system refused: {error.strerror}: leave numa out, or allow sched_setaffinity"
                ) from error
            _log.warning(
                "process %d of the job is not pinned to cores of its own, so the processes may get in each other's "
                "way: %s",
                self.number + 1,
                error.strerror,
            )

    def _replace(self, backlog: Backlog) -> None:
        self.close()
        self._deaths += 1
        how = _how_it_ended(self._process.returncode)
        if self._deaths == _MAX_DEATHS:
            raise JobError(
                f"process {self.number + 1} of the job {how}, {_MAX_DEATHS} times in a row without a caption: see its "
                "messages above; if memory ran out, use fewer replicas (--replicas) or a smaller batch_size "
                "(--batch-size); run the job again to resume it"
            )
        _log.warning(
            "process %d of the job %s and is started again; its %d inputs are captioned again",
            self.number + 1,
            how,
            len(self.unfinished),
        )
        backlog.give_back(self.unfinished.values())
        self.unfinished = {}
        self._start()


def check_count(count: int, numa: str | None = None) -> None:
    """Check that every replica gets a core, and suits the placement of the weights.

    Raises:
        ValueError: there are fewer cores, or more NUMA nodes than replicas, or `numa` is for one process.
    """
    check_placement(numa)
    cores = usable_cores()
    if count > len(cores):
        raise ValueError(
            f"replicas (--replicas) is {count}, but this process may use {len(cores)} cores: use at most one for each "
            "core"
        )
    nodes = len({core.node for core in cores})
    if numa == "local" and count < nodes:
        raise ValueError(
            f"numa 'local' puts a copy of the weights on each of the {nodes} NUMA nodes, but replicas (--replicas) is "
            f"{count}: use at least {nodes}, or leave replicas out"
        )
    if numa == "interleave" and count > 1:
        raise ValueError(
            f"numa 'interleave' is for one process on several NUMA nodes, but replicas (--replicas) is {count}: use 1, "
            "or numa 'local', which gives each node a copy of the weights"
        )


def _how_it_ended(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
    return f"was ended by {name}"
