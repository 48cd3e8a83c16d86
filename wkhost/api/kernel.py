"""What the routes see of the kernel: one question, one answer of the expected type."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol, TypeVar

from wkhost.api.answers import (
    CODE_OF_ERROR,
    DATABASE_ERROR,
    NETWORK_ERROR,
    SYSTEM_OVERLOAD,
    ApiError,
)
from wkhost.link.contract import Error, Request, Response
from wkhost.link.errors import LinkBusyError, LinkLostError

T = TypeVar("T", bound=Response)


class Link(Protocol):
    """The part of `AsyncLinkClient` that routes use."""

    def ask(self, request: Request) -> Awaitable[Response]: ...


class Kernel:
    def __init__(self, link: Link) -> None:
        self._link = link

    async def ask(self, request: Request, answer_type: type[T]) -> T:
        """Raises: ApiError with the guide's number for every way in which this can fail."""
        answer = await self.ask_any(request)
        if type(answer) is answer_type:
            return answer
        raise as_api_error(answer)

    async def ask_any(self, request: Request) -> Response:
        """Like `ask`, but an `Error` is an answer too. Raises: ApiError when the link fails."""
        try:
            return await self._link.ask(request)
        except LinkLostError as error:
            raise ApiError(str(error), NETWORK_ERROR) from error
        except LinkBusyError as error:
            raise ApiError(str(error), SYSTEM_OVERLOAD) from error


def as_api_error(answer: Response) -> ApiError:
    if isinstance(answer, Error):
        return ApiError(answer.text, CODE_OF_ERROR[answer.kind])
    return ApiError(f"unexpected answer {type(answer).__name__} from the kernel", DATABASE_ERROR)
