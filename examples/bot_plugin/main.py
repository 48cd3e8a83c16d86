"""An echo bot: whoever writes to it gets an answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from plugin_sdk import HostError, Message, Plugin, hook

PERSON = 1


class EchoBot(Plugin):
    @dataclass(frozen=True)
    class Config:
        """`uid` is the bot's own; the manifest must allow it to send as that."""

        uid: str = "echo-bot"
        greeting: str = "You said: "

    config: Config

    @hook
    async def receive(self, message: Message, uids: Sequence[str]) -> None:
        uid = self.config.uid
        if uid not in uids or message.from_uid == uid or not message.text:
            return
        body = {"type": 1, "content": self.config.greeting + message.text}
        payload = json.dumps(body, ensure_ascii=False).encode()
        # The same number for the same message: asked twice, it still answers once.
        number = f"echo-{message.message_id}"
        try:
            sent = await self.host.send_message(
                message.from_uid, PERSON, payload, from_uid=uid, client_msg_no=number
            )
        except HostError as error:
            self.log.warning("no answer sent", reason=str(error))
            raise
        if not sent.accepted:
            self.log.info("answer refused", code=sent.reason_code, reason=sent.reason)
