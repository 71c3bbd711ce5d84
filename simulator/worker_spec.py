"""What a simulated worker is started with."""

from dataclasses import dataclass

from decode_worker.core import DecodeCore
from decode_worker.kv_swapping import Preemption
from decode_worker.settings import DecodeSettings
from prefill_worker.core import PrefillCore, PrefillSettings
from scheduling.batching import BatchingRule
from scheduling.batching_rules import FillToTarget
from scheduling.ids import Incarnation, WorkerId
from scheduling.messages import PROTOCOL_VERSION, KvExport, WorkerHello
from scheduling.policy import GROWTH_RESERVE, growth_reserve_blocks
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
    preemption: Preemption = Preemption.AUTO
    prefix_caching: bool = True
    # None: decode tokens first, prompts up to max_num_batched_tokens.
    batching: BatchingRule | None = None
    victims: VictimRule = CheapestToRecompute()  # noqa: RUF009 - frozen
    is_preempting_eagerly: bool = False
    # More than 1 for engines that only count.
    max_untold_tokens: int = 1
    block_bytes: int = 1
    compatibility: str = "same"

    def hello(self, worker_id: WorkerId, life: Incarnation) -> WorkerHello:
        """What it says of itself."""
        reserve = growth_reserve_blocks(self.num_blocks, self.growth_reserve)
        return WorkerHello(
            protocol_version=PROTOCOL_VERSION,
            worker_id=worker_id,
            incarnation=life,
            role=self.role,
            num_blocks=self.num_blocks,
            block_size=self.block_size,
            max_num_seqs=self.max_num_seqs,
            compatibility=self.compatibility,
            model_fingerprint="model",
            num_growth_blocks=0 if self.role == "prefill" else reserve,
        )

    def new_core(self, hello: WorkerHello) -> PrefillCore | DecodeCore:
        """The product's own."""
        if self.role == "prefill":
            return PrefillCore(
                PrefillSettings(
                    self.num_blocks,
                    self.block_size,
                    self.max_num_seqs,
                    self.max_num_batched_tokens,
                    self.prefix_caching,
                )
            )
        export = KvExport(
            "simulated",
            hello.worker_id,
            self.num_blocks,
            self.block_bytes,
            hello.worker_id,
            hello.incarnation,
            "here",
        )
        settings = DecodeSettings(
            num_blocks=self.num_blocks,
            block_size=self.block_size,
            max_num_seqs=self.max_num_seqs,
            prefix_caching=self.prefix_caching,
            num_swap_blocks=self.num_swap_blocks,
            preemption=self.preemption,
            batching=self.batching or FillToTarget(self.max_num_batched_tokens),
            victims=self.victims,
            is_eager=self.is_preempting_eagerly,
            max_untold_tokens=self.max_untold_tokens,
        )
        return DecodeCore(settings, export)
