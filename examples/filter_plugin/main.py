from plugin_sdk import Message, Plugin, Refuse, Verdict, hook


class Filter(Plugin):
    @hook
    def send(self, message: Message) -> Verdict | None:
        if b"spam" in message.payload:
            return Refuse(11, "no spam")
        return None
