"""What the operator chose: typed settings and the reader that checks them."""

from config.read import ConfigError, Problem, Vocabulary, nearest, read, refusal
from config.settings import (
    AUTO,
    CapabilitySettings,
    ConditionSettings,
    LedgerSettings,
    ModelSettings,
    PoolSettings,
    RoutingSettings,
    RuleSettings,
    ServerSettings,
    Settings,
)

__all__ = [
    "AUTO",
    "CapabilitySettings",
    "ConditionSettings",
    "ConfigError",
    "LedgerSettings",
    "ModelSettings",
    "PoolSettings",
    "Problem",
    "RoutingSettings",
    "RuleSettings",
    "ServerSettings",
    "Settings",
    "Vocabulary",
    "nearest",
    "read",
    "refusal",
]
