"""What a simulated worker is started with."""

from dataclasses import dataclass

from decode_worker.core import DecodeCore
from decode_worker.settings import ROOMY_GROWTH_BLOCKS, DecodeSettings
from decode_worker.turn_taking import new_core
from prefill_worker.core import PrefillCore, PrefillSettings
from scheduling.batch_time_recovery import Preemption
from scheduling.batching import BatchingRule
from scheduling.batching_rules import FillToTarget
from scheduling.ids import Incarnation, WorkerId
from scheduling.kv_export import KvExport
from scheduling.messages import PROTOCOL_VERSION, WorkerHello
from scheduling.policy import GROWTH_RESERVE, growth_reserve_blocks
from scheduling.push_pacing import KvOverlap
from scheduling.victims import CheapestToRecompute, VictimRule


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """The settings of one worker, as its process would have them."""

    # "prefill", "decode" or "mixed".
    role: str
    num_blocks: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    num_swap_blocks: int = 0
    # Share of the pool of a decode or mixed worker.
    growth_reserve: float = GROWTH_RESERVE
    preemption: Preemption = Preemption.FIRST
    # Assumed of copies to host memory and back before the first.
    swap_bytes_per_s: float = 4e9
    prefix_caching: bool = True
    # Of a prefill worker.
    kv_overlap: KvOverlap = KvOverlap.AUTO
    # None: decode tokens first, prompts up to max_num_batched_tokens.
    batching: BatchingRule | None = None
    victims: VictimRule = CheapestToRecompute()  # noqa: RUF009 - frozen
    is_preempting_eagerly: bool = False
    parked_yields: bool = False
    is_growing_ahead: bool = True
    outgrown_wait_in_line: bool = False
    # More than 1 for engines that only count.
    max_untold_tokens: int = 1
    block_bytes: int = 1
    # The name of the one that the settings above are of.
    policy: str = ""
    compatibility: str = "same"

    def hello(self, worker_id: WorkerId, life: Incarnation) -> WorkerHello:
        """What it says of itself."""
        reserve = growth_reserve_blocks(self.num_blocks, self.growth_reserve)
        num_host_blocks = None if self.role == "prefill" else self.decode_settings.num_host_blocks
        return WorkerHello(
            protocol_version=PROTOCOL_VERSION,
            worker_id=worker_id,
            incarnation=life,
            role=self.role,
            num_blocks=self.num_blocks + (num_host_blocks or 0),
            block_size=self.block_size,
            max_num_seqs=self.max_num_seqs,
            compatibility=self.compatibility,
            model_fingerprint="model",
            num_growth_blocks=0 if self.role == "prefill" else reserve,
            max_task_blocks=0 if num_host_blocks is None else self.num_blocks,
            max_num_batched_tokens=self.max_num_batched_tokens,
            policy=self.policy,
            makes_room=self.role != "prefill" and self.decode_settings.makes_room,
        )

    def new_core(self, hello: WorkerHello) -> PrefillCore | DecodeCore:
        """The product's own."""
        if self.role == "prefill":
            return PrefillCore(self.prefill_settings)
        export = KvExport(
            "simulated",
            hello.worker_id,
            self.num_blocks,
            self.block_bytes,
            hello.worker_id,
            hello.incarnation,
            "here",
        )
        return new_core(self.decode_settings, export)

    @property
    def prefill_settings(self) -> PrefillSettings:
        """Of a prefill worker."""
        return PrefillSettings(
            self.num_blocks,
            self.block_size,
            self.max_num_seqs,
            self.max_num_batched_tokens,
            self.prefix_caching,
            kv_overlap=self.kv_overlap,
        )

    @property
    def decode_settings(self) -> DecodeSettings:
        """Of a decode or mixed worker."""
        return DecodeSettings(
            num_blocks=self.num_blocks,
            block_size=self.block_size,
            max_num_seqs=self.max_num_seqs,
            roomy_growth_blocks=ROOMY_GROWTH_BLOCKS,
            prefix_caching=self.prefix_caching,
            num_swap_blocks=self.num_swap_blocks,
            preemption=self.preemption,
            swap_bytes_per_s=self.swap_bytes_per_s,
            max_num_batched_tokens=self.max_num_batched_tokens,
            is_mixed=self.role == "mixed",
            batching=self.batching or FillToTarget(self.max_num_batched_tokens),
            victims=self.victims,
            is_eager=self.is_preempting_eagerly,
            parked_yields=self.parked_yields,
            is_growing_ahead=self.is_growing_ahead,
            outgrown_wait_in_line=self.outgrown_wait_in_line,
            max_untold_tokens=self.max_untold_tokens,
        )
