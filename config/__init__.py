"""What the operator chose: typed settings and the reader that checks them."""

from config.check_policy import policy_problems
from config.names import nearest
from config.policy import (
    ConditionSettings,
    PolicySettings,
    PolicyTestSettings,
    RuleSettings,
)
from config.read import ConfigError, Problem, Vocabulary, line_of, read, read_as, refusal
from config.settings import (
    AUTO,
    CapabilitySettings,
    LedgerSettings,
    ModelSettings,
    PoolSettings,
    ServerSettings,
    Settings,
    is_auto,
)

__all__ = [
    "AUTO",
    "CapabilitySettings",
    "ConditionSettings",
    "ConfigError",
    "LedgerSettings",
    "ModelSettings",
    "PolicySettings",
    "PolicyTestSettings",
    "PoolSettings",
    "Problem",
    "RuleSettings",
    "ServerSettings",
    "Settings",
    "Vocabulary",
    "is_auto",
    "line_of",
    "nearest",
    "policy_problems",
    "read",
    "read_as",
    "refusal",
]
