"""`GET /metrics` on the manager's address: asks the kernel for its numbers and writes them here."""

from __future__ import annotations

from wkhost.api.answers import NOT_FOUND, Answer, ApiError, text_answer
from wkhost.api.app import Receive, Scope, Send
from wkhost.api.kernel import Kernel
from wkhost.link.contract import GetMetrics, Metrics
from wkhost.metrics.render import CONTENT_TYPE, render


class MetricsApp:
    """An ASGI application with one path, open to everybody who reaches its address."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = await self._answer(scope)
        await send(
            {"type": "http.response.start", "status": answer.status, "headers": answer.headers}
        )
        await send({"type": "http.response.body", "body": answer.body})

    async def _answer(self, scope: Scope) -> Answer:
        if scope["method"] != "GET" or scope["path"] != "/metrics":
            return NOT_FOUND
        try:
            metrics = await self._kernel.ask(GetMetrics(), Metrics)
        except ApiError as error:
            # A scrape that fails must not look like one that found zeros.
            return text_answer(503, b"text/plain; charset=utf-8", error.msg.encode())
        body = render(metrics.numbers, metrics.histograms)
        return text_answer(200, CONTENT_TYPE.encode(), body)
