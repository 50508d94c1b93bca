"""Every setting: its meaning, unit, bounds and default.

The descriptions here are the text of ``docs/configuration.md``, which is generated from them.
Instances are frozen; ``config.read`` is the way to make them from a file.
"""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from config.names import PlainName
from config.policy import PolicySettings

AUTO = "auto"
"""The model name that asks for a choice; no model may be called this."""


def is_auto(name: str) -> bool:
    """Return whether a model's name asks for a choice: `auto`, or `auto:` and a policy."""
    return name.partition(":")[0] == AUTO


Origin = Annotated[
    str,
    Meta(
        pattern=r"^(\*|https?://[^/\s]+)$",
        description="`*` or an origin: http:// or https://, a host, a port if need be, no path",
    ),
]


class ServerSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The HTTP end of the service."""

    host: Annotated[str, Meta(min_length=1, description="Address to listen on.")] = "127.0.0.1"
    port: Annotated[
        int, Meta(ge=0, le=65535, description="TCP port to listen on; 0 takes any free one.")
    ] = 8080
    max_body_mb: Annotated[
        float,
        Meta(gt=0, le=1024, description="Largest request body accepted, in megabytes (10^6 B)."),
    ] = 32
    shutdown_grace_s: Annotated[
        float,
        Meta(
            ge=0,
            le=3600,
            description="On SIGTERM or Ctrl-C, seconds that requests get to finish, also those "
            "that still wait; then they end with `shutting_down`. 0: at once.",
        ),
    ] = 30
    cors_origins: Annotated[
        list[Origin],
        Meta(
            description="Origins whose pages may use this service from a browser, for example "
            "`https://chat.example.com`; `*` in one stands for anything. Leave out for none."
        ),
    ] = []


class CapabilitySettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a model can do. Leave a key out to have it detected from the checkpoint."""

    vision: Annotated[
        bool | None,
        Meta(description="Reads images. Detected from the architecture in `config.json`."),
    ] = None
    tools: Annotated[
        bool | None,
        Meta(description="Calls tools. Detected: true when `tool_parser` is set."),
    ] = None


class ModelSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model and the engine that runs it."""

    name: Annotated[
        PlainName,
        Meta(description="The name clients use. Not `auto`, which asks for a choice."),
    ]
    source: Annotated[
        str,
        Meta(
            min_length=1,
            description="Where the weights are: a local directory (absolute, or relative to this "
            "file when it starts with `./` or `../`), a Hugging Face id (`owner/name`, or "
            "`owner/name@revision`), or `quickstart:smollm2-135m-instruct`.",
        ),
    ]
    description: Annotated[str, Meta(description="One line for people; shown in `/v1/models`.")] = (
        ""
    )
    engine: Annotated[
        Literal["vllm", "echo"],
        Meta(
            description="`vllm` runs the model. `echo` repeats the prompt, for tests and demos "
            "without a model."
        ),
    ] = "vllm"
    dtype: Annotated[
        Literal["auto", "bfloat16", "float16", "float32"],
        Meta(
            description="Number type of weights and activations. `auto` takes bfloat16 where the "
            "CPU has instructions for it, else what the checkpoint declares."
        ),
    ] = "auto"
    quantization: Annotated[
        str | None,
        Meta(
            description="vLLM's name of the weight format (`awq`, `compressed-tensors`, ...). "
            "Leave out to have it read from the checkpoint."
        ),
    ] = None
    max_model_len: Annotated[
        Annotated[int, Meta(ge=16, le=1_000_000_000)] | None,
        Meta(
            description="Largest context, prompt plus answer, in tokens. Leave out for the "
            "checkpoint's own."
        ),
    ] = None
    max_num_seqs: Annotated[
        int, Meta(ge=1, le=1024, description="Most requests this engine computes at a time.")
    ] = 8
    max_num_batched_tokens: Annotated[
        Annotated[int, Meta(ge=16, le=1_000_000_000)] | None,
        Meta(description="Most tokens in one step. Leave out for vLLM's default."),
    ] = None
    kv_cache_gb: Annotated[
        Annotated[float, Meta(gt=0, le=1_000_000)] | None,
        Meta(
            description="Memory reserved for the KV cache of this engine, in GiB; any fraction. "
            "Leave out for as much as `max_num_seqs` requests of `max_model_len` tokens take.",
        ),
    ] = None
    chunked_prefill: Annotated[
        bool, Meta(description="Split long prompts so that running answers keep flowing.")
    ] = True
    prefix_caching: Annotated[
        bool, Meta(description="Keep the KV cache of a prompt's beginning for the next turn.")
    ] = True
    enforce_eager: Annotated[
        bool,
        Meta(
            description="true: start without compiling (starts in seconds). false: compile first "
            "(starts in a minute or so, then generates faster)."
        ),
    ] = False
    threads: Annotated[
        Annotated[int, Meta(ge=1, le=1024)] | None,
        Meta(
            description="Most compute threads. Leave out to use every core; engines that are busy "
            "at the same time share the cores."
        ),
    ] = None
    capabilities: Annotated[
        CapabilitySettings, Meta(description="What the model can do, where detection is wrong.")
    ] = CapabilitySettings()
    tool_parser: Annotated[
        str | None,
        Meta(description="vLLM's name of the parser that finds tool calls in the answer."),
    ] = None
    reasoning_parser: Annotated[
        str | None,
        Meta(description="vLLM's name of the parser that separates reasoning from the answer."),
    ] = None
    preload: Annotated[
        bool, Meta(description="Load when the service starts, not on the first request.")
    ] = False
    pin: Annotated[
        bool, Meta(description="Once loaded, never unload to make room for another model.")
    ] = False
    idle_unload_s: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(
            description="Unload after this many seconds without a request. Leave out for never.",
        ),
    ] = None
    engine_args: Annotated[
        dict[str, Any],
        Meta(
            description="Further arguments for vLLM's engine, by the names of "
            "`vllm.engine.arg_utils.AsyncEngineArgs`. What has a key of its own here is refused."
        ),
    ] = {}


class PoolSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the models share this machine."""

    memory_budget_gb: Annotated[
        Annotated[float, Meta(gt=0, le=1_000_000)] | None,
        Meta(
            description="Memory that all loaded models together may take, in GiB. Leave out for "
            "80 % of what is available when the service starts.",
        ),
    ] = None
    load_timeout_s: Annotated[
        float,
        Meta(
            gt=0,
            le=86400,
            description="A load that takes longer than this has failed. The wait for another load "
            "does not count.",
        ),
    ] = 900
    load_wait_s: Annotated[
        float,
        Meta(
            gt=0,
            le=86400,
            description="Longest that a request waits for its model to be loaded, or for a free "
            "place on it; then 503.",
        ),
    ] = 300
    yield_after_s: Annotated[
        float,
        Meta(
            ge=0,
            le=86400,
            description="When a request has waited this long for memory that busy models hold, one "
            "of them takes no new requests and leaves when its running ones are over. So models "
            "that do not fit together take turns.",
        ),
    ] = 10
    min_dwell_s: Annotated[
        Annotated[float, Meta(ge=0, le=86400)] | None,
        Meta(
            description="A model that is in use stays at least this long before it makes room for "
            "another. Leave out for as long as its load took, so that at most half of the time "
            "goes into loading.",
        ),
    ] = None
    queue_max: Annotated[
        int,
        Meta(
            ge=1,
            le=100_000,
            description="Most requests that one model holds at a time, waiting and running; "
            "then 429.",
        ),
    ] = 128
    queue_total_max: Annotated[
        int,
        Meta(
            ge=1,
            le=100_000,
            description="Most requests that all models together hold at a time; then 429.",
        ),
    ] = 512


class LedgerSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which decisions are kept on disk, for feedback on them and for learning from it."""

    path: Annotated[
        Annotated[str, Meta(min_length=1)] | None,
        Meta(
            description="The file of the ledger (SQLite), made when it is not there; a relative "
            "path starts from this file. Leave out to keep nothing; then no feedback is taken."
        ),
    ] = None
    keep_text: Annotated[
        bool,
        Meta(
            description="Keep the text of requests, and notes, too: what the classifier can learn "
            "from. With false none is stored, and what an earlier start stored is erased."
        ),
    ] = False
    keep_days: Annotated[
        float, Meta(gt=0, le=36_500, description="Days after which a decision is erased.")
    ] = 30
    max_mb: Annotated[
        float,
        Meta(
            ge=1,
            le=1_000_000,
            description="Largest size of the file, in megabytes (10^6 B); the oldest tenth is "
            "erased when it is exceeded.",
        ),
    ] = 256


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole configuration file."""

    models: Annotated[
        list[ModelSettings], Meta(min_length=1, description="The models, at least one.")
    ]
    routing: Annotated[
        PolicySettings,
        Meta(
            description="The policy of `auto`: which model answers. Its keys are in "
            "[policy-keys.md](policy-keys.md). Left out: `balanced`."
        ),
    ] = PolicySettings()
    policies: Annotated[
        dict[PlainName, str],
        Meta(
            description="Further policies by name, for requests for `auto:NAME`: a shipped one or "
            "a file, relative to this one when it begins with `./` or `../`. The shipped ones are "
            "always there under their own names."
        ),
    ] = {}
    server: Annotated[ServerSettings, Meta(description="The HTTP end of the service.")] = (
        ServerSettings()
    )
    pool: Annotated[PoolSettings, Meta(description="How the models share this machine.")] = (
        PoolSettings()
    )
    ledger: Annotated[
        LedgerSettings, Meta(description="Which decisions are kept on disk; none by default.")
    ] = LedgerSettings()
    classifier: Annotated[
        Annotated[str, Meta(min_length=1)] | None,
        Meta(
            description="The file of a classifier that `axion train` wrote; a relative path starts "
            "from this file. Left out, or while there is no such file: the shipped one."
        ),
    ] = None
    aliases: Annotated[
        dict[str, str],
        Meta(
            description="Other names that clients may use, each for a model or for `auto`: "
            "`gpt-4o: auto` serves clients that insist on such names."
        ),
    ] = {}

    def model(self, name: str) -> ModelSettings:
        """Return the model called `name`; KeyError if there is none."""
        for model in self.models:
            if model.name == name:
                return model
        raise KeyError(name)
