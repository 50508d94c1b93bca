"""An engine without a model: it repeats the last message. For tests and demos, never a default."""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import msgspec

from engines.protocol import Answer, Endpoint, EngineFailed, Refused, Reply, Stream


class EchoEngine:
    """Answers with the text of the last message, a word at a time; one word is one token.

    Deterministic: the same request gives the same bytes, but for `id`, which is the request's.

    Parameters
    ----------
    model
        The name that replies carry.
    max_model_len
        Largest prompt plus answer, in words.
    word_s
        Seconds between two words of a stream.
    """

    def __init__(self, model: str, *, max_model_len: int = 4096, word_s: float = 0.0) -> None:
        self._model = model
        self._max_model_len = max_model_len
        self._word_s = word_s
        self._failure: str | None = None
        self._running = 0

    @property
    def failure(self) -> str | None:
        """See `Engine.failure`."""
        return self._failure

    @property
    def running(self) -> int:
        """See `Engine.running`."""
        return self._running

    @property
    def max_model_len(self) -> int:
        """See `Engine.max_model_len`."""
        return self._max_model_len

    @property
    def pids(self) -> list[int]:
        """See `Engine.pids`: none."""
        return []

    def use_threads(self, count: int) -> None:
        """See `Engine.use_threads`; echoing takes none."""

    def break_down(self, reason: str) -> None:
        """Fail from now on, as an engine does whose process died."""
        self._failure = reason

    async def close(self) -> None:
        """See `Engine.close`."""
        self._failure = self._failure or "the engine was closed"

    async def generate(self, endpoint: Endpoint, body: bytes, request_id: str) -> Reply:
        """See `Engine.generate`."""
        self._check()
        request = _read(body, endpoint)
        prompt = _prompt(request, endpoint)
        words = prompt.split()
        limit = request.get("max_completion_tokens") or request.get("max_tokens") or 10**9
        if len(words) >= self._max_model_len:
            raise Refused(
                f"This model's maximum context length is {self._max_model_len} tokens. "
                f"However, your prompt has {len(words)}. Shorten it.",
                param="messages" if endpoint == "chat" else "prompt",
                code="context_length_exceeded",
            )
        answer = words[:limit]
        shape = _Shape(endpoint, self._model, request_id, len(words))
        finish = "length" if len(answer) < len(words) else "stop"
        if request.get("stream"):
            options = request.get("stream_options") or {}
            return Stream(self._stream(shape, answer, finish, bool(options.get("include_usage"))))
        self._running += 1
        try:
            await asyncio.sleep(self._word_s * len(answer))
            self._check()
        finally:
            self._running -= 1
        return Answer(shape.whole(" ".join(answer), finish, len(answer)))

    async def _stream(
        self, shape: "_Shape", words: list[str], finish: str, usage: bool
    ) -> AsyncGenerator[bytes, None]:
        self._running += 1
        try:
            if shape.endpoint == "chat":
                yield shape.chunk({"role": "assistant", "content": ""}, None)
            for index, word in enumerate(words):
                await asyncio.sleep(self._word_s)
                self._check()
                text = word if index == 0 else f" {word}"
                yield shape.chunk(text if shape.endpoint == "completions" else {"content": text})
            yield shape.chunk("" if shape.endpoint == "completions" else {}, finish)
            if usage:
                yield shape.usage_chunk(len(words))
            yield b"data: [DONE]\n\n"
        finally:
            self._running -= 1

    def _check(self) -> None:
        if self._failure is not None:
            raise EngineFailed(f"The engine of `{self._model}` failed: {self._failure}.")


class _Shape:
    """OpenAI's response objects for one request."""

    def __init__(self, endpoint: Endpoint, model: str, request_id: str, prompt: int) -> None:
        self.endpoint = endpoint
        chat = endpoint == "chat"
        self._prompt = prompt
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{request_id}",
            "object": "chat.completion" if chat else "text_completion",
            "created": 0,
            "model": model,
        }

    def whole(self, text: str, finish: str, tokens: int) -> bytes:
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "logprobs": None}
        if self.endpoint == "chat":
            choice["message"] = {"role": "assistant", "content": text, "refusal": None}
        else:
            choice["text"] = text
        return json.dumps(
            {**self._head, "choices": [choice], "usage": self._usage(tokens)}
        ).encode()

    def chunk(self, delta: dict[str, str] | str, finish: str | None = None) -> bytes:
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "logprobs": None}
        choice["text" if isinstance(delta, str) else "delta"] = delta
        return self._event([choice])

    def usage_chunk(self, tokens: int) -> bytes:
        return self._event([], usage=self._usage(tokens))

    def _usage(self, tokens: int) -> dict[str, int]:
        return {
            "prompt_tokens": self._prompt,
            "completion_tokens": tokens,
            "total_tokens": self._prompt + tokens,
        }

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        head = dict(self._head)
        if self.endpoint == "chat":
            head["object"] = "chat.completion.chunk"
        data = json.dumps({**head, "choices": choices, **more}, separators=(",", ":"))
        return f"data: {data}\n\n".encode()


def _read(body: bytes, endpoint: Endpoint) -> dict[str, Any]:
    try:
        request = msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        raise Refused(f"The body is not JSON: {error}.") from None
    field = "messages" if endpoint == "chat" else "prompt"
    if not isinstance(request, dict) or not request.get(field):
        raise Refused(f"`{field}` is missing or empty.", param=field)
    return request


def _prompt(request: dict[str, Any], endpoint: Endpoint) -> str:
    if endpoint == "completions":
        prompt = request["prompt"]
        return prompt if isinstance(prompt, str) else " ".join(str(part) for part in prompt)
    content = request["messages"][-1].get("content") or ""
    if isinstance(content, str):
        return content
    return " ".join(part.get("text", "") for part in content)
