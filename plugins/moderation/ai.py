"""Asks an OpenAI-compatible moderation endpoint about a text, within its own deadline."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import httpx


@dataclass(frozen=True)
class AiConfig:
    """`url` is the whole address of the endpoint; empty turns it off. `policy` decides when it does
    not answer well within `timeout_ms`. `categories` limits what counts (empty: `flagged`)."""

    url: str = ""
    model: str = "omni-moderation-latest"
    timeout_ms: int = 800
    policy: Literal["open", "closed"] = "open"
    categories: list[str] = field(default_factory=list)
    code: int = 11
    text: str = "refused by moderation"
    cache_size: int = 10_000
    cache_s: int = 600

    def __post_init__(self) -> None:
        if self.url and not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url: expected http:// or https://, got {self.url!r}")
        if not 1 <= self.timeout_ms <= 60_000:
            raise ValueError(f"timeout_ms: expected 1 to 60000, got {self.timeout_ms}")
        if self.cache_size < 0:
            raise ValueError(f"cache_size: expected 0 or more, got {self.cache_size}")


class AiUnavailableError(Exception):
    """The endpoint gave no usable answer in time."""


class AiModerator:
    """One endpoint, its connections and its cache of answers. `key` gives what to show it now."""

    def __init__(self, config: AiConfig, key: Callable[[], str]) -> None:
        self.config = config
        self._key = key
        self._client: httpx.AsyncClient | None = None
        self._cache: OrderedDict[bytes, tuple[float, bool]] = OrderedDict()

    async def flags(self, text: str) -> bool:
        """Is the text to be refused? Raises AiUnavailableError."""
        key = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        known = self._cache.get(key)
        if known is not None and known[0] > time.monotonic():
            self._cache.move_to_end(key)
            return known[1]
        flagged = await self._ask(text)
        self._cache[key] = (time.monotonic() + self.config.cache_s, flagged)
        self._cache.move_to_end(key)
        while len(self._cache) > self.config.cache_size:
            self._cache.popitem(last=False)
        return flagged

    async def _ask(self, text: str) -> bool:
        import httpx  # only for those who use it: it costs a plugin process 100 ms and 10 MiB

        config = self.config
        if self._client is None:
            # The way out of the sandbox, where there is one; it carries https only.
            proxy = os.environ.get("HTTPS_PROXY") if config.url.startswith("https:") else None
            limits = httpx.Limits(max_connections=16)
            self._client = httpx.AsyncClient(
                limits=limits, timeout=None, trust_env=False, proxy=proxy
            )
        key = self._key()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        body = {"model": config.model, "input": text.encode("utf-8", "replace").decode()}
        try:
            async with asyncio.timeout(config.timeout_ms / 1000):
                response = await self._client.post(config.url, json=body, headers=headers)
        except TimeoutError:
            raise AiUnavailableError(f"no answer within {config.timeout_ms} ms") from None
        except httpx.HTTPError as error:
            raise AiUnavailableError(f"{type(error).__name__}: {error}") from error
        if response.status_code != 200:
            raise AiUnavailableError(f"status {response.status_code}")
        try:
            return self._decide(response.json())
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise AiUnavailableError(f"unexpected answer: {error!r}") from error

    def _decide(self, answer: Any) -> bool:
        wanted = self.config.categories
        for result in answer["results"]:
            if wanted:
                if any(result["categories"].get(name) is True for name in wanted):
                    return True
            elif result["flagged"] is True:
                return True
        return False

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None
