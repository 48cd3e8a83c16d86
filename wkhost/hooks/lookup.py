"""A look-up that plugins may answer (`channel_get`, `user_get`), as data of the dispatcher."""

from __future__ import annotations

from collections.abc import Callable

from wkhost.hooks.chain import Step
from wkhost.hooks.records import HookLine
from wkhost.hooks.target import (
    ChannelAnswer,
    ChannelGetCall,
    Target,
    UserAnswer,
    UserGetCall,
)
from wkhost.hooks.verdict import Failure, Refuse

LookupAnswer = ChannelAnswer | UserAnswer | Refuse | Failure | None
"""What a look-up ends with. None: no plugin overrides anything."""


class LookupCall:
    """One look-up on its way through its steps; subclasses say what is asked.

    `done` is called once with a `LookupAnswer`; a Failure means that a step whose policy is not
    open has failed. `line` is the plugin's end that is asked now or was last, since `called_at`.
    """

    __slots__ = ("called_at", "deadline", "done", "index", "line", "steps")

    hook: str
    answer_type: type
    may_refuse = False
    line: HookLine

    def __init__(self, steps: tuple[Step, ...], done: Callable[[LookupAnswer], None]) -> None:
        self.steps = steps
        self.done = done
        self.index = 0
        self.called_at = 0.0
        self.deadline = 0.0

    def submit(self, target: Target, call_id: int) -> bool:
        """Hand the call to `target`. False: it cannot take more."""
        raise NotImplementedError


class ChannelLookup(LookupCall):
    """Ask for overrides of one channel's record."""

    __slots__ = ("channel_id", "channel_type")

    hook = "channel_get"
    answer_type = ChannelAnswer

    def __init__(
        self,
        steps: tuple[Step, ...],
        done: Callable[[LookupAnswer], None],
        channel_id: str,
        channel_type: int,
    ) -> None:
        super().__init__(steps, done)
        self.channel_id = channel_id
        self.channel_type = channel_type

    def submit(self, target: Target, call_id: int) -> bool:
        return target.submit_channel_get(
            ChannelGetCall(call_id, self.channel_id, self.channel_type, self.deadline)
        )


class UserLookup(LookupCall):
    """Ask for overrides of one user's record; the answer may be kept and used again."""

    __slots__ = ("uid",)

    hook = "user_get"
    answer_type = UserAnswer

    def __init__(
        self, steps: tuple[Step, ...], done: Callable[[LookupAnswer], None], uid: str
    ) -> None:
        super().__init__(steps, done)
        self.uid = uid

    def submit(self, target: Target, call_id: int) -> bool:
        return target.submit_user_get(UserGetCall(call_id, self.uid, 0, self.deadline))


class LoginLookup(LookupCall):
    """Ask plugins about one login. They may refuse it; their failures are closed by default."""

    __slots__ = ("device_flag", "device_id", "peer_host", "token", "uid")

    hook = "user_get"
    answer_type = UserAnswer
    may_refuse = True

    def __init__(
        self,
        steps: tuple[Step, ...],
        done: Callable[[LookupAnswer], None],
        *,
        uid: str,
        device_flag: int,
        device_id: str,
        token: str,
        peer_host: str,
    ) -> None:
        super().__init__(steps, done)
        self.uid = uid
        self.device_flag = device_flag
        self.device_id = device_id
        self.token = token
        self.peer_host = peer_host

    def submit(self, target: Target, call_id: int) -> bool:
        return target.submit_user_get(
            UserGetCall(
                call_id,
                self.uid,
                self.device_flag,
                self.deadline,
                login=True,
                device_id=self.device_id,
                token=self.token,
                peer_host=self.peer_host,
            )
        )
