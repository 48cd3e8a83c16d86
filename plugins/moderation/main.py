"""The moderation plugin: words first, in the process; then the AI endpoint, if one is set."""

from __future__ import annotations

from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from plugin_sdk import Message, Plugin, Refuse, Replace, Verdict, Veto, hook

from .ai import AiModerator, AiUnavailableError
from .jsontext import NotJsonError, mask_fields, parse_paths, read_fields
from .matcher import Matcher, mask
from .settings import Settings, load_lists

UNAVAILABLE_CODE = 15


class Moderation(Plugin):
    """Refuses or masks listed words, and may ask an AI moderator about the rest."""

    Config = Settings
    config: Settings

    @hook
    def start(self) -> None:
        lists = load_lists(self.config, [self.data_dir, Path(__file__).parent])
        self._matcher = Matcher(lists)
        self._refusals = {id(each): Refuse(each.code, each.text) for each in lists}
        ai = self.config.ai
        # Asked for at each request, so that a rotated key is used at once.
        self._ai = AiModerator(ai, lambda: self.secrets.get("ai_key", "")) if ai.url else None
        self._use(self.config)
        words = sum(len(each.words) for each in lists)
        self.log.info("word lists ready", lists=len(lists), words=words)

    def _use(self, settings: Settings) -> None:
        self._settings = settings
        self._paths = parse_paths(settings.fields)
        self._types = frozenset(settings.types)

    @hook
    def send(self, message: Message) -> Verdict | Coroutine[Any, Any, Verdict | None] | None:
        settings = self.config
        if settings is not self._settings:
            self._use(settings)
        text = message.payload.decode("utf-8", "surrogateescape")
        try:
            kind, strings = read_fields(text, self._paths)
        except NotJsonError:
            return self._plain(text) if settings.plain == "scan" else None
        if self._types and not self._has_type(kind):
            return None
        masked = False
        for string in strings:
            found = self._matcher.find(string)
            if found.refused_by is not None:
                return self._refusals[id(found.refused_by)]
            masked = masked or bool(found.spans)
        verdict = None
        if masked:
            new = mask_fields(text, self._paths, lambda value: self._matcher.find(value).spans)
            verdict = Replace(new.encode("utf-8", "surrogateescape"))
        return verdict if self._ai is None else self._ask(self._ai, strings, verdict)

    def _has_type(self, kind: Any) -> bool:
        return isinstance(kind, int | float) and kind in self._types

    def _plain(self, text: str) -> Verdict | Coroutine[Any, Any, Verdict | None] | None:
        found = self._matcher.find(text)
        if found.refused_by is not None:
            return self._refusals[id(found.refused_by)]
        verdict = None
        if found.spans:
            verdict = Replace(mask(text, found.spans).encode("utf-8", "surrogateescape"))
        return verdict if self._ai is None else self._ask(self._ai, [text], verdict)

    async def _ask(
        self, ai: AiModerator, strings: list[str], verdict: Verdict | None
    ) -> Verdict | None:
        text = "\n".join(strings)
        if not text.strip():
            return verdict
        try:
            flagged = await ai.flags(text)
        except AiUnavailableError as error:
            self.log.warning("AI moderator gave no answer", reason=str(error))
            if ai.config.policy == "closed":
                return Refuse(UNAVAILABLE_CODE, "moderation is not available")
            return verdict
        return Refuse(ai.config.code, ai.config.text) if flagged else verdict

    @hook
    def config_update(self, config: Settings) -> Veto | None:
        """What is scanned may change while running. Word lists take long to build, and the AI
        moderator holds connections: another of these is for the next generation."""
        for name in ("lists", "ai"):
            if getattr(config, name) != getattr(self._settings, name):
                return Veto(f"{name}: a change takes effect with a reload of the plugin")
        return None

    @hook
    async def stop(self, reason: str) -> None:
        if self._ai is not None:
            await self._ai.close()
