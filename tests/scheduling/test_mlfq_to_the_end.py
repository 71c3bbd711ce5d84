"""FastServe's queues over random jobs and little memory: every job comes to its end."""

from dataclasses import dataclass, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduling.block_pool import num_blocks_for
from scheduling.ids import TaskId
from scheduling.mlfq import JobNeeds, KvRoom, MlfqChoice, MlfqSettings, SkipJoinMlfq

SETTINGS = MlfqSettings(max_num_seqs=2, max_prompt_tokens=100)


@dataclass(slots=True)
class Job:
    num_prompt: int
    num_output: int
    num_generated: int = 0
    num_kv: int = 0
    place: str = "nowhere"

    @property
    def num_missing(self) -> int:
        return self.num_prompt + self.num_generated - self.num_kv

    def num_blocks(self, num_more: int = 0) -> int:
        return num_blocks_for(self.num_kv + num_more, 4)

    @property
    def num_next(self) -> int:
        return min(self.num_missing, SETTINGS.max_prompt_tokens)

    @property
    def needs(self) -> JobNeeds:
        is_decoding = self.num_kv > 0 and self.num_missing == 1
        return JobNeeds(
            self.num_blocks(),
            self.num_blocks(self.num_next) - self.num_blocks(),
            0 if is_decoding else self.num_missing,
        )


class World:
    """A device, host memory, and jobs that arrive a few iterations apart."""

    def __init__(self, jobs: list[tuple[int, int]], num_blocks: int, num_host: int) -> None:
        self.jobs = {TaskId(str(n)): Job(*job) for n, job in enumerate(jobs)}
        self.num_blocks, self.num_host = num_blocks, num_host
        self.mlfq = SkipJoinMlfq(replace(SETTINGS, promotion_period=7, max_idle_s=0.05))
        self.now = 0.0
        self.log: list[MlfqChoice] = []

    def used(self, place: str) -> int:
        return sum(job.num_blocks() for job in self.jobs.values() if job.place == place)

    def move(self, task_ids: tuple[TaskId, ...], source: str, target: str) -> None:
        for task_id in task_ids:
            job = self.jobs[task_id]
            assert job.place == source
            job.place = target

    def step(self) -> None:
        free, free_host = self.num_blocks - self.used("device"), self.num_host - self.used("host")
        choice = self.mlfq.choose(KvRoom(free, free_host, self.num_host))
        self.mlfq.check_invariants()
        self.log.append(choice)
        assert not (choice.swap_out and choice.swap_in), "never both in one step"
        assert choice.run or choice.swap_out or choice.give_up, "somebody makes progress"
        assert len(choice.run) <= SETTINGS.max_num_seqs
        self.move(choice.give_up, "device", "nowhere")
        for task_id in choice.give_up:
            self.jobs[task_id].num_kv = 0
            self.mlfq.update(task_id, self.jobs[task_id].needs)
        self.move(choice.swap_out, "device", "host")
        self.move(choice.swap_in, "host", "device")
        assert self.used("host") <= self.num_host
        for task_id in choice.run:
            job = self.jobs[task_id]
            assert job.place == "device" or not job.num_kv
            job.place = "device"
            job.num_kv += job.num_next
            job.num_generated += not job.num_missing
        assert self.used("device") <= self.num_blocks
        for task_id in choice.run:
            self.mlfq.update(task_id, self.jobs[task_id].needs)
        if choice.run:
            self.now += 0.004
            self.mlfq.step_finished(0.004, self.now)
        for task_id in choice.run:
            job = self.jobs[task_id]
            if job.num_generated == job.num_output:
                del self.jobs[task_id]
                self.mlfq.remove(task_id)

    def run(self) -> list[MlfqChoice]:
        waiting = list(self.jobs)
        for number in range(20_000):
            if waiting and number % 5 == 0:
                task_id = waiting.pop(0)
                job = self.jobs[task_id]
                self.mlfq.add(task_id, job.num_prompt / 5000, job.needs, self.now)
            if not self.jobs:
                return self.log
            if len(self.mlfq):
                self.step()
        raise AssertionError("some jobs never end")


@settings(deadline=None, max_examples=150)
@given(
    jobs=st.lists(st.tuples(st.integers(1, 150), st.integers(1, 60)), min_size=1, max_size=8),
    # The longest job takes 53 blocks.
    num_blocks=st.integers(53, 130),
    num_host=st.sampled_from([0, 30, 1000]),
)
def test_all_jobs_end_within_the_memory_there_is(
    jobs: list[tuple[int, int]], num_blocks: int, num_host: int
) -> None:
    log = World(jobs, num_blocks, num_host).run()
    assert log == World(jobs, num_blocks, num_host).run(), "the same jobs, the same choices"
    if num_host == 1000:
        assert not any(choice.give_up for choice in log)
