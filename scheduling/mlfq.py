"""FastServe's skip-join multi-level feedback queue: who gets a token, who is swapped. Pure.

A job joins the first queue whose quantum covers its prompt, falls one queue when it has used its
quantum up, and is preempted at every token by jobs of higher queues. KV of those that do not run
may move to host memory; the owner of this object performs what it decides, and tells it how many
blocks each job holds. Source: FastServe (Wu et al. 2023) and its released scheduler.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum, auto

from scheduling.ids import TaskId


@dataclass(frozen=True, slots=True)
class MlfqSettings:
    """Caps of one iteration, and the shape of the queues."""

    max_num_seqs: int
    # Tokens of prompts in one iteration; a longer prompt comes in pieces.
    max_prompt_tokens: int
    # Queue q has a quantum of base_quantum_s * quantum_growth ** q.
    base_quantum_s: float = 0.010
    quantum_growth: float = 2.0
    num_queues: int = 24
    # Blocks kept free for jobs to come: one for each of max_num_seqs, within these limits.
    min_free_blocks: int = 0
    max_free_blocks: int = 2**31 - 1
    # Iterations from one look for starving jobs to the next.
    promotion_period: int = 1000
    # A job without a token for so long is starving.
    max_idle_s: float = 3.0
    # With less of host memory free no new prompt is begun: its KV could not make room.
    min_free_host_fraction: float = 0.1

    def __post_init__(self) -> None:
        least = min(self.max_num_seqs, self.max_prompt_tokens, self.num_queues)
        if least < 1 or self.promotion_period < 1:
            raise ValueError(f"counts must be at least 1, got {self}")
        if self.base_quantum_s <= 0 or self.quantum_growth <= 1:
            raise ValueError(f"quanta must be positive and grow, got {self}")

    @property
    def num_reserved_blocks(self) -> int:
        """Blocks that are kept free where that is possible."""
        return max(min(self.max_num_seqs, self.max_free_blocks), self.min_free_blocks)

    def quantum_s(self, queue: int) -> float:
        """Time that a job may use in this queue."""
        return self.base_quantum_s * self.quantum_growth**queue


@dataclass(frozen=True, slots=True)
class JobNeeds:
    """What a job has and what its next iteration takes."""

    # That hold its KV, on the device or in host memory.
    num_blocks: int
    # More of them, for the next iteration.
    num_new_blocks: int
    # Of its prompt, still to be computed; 0 when it decodes.
    num_prompt_tokens: int
    # False: it waits for something that no room would help it to.
    can_run: bool = True
    # False: its KV cannot go to host memory.
    is_movable: bool = True


@dataclass(frozen=True, slots=True)
class KvRoom:
    """Free blocks at this moment."""

    num_free_blocks: int
    num_free_host_blocks: int
    # Size of the host memory; 0 where there is none.
    num_host_blocks: int


@dataclass(frozen=True, slots=True)
class MlfqChoice:
    """One iteration. First blocks are given up, then swapped out or in, then `run` computes.

    Never both ways of swapping. When nobody runs, but blocks were swapped out or given up, ask
    again at once.
    """

    # In order of priority.
    run: tuple[TaskId, ...]
    swap_out: tuple[TaskId, ...] = ()
    # Some of these run already.
    swap_in: tuple[TaskId, ...] = ()
    # Nobody could go on and host memory is full: its KV is lost and to be computed again.
    give_up: tuple[TaskId, ...] = ()


class KvPlace(Enum):
    """Where a job's KV is."""

    NOWHERE = auto()
    DEVICE = auto()
    HOST = auto()


@dataclass(slots=True)
class _Job:
    task_id: TaskId
    queue: int
    needs: JobNeeds
    last_run_at_s: float
    place: KvPlace = KvPlace.NOWHERE
    # Used of the quantum.
    service_s: float = 0.0

    @property
    def num_missing_blocks(self) -> int:
        """Free blocks of the device that its next iteration takes."""
        held = self.needs.num_blocks if self.place is KvPlace.HOST else 0
        return held + self.needs.num_new_blocks


@dataclass(slots=True)
class _Room:
    """Free blocks while an iteration is put together."""

    num_free: int
    num_free_host: int
    swapped_out: list[TaskId] = field(default_factory=list)

    def swap_out(self, job: _Job) -> bool:
        """Move its KV to host memory; False where there is no room, or nothing to move."""
        num_blocks = job.needs.num_blocks
        if job.place is not KvPlace.DEVICE or not 0 < num_blocks <= self.num_free_host:
            return False
        if not job.needs.is_movable:
            return False
        job.place = KvPlace.HOST
        self.num_free += num_blocks
        self.num_free_host -= num_blocks
        self.swapped_out.append(job.task_id)
        return True


class SkipJoinMlfq:
    """Jobs in queues; no job may ever need more blocks than the device has."""

    def __init__(
        self, settings: MlfqSettings, awaits: Callable[[TaskId], bool] = lambda _: False
    ) -> None:
        """`awaits`: whether a job without KV waits to share what another is computing now."""
        self._settings = settings
        self._awaits = awaits
        self._queues: list[OrderedDict[TaskId, _Job]] = [
            OrderedDict() for _ in range(settings.num_queues)
        ]
        self._job_by_id: dict[TaskId, _Job] = {}
        # Of the present iteration, in order of priority; those that are still here.
        self._chosen: dict[TaskId, None] = {}
        self._num_iterations = 0

    def __len__(self) -> int:
        return len(self._job_by_id)

    @property
    def has_chosen_all(self) -> bool:
        """Nobody is left out of the present iteration: it may be repeated as it is."""
        return len(self._chosen) == len(self._job_by_id)

    def __contains__(self, task_id: TaskId) -> bool:
        return task_id in self._job_by_id

    def queue_of(self, task_id: TaskId) -> int:
        """0 is the highest."""
        return self._job_by_id[task_id].queue

    def needs_of(self, task_id: TaskId) -> JobNeeds:
        """As told, or as the choices so far say."""
        return self._job_by_id[task_id].needs

    def is_on_device(self, task_id: TaskId) -> bool:
        """It has KV on the device, as far as the choices so far say."""
        return self._job_by_id[task_id].place is KvPlace.DEVICE

    def add(
        self,
        task_id: TaskId,
        prefill_s: float,
        needs: JobNeeds,
        now: float,
        place: KvPlace = KvPlace.NOWHERE,
    ) -> None:
        """A new job joins behind others, in the first queue whose quantum covers its prompt."""
        last = self._settings.num_queues - 1
        queue = next((q for q in range(last) if self._settings.quantum_s(q) >= prefill_s), last)
        job = _Job(task_id, queue, needs, last_run_at_s=now, place=place)
        self._job_by_id[task_id] = self._queues[queue][task_id] = job

    def update(self, task_id: TaskId, needs: JobNeeds) -> None:
        """What the job has and takes has changed: after each of its iterations."""
        self._job_by_id[task_id].needs = needs

    def put(self, task_id: TaskId, place: KvPlace) -> None:
        """Its KV is there, and it does not run, whatever the latest choice said."""
        self._job_by_id[task_id].place = place
        self._chosen.pop(task_id, None)

    def remove(self, task_id: TaskId) -> None:
        """It is over; harmless for one that is not here."""
        job = self._job_by_id.pop(task_id, None)
        if job is not None:
            del self._queues[job.queue][task_id]
            self._chosen.pop(task_id, None)

    def choose(self, room: KvRoom, *, may_give_up: bool = True) -> MlfqChoice:
        """Who gets a token in the next iteration, and whose KV moves before it.

        Without `may_give_up`, the choice is empty where nobody can go on.
        """
        left = _Room(room.num_free_blocks, room.num_free_host_blocks)
        batch = self._highest(room)
        num_needed = sum(job.num_missing_blocks for job in batch)
        is_short = num_needed + self._settings.num_reserved_blocks > left.num_free
        if is_short:
            batch = _fitting(self._make_room(batch, left), left)
        if not batch and not left.swapped_out:
            batch = self._first_that_fits(left)
        swap_in = [job for job in batch if job.place is KvPlace.HOST]
        if not is_short:
            swap_in += self._to_bring_back(batch, left.num_free - num_needed)
        give_up: tuple[TaskId, ...] = ()
        if may_give_up and not batch and not left.swapped_out:
            give_up = self._give_up_one()
        self._chosen = {job.task_id: None for job in batch}
        choice = MlfqChoice(
            tuple(self._chosen),
            tuple(left.swapped_out),
            tuple(job.task_id for job in swap_in),
            give_up,
        )
        for job in [*swap_in, *batch]:
            job.place = KvPlace.DEVICE
        for job in batch:
            if job.needs.num_new_blocks:
                num_blocks = job.needs.num_blocks + job.needs.num_new_blocks
                job.needs = JobNeeds(num_blocks, 0, job.needs.num_prompt_tokens)
        return choice

    def step_finished(self, step_s: float, now: float, num_steps: int = 1) -> None:
        """The chosen jobs ran, so many iterations of that length: demote who used a quantum up,
        promote who starves."""
        for task_id in reversed(self._chosen):
            job = self._job_by_id[task_id]
            job.last_run_at_s = now
            self._serve(job, step_s, num_steps)
            # Ahead of those of its queue that did not run.
            self._queues[job.queue].move_to_end(task_id, last=False)
        period = self._settings.promotion_period
        num_looks = self._num_iterations // period
        self._num_iterations += num_steps
        if self._num_iterations // period > num_looks:
            self._promote(now)

    def check_invariants(self) -> None:
        """Raise AssertionError unless every job is in its queue, and there only."""
        assert sum(map(len, self._queues)) == len(self._job_by_id)
        assert self._chosen.keys() <= self._job_by_id.keys()
        for task_id, job in self._job_by_id.items():
            assert self._queues[job.queue][task_id] is job
            assert job.place is not KvPlace.NOWHERE or not job.needs.num_blocks

    def _in_order(self) -> Iterator[_Job]:
        for queue in self._queues:
            yield from queue.values()

    def _from_below(self) -> Iterator[_Job]:
        for queue in reversed(self._queues):
            yield from reversed(queue.values())

    def _highest(self, room: KvRoom) -> list[_Job]:
        """Jobs from the top, up to both caps. The first prompt that does not fit its cap is
        overtaken by those that decode, not by other prompts."""
        least_host = self._settings.min_free_host_fraction * room.num_host_blocks
        is_host_full = room.num_free_host_blocks < least_host
        max_tokens = self._settings.max_prompt_tokens
        batch: list[_Job] = []
        num_tokens = 0
        for job in self._in_order():
            if len(batch) == self._settings.max_num_seqs:
                break
            needs = job.needs
            if not needs.can_run or (is_host_full and job.place is KvPlace.NOWHERE):
                continue
            if needs.num_prompt_tokens:
                if num_tokens > max_tokens or not self._can_run(job):
                    continue
                num_tokens += min(needs.num_prompt_tokens, max_tokens)
                if num_tokens > max_tokens:
                    continue
            batch.append(job)
        return batch

    def _make_room(self, batch: list[_Job], left: _Room) -> list[_Job]:
        """Swap out from below; return who of the batch is still here then.

        Those of the batch make room for each other only, not for what is to stay free. Nothing
        comes back in the step in which something leaves.
        """
        chosen = {job.task_id for job in batch}
        num_needed = sum(job.num_missing_blocks for job in batch)
        num_reserved = self._settings.num_reserved_blocks
        for job in self._from_below():
            if num_needed + num_reserved <= left.num_free:
                break
            if job.task_id not in chosen:
                left.swap_out(job)
        stay = list(batch)
        spared: list[_Job] = []
        while len(stay) > 1 and num_needed > left.num_free:
            job = stay.pop()
            num_missing = job.num_missing_blocks
            num_needed -= num_missing
            is_short = num_needed > left.num_free
            if is_short and not left.swap_out(job) and not num_missing:
                spared.append(job)  # it takes nothing, and cannot give anything
        stay += reversed(spared)
        if left.swapped_out:
            stay = [job for job in stay if job.place is not KvPlace.HOST]
        return stay

    def _first_that_fits(self, left: _Room) -> list[_Job]:
        """Host memory is full and the highest job has no room: whoever can go on, goes on."""
        for job in self._in_order():
            if job.num_missing_blocks <= left.num_free and self._can_run(job):
                return [job]
        return []

    def _can_run(self, job: _Job) -> bool:
        """With room: it waits for nothing else."""
        is_begun = job.place is not KvPlace.NOWHERE
        return job.needs.can_run and (is_begun or not self._awaits(job.task_id))

    def _to_bring_back(self, batch: list[_Job], num_free: int) -> list[_Job]:
        """Jobs near the top that will run soon, as far as the reserve stays free."""
        num_free -= self._settings.num_reserved_blocks
        chosen = {job.task_id for job in batch}
        others = (job for job in self._in_order() if job.task_id not in chosen)
        found: list[_Job] = []
        for _, job in zip(range(self._settings.max_num_seqs), others, strict=False):
            if job.place is KvPlace.HOST and job.needs.can_run and job.needs.num_blocks <= num_free:
                num_free -= job.needs.num_blocks
                found.append(job)
        return found

    def _give_up_one(self) -> tuple[TaskId, ...]:
        """Of those on the device, if there are any: that is where the others lack room."""
        holders = [job for job in self._from_below() if job.needs.num_blocks]
        found = [job for job in holders if job.needs.is_movable or not job.needs.num_prompt_tokens]
        if not found:
            return ()
        job = min(found, key=lambda job: job.place is KvPlace.HOST)
        job.place, num_blocks = KvPlace.NOWHERE, job.needs.num_blocks + job.needs.num_new_blocks
        job.needs = JobNeeds(0, num_blocks, job.needs.num_prompt_tokens)
        return (job.task_id,)

    def _serve(self, job: _Job, step_s: float, num_steps: int) -> None:
        """It ran so many iterations: down where it has used a quantum up, each time afresh."""
        last = self._settings.num_queues - 1
        while num_steps and step_s > 0 and job.queue < last:
            rest_s = self._settings.quantum_s(job.queue) - job.service_s
            num_until_over = max(1, int(rest_s / step_s) + 1)
            if num_until_over > num_steps:
                job.service_s += num_steps * step_s
                return
            num_steps -= num_until_over
            self._move(job, job.queue + 1)

    def _promote(self, now: float) -> None:
        starving = [
            j for j in self._in_order() if now - j.last_run_at_s >= self._settings.max_idle_s
        ]
        starving.sort(key=lambda job: job.last_run_at_s, reverse=True)
        for job in starving:  # who waited longest ends in front
            self._move(job, 0)
            self._queues[0].move_to_end(job.task_id, last=False)

    def _move(self, job: _Job, queue: int) -> None:
        del self._queues[job.queue][job.task_id]
        job.queue, job.service_s = queue, 0.0
        self._queues[queue][job.task_id] = job


def _fitting(batch: Iterable[_Job], left: _Room) -> list[_Job]:
    """Of those, in order, who has room."""
    num_free, found = left.num_free, []
    for job in batch:
        if job.num_missing_blocks <= num_free:
            num_free -= job.num_missing_blocks
            found.append(job)
    return found
