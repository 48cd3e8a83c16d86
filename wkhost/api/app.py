"""The ASGI application: dispatch, manager token, bounds, and the border of one API request.

A bare callable: the table of routes is all the framework there is (measured in an ADR).
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

import structlog

from wkhost.api import answers
from wkhost.api.answers import Answer, ApiError
from wkhost.api.go_json import DecodeError
from wkhost.api.kernel import Kernel
from wkhost.api.routes import Route

log = structlog.get_logger(__name__)

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]

_CLOSE = (b"connection", b"close")


class ApiApp:
    """Serves `routes` by asking `kernel`. `manager_token` "" means that none is needed."""

    def __init__(
        self,
        kernel: Kernel,
        routes: Iterable[Route],
        *,
        pages: dict[str, Answer] | None = None,
        manager_token: str = "",
        max_body_bytes: int = 4 * 1024 * 1024,
    ) -> None:
        self._kernel = kernel
        self._routes = {(route.method, route.path): route for route in routes}
        self._pages = pages or {}
        self._manager_token = manager_token.encode()
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = await self._answer(scope, receive)
        if answer is not None:
            await send(
                {
                    "type": "http.response.start",
                    "status": answer.status,
                    "headers": answer.headers,
                }
            )
            await send({"type": "http.response.body", "body": answer.body})

    async def _answer(self, scope: Scope, receive: Receive) -> Answer | None:
        """One request: the border at which its failures stop. None when the client has gone."""
        try:
            method, path = scope["method"], scope["path"]
            route = self._routes.get((method, path))
            if route is None:
                redirect = self._slash_redirect(scope, method, path)
                if redirect is not None:
                    return redirect
            if self._manager_token and not self._token_matches(scope):
                return answers.UNAUTHORIZED
            if route is None:
                return self._unrouted(method, path)
            return await self._routed(route, scope, receive)
        except ApiError as error:
            return error.answer()
        except Exception:
            log.exception("request failed", method=scope["method"], path=scope["path"])
            return answers.PANIC

    async def _routed(self, route: Route, scope: Scope, receive: Receive) -> Answer | None:
        decoded = None
        try:
            if route.body is not None:
                body = await self._read_body(receive)
                if body is None:
                    return None
                decoded = route.body.decode(body)
            elif route.query is not None:
                decoded = route.query.decode_query(scope["query_string"])
        except DecodeError as error:
            raise ApiError(route.bad_json.format(error)) from None
        return await route.handler(self._kernel, decoded)

    async def _read_body(self, receive: Receive) -> bytes | bytearray | None:
        """Return the whole body, None when the client leaves. Raises: _TooLargeError."""
        event = await receive()
        if event["type"] == "http.disconnect":
            return None
        body: bytes = event["body"]
        if not event.get("more_body", False) and len(body) <= self._max_body_bytes:
            return body
        whole = bytearray(body)
        while event.get("more_body", False):
            if len(whole) > self._max_body_bytes:
                break
            event = await receive()
            if event["type"] == "http.disconnect":
                return None
            whole += event["body"]
        if len(whole) > self._max_body_bytes:
            raise _TooLargeError(self._max_body_bytes)
        return whole

    def _token_matches(self, scope: Scope) -> bool:
        for name, value in scope["headers"]:
            if name == b"token":
                return hmac.compare_digest(value, self._manager_token)
        return False

    def _slash_redirect(self, scope: Scope, method: str, path: str) -> Answer | None:
        """Redirect a path with a superfluous trailing slash to its route, query included."""
        if len(path) < 2 or not path.endswith("/"):
            return None
        plain = path[:-1]
        known = (method, plain) in self._routes or (method == "GET" and plain in self._pages)
        if not known:
            return None
        query = scope["query_string"]
        location = plain.encode() + (b"?" + query if query else b"")
        answer = answers.empty_answer(301 if method == "GET" else 307)
        answer.headers.append((b"location", location))
        return answer

    def _unrouted(self, method: str, path: str) -> Answer:
        if method == "OPTIONS":
            return answers.NO_CONTENT
        if method == "GET":
            return self._pages.get(path, answers.NOT_FOUND)
        return answers.NOT_FOUND


class _TooLargeError(ApiError):
    """The rest of the body is not read, so the connection cannot be used again."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"请求体不能超过{limit}字节！", answers.MESSAGE_TOO_LARGE)

    def answer(self) -> Answer:
        answer = super().answer()
        answer.headers.append(_CLOSE)
        return answer
