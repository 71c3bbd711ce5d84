"""What a router's core is made from: enough to make the same one again."""

from dataclasses import dataclass, replace

from router.core import RouterCore
from router.state import RouterSettings
from scheduling.policy import DeadlineThenOccupancy, Policy, Sharing
from scheduling.policy_settings import policy_of


@dataclass(frozen=True, slots=True)
class CoreSetup:
    """The policy by its name, and what may differ of it."""

    # With all that is changed of it; see `policy_of`.
    policy: str
    deadline_bucket_s: float
    kvc_bucket_blocks: int
    lending: bool
    settings: RouterSettings

    def new_policy(self) -> Policy:
        """Raises: PolicyInvalid."""
        widths = DeadlineThenOccupancy(self.deadline_bucket_s, self.kvc_bucket_blocks)
        policy = policy_of(self.policy, widths)
        return policy if self.lending else replace(policy, sharing=Sharing.NONE)

    def new_core(self) -> RouterCore:
        """A core that was told nothing yet. Raises: PolicyInvalid."""
        policy = self.new_policy()
        return RouterCore(policy, policy.new_predictor(), self.settings)
