"""What a router's core is made from: enough to make the same one again."""

from dataclasses import dataclass, replace

from router.core import RouterCore
from router.state import RouterSettings
from scheduling.policy import Policy, Sharing, policy_named


@dataclass(frozen=True, slots=True)
class CoreSetup:
    """The policy by its name, and what may differ of it."""

    policy: str
    deadline_bucket_s: float
    kvc_bucket_blocks: int
    lending: bool
    settings: RouterSettings

    def new_policy(self) -> Policy:
        """Raises: KeyError for an unknown name."""
        policy = policy_named(self.policy, self.deadline_bucket_s, self.kvc_bucket_blocks)
        return policy if self.lending else replace(policy, sharing=Sharing.NONE)

    def new_core(self) -> RouterCore:
        """A core that was told nothing yet. Raises: KeyError for an unknown policy."""
        policy = self.new_policy()
        return RouterCore(policy, policy.new_predictor(), self.settings)
