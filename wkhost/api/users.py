"""/user/…: tokens and system accounts."""

from __future__ import annotations

import msgspec

from wkhost.api.answers import CHANNEL_BANNED, OK, Answer, json_answer
from wkhost.api.checks import has_special, refuse_if
from wkhost.api.kernel import Kernel
from wkhost.api.schema import SystemUids, UserToken
from wkhost.link.contract import AddSystemUids, Done, SetUserToken, UserStatus
from wkhost.types import SYSTEM_UID


class BannedStatus(msgspec.Struct, frozen=True):
    """The user may not log in: `status` 19 (banned) or 24 (disbanded); nothing was changed."""

    status: int
    code: int = CHANNEL_BANNED


async def token(kernel: Kernel, body: UserToken) -> Answer:
    refuse_if(not body.uid, "uid不能为空！")
    refuse_if(not body.token, "token不能为空！")
    refuse_if(has_special(body.uid), "uid不能包含特殊字符！")
    refuse_if(body.uid == SYSTEM_UID, "系统账号不允许更新token！")
    request = SetUserToken(body.uid, body.token, body.device_flag, body.device_level)
    answer = await kernel.ask(request, UserStatus)
    return OK if answer.status == 200 else json_answer(BannedStatus(answer.status))


async def system_uids_add(kernel: Kernel, body: SystemUids) -> Answer:
    await kernel.ask(AddSystemUids([uid for uid in body.uids if uid]), Done)
    return OK
