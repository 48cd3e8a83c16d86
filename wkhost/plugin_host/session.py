"""The host's end of one generation's hook stream: handshake, credit, batches out, verdicts in.

Theory of operation. Everything is synchronous and runs in the trio thread. `submit` queues a call
and asks for a flush; calls of the same turn leave in one batch, and the next batch leaves as soon
as the last one is on its way (`writable`), so that batches grow with the load and no timer exists.
A call is in exactly one place: `_waiting` (not yet sent), `_outstanding` (sent, until the plugin
answers it, however late), or answered. An id that is in neither was never issued or was answered
before, and ends the stream. `end` is the one way out: whatever happens (stream closed, process
gone, rule broken), it answers every call once, or hands them over in a planned reload.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import trio
from google.protobuf.message import DecodeError

from plugin_sdk.wire.v1 import plugin_pb2
from wkhost.hooks.target import Answer, Answers
from wkhost.hooks.verdict import CONTINUE, Failure, Outcome, Replace
from wkhost.plugin_host import calls, codec, handshake
from wkhost.plugin_host.calls import Pending
from wkhost.plugin_host.grpc import BidiStream, GrpcError, Metadata, StatusCode
from wkhost.plugin_host.handshake import Identity
from wkhost.plugin_host.lineage import Lineage
from wkhost.types import Message

MAX_BATCH_BYTES = 256 * 1024
MAX_BATCH_CALLS = 1024
MAX_WAITING_BYTES = 16 * 1024 * 1024
MAX_WAITING_CALLS = 20_000
"""What may wait for credit; beyond it a call is refused as overload."""
MAX_CREDIT_CALLS = 1_000_000
MAX_CREDIT_BYTES = 1024 * 1024 * 1024
_EXPIRED = Failure(Outcome.TIMEOUT, "its budget ended before the plugin had credit for it")
_TOO_LARGE = Failure(Outcome.OVERLOAD, "larger than the plugin's credit")


class Session:
    """One stream. Implements the gRPC `StreamHandler`; `ended` is called once, when it is over."""

    def __init__(
        self,
        identity: Identity,
        token: bytes,
        answers: Answers,
        lineage: Lineage,
        schedule: Callable[[], None],
        ended: Callable[[str], None],
        secrets: Mapping[str, str] | None = None,
    ) -> None:
        """`schedule` asks for one call of `flush` before the loop waits again.

        `secrets` is None for a plugin that declares none; they are sent once and not kept.
        """
        self.identity = identity
        self.no = identity.manifest.no
        self.use(identity)
        self.implemented: frozenset[str] = frozenset()
        """Hooks that the code has, lifecycle included; known from its Hello on."""
        self.welcomed = False
        self.granted = trio.Event()
        """Set when the plugin has granted its first credit, or the session has ended."""
        self.failure = ""
        """Why it ended; empty while it has not."""
        self.broken = False
        """It ended because the plugin broke a rule of the stream."""
        self.lost = False
        """It ended because the other side went away, so the process's end says more."""
        self.frames = 0
        """Frames that the plugin sent: signs of life."""
        self.batches = 0
        self.sent_calls = 0
        self._token: bytes | None = token
        self._secrets = secrets
        self._answers = answers
        self._lineage = lineage
        self._schedule = schedule
        self._ended = ended
        self._stream: BidiStream | None = None
        self._hello_seen = False
        self._waiting: deque[Pending] = deque()
        self._waiting_bytes = 0
        self._outstanding: dict[int, Pending] = {}
        self._outstanding_bytes = 0
        self._credit_calls = 0
        self._credit_bytes = 0
        self._scheduled = False
        self._hand_over: Callable[[list[Pending]], None] | None = None
        self._idle: trio.Event | None = None

    def __repr__(self) -> str:
        return f"<Session {self.no} g{self.identity.generation} {self.failure or 'open'}>"

    def use(self, identity: Identity) -> None:
        """Be what `identity` says, from the next call on: rights may change while it runs."""
        self.identity = identity
        self.config_number = identity.config_number
        send = identity.manifest.hooks.get("send")
        self.send_payload = send is not None and send.payload
        self.may_send = bool(identity.manifest.capabilities.send_as)

    def give_secrets(self, values: Mapping[str, str] | None) -> None:
        """What goes with the Welcome; for a process that was started before they were wanted."""
        self._secrets = values

    @property
    def superseded(self) -> bool:
        """A newer generation has taken over; this one finishes what it has."""
        return self._hand_over is not None

    # --- calls out ------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """It can take calls."""
        return self._credit_calls > 0 and not self.failure

    @property
    def open_calls(self) -> int:
        return len(self._outstanding) + len(self._waiting)

    @property
    def oldest_call(self) -> Pending | None:
        """The call that the plugin has had longest, None when it has none."""
        return next(iter(self._outstanding.values()), None)

    def open_calls_of(self, hook: str) -> tuple[int, int]:
        """Return how many calls of a hook are at the plugin, and how many wait for credit."""
        return (
            sum(call.hook == hook for call in self._outstanding.values()),
            sum(call.hook == hook for call in self._waiting),
        )

    def is_open(self, call_id: int) -> bool:
        """Whether the plugin has the call and has not answered it."""
        return call_id in self._outstanding

    def submit(self, call: Pending) -> bool:
        """Queue a call. False: too much waits already, or the session is over."""
        size = call.estimate
        if self.failure or (
            self._waiting
            and (
                len(self._waiting) >= MAX_WAITING_CALLS
                or self._waiting_bytes + size > MAX_WAITING_BYTES
            )
        ):
            return False
        self._waiting.append(call)
        self._waiting_bytes += size
        if not self._scheduled:
            self._scheduled = True
            self._schedule()
        return True

    def flush(self) -> None:
        """Send as many batches as the stream and the credit take."""
        self._scheduled = False
        stream = self._stream
        while self._waiting and stream is not None and not self.failure:
            if stream.unsent_bytes or not self._send_batch(stream):
                return

    def _send_batch(self, stream: BidiStream) -> bool:
        """Send one batch. False: the credit allows no call."""
        waiting, outstanding = self._waiting, self._outstanding
        fields: list[bytes] = []
        failed: list[tuple[Pending, Failure]] = []
        batch_bytes = waited_bytes = 0
        bytes_left = self._credit_bytes - self._outstanding_bytes
        calls_left = min(self._credit_calls - len(outstanding), MAX_BATCH_CALLS)
        now = trio.current_time()
        while waiting and len(fields) < calls_left:
            call = waiting[0]
            failure = _EXPIRED if call.deadline <= now else None
            if failure is None:
                try:
                    content = call.encode(call, self, now)
                except ValueError as error:
                    failure = Failure(Outcome.CRASH, f"the call cannot be encoded ({error})")
            if failure is None:
                size = len(content)
                if size > bytes_left - batch_bytes and size <= self._credit_bytes:
                    break
                if fields and batch_bytes + size > MAX_BATCH_BYTES:
                    break
                if size > self._credit_bytes:
                    failure = _TOO_LARGE
            waiting.popleft()
            waited_bytes += call.estimate
            if failure is not None:
                failed.append((call, failure))
                continue
            call.size = size
            outstanding[call.call_id] = call
            batch_bytes += size
            fields.append(content)
        self._waiting_bytes -= waited_bytes
        self._outstanding_bytes += batch_bytes
        if fields:
            self.batches += 1
            self.sent_calls += len(fields)
            stream.send(codec.call_batch(fields, batch_bytes, self.config_number))
        for call, failure in failed:
            calls.deliver(self._answers, self.no, (call,), failure)
        return bool(fields or failed)

    # --- the stream's callbacks -----------------------------------------------------------------

    def opened(self, stream: BidiStream, metadata: Metadata) -> None:
        if self._stream is not None or self.failure:
            self.break_off("a second stream was opened")
            raise GrpcError(StatusCode.ALREADY_EXISTS, "one stream per process")
        self._stream = stream

    def message(self, data: bytes) -> None:
        if self.failure:
            return
        self.frames += 1
        try:
            frame = plugin_pb2.PluginFrame.FromString(data)
            kind = frame.WhichOneof("frame")
        except DecodeError:
            self.break_off("a frame is not a PluginFrame")
            return
        if kind == "verdicts" and self.welcomed:
            self._take_verdicts(frame.verdicts, len(data))
        elif kind == "credit" and self.welcomed:
            self._take_credit(frame.credit)
        elif kind == "hello" and not self._hello_seen:
            self._take_hello(frame.hello)
        else:
            self.break_off(f"frame {kind or 'empty'!r} is not allowed here")

    def half_closed(self) -> None:
        self.lose("the plugin closed its stream")

    def writable(self) -> None:
        self.flush()

    def closed(self, error: GrpcError | None) -> None:
        self._stream = None
        if error is None or error.code in (StatusCode.CANCELLED, StatusCode.UNAVAILABLE):
            self.lose("the stream was closed")
        else:
            self.break_off(f"the stream was closed ({error})")

    # --- handshake ------------------------------------------------------------------------------

    def _take_hello(self, hello: plugin_pb2.Hello) -> None:
        self._hello_seen = True
        token, self._token = self._token, None
        if not handshake.has_token(hello, token):
            self.break_off("wrong token")
            return
        refusal = handshake.refusal(hello, self.identity.manifest)
        if refusal or self._stream is None:
            self.end(refusal)
            return
        self.welcomed = True
        self.implemented = frozenset(hello.hooks)
        secrets, self._secrets = self._secrets, None
        frame = handshake.welcome_frame(self.identity, secrets_follow=secrets is not None)
        self._stream.send(frame)
        if secrets is not None:
            self.send_secrets(secrets)

    def send_secrets(self, values: Mapping[str, str]) -> None:
        """Let the plugin use these from its next call on."""
        if self._stream is not None and self.welcomed:
            self._stream.send(handshake.secrets_frame(values))

    def _take_credit(self, credit: plugin_pb2.Credit) -> None:
        calls, size = credit.calls, credit.bytes
        if not 0 < calls <= MAX_CREDIT_CALLS or not 0 < size <= MAX_CREDIT_BYTES:
            self.break_off(f"credit: {calls} calls and {size} bytes are out of bounds")
            return
        self._credit_calls, self._credit_bytes = calls, size
        self.granted.set()
        self.flush()

    # --- verdicts in ----------------------------------------------------------------------------

    def _take_verdicts(self, batch: plugin_pb2.VerdictBatch, size: int) -> None:
        found: list[tuple[int, Answer]] = []
        count = len(batch.continued) + len(batch.verdicts)
        if count > len(self._outstanding):
            violation = "more verdicts than outstanding calls"
        elif count > 1 and size > MAX_BATCH_BYTES:
            violation = f"a frame of {count} verdicts has {size} bytes, over {MAX_BATCH_BYTES}"
        else:
            violation = self._take_continued(batch.continued, found)
            if not violation and batch.verdicts:
                violation = self._take_answers(batch.verdicts, found)
        if found:
            # What these answers lead to leaves at the end of this; nobody need be woken for it.
            self._scheduled = True
            self._answers.answered(self.no, found)
            self._scheduled = False
        if violation:
            self.break_off(violation)
        elif self._waiting:
            self.flush()
        elif not self._outstanding and self._idle is not None:
            self._idle.set()

    def _take_continued(self, call_ids: Iterable[int], found: list[tuple[int, Answer]]) -> str:
        """Settle the calls of the hot path; return the rule that was broken, if one was."""
        take = self._outstanding.pop
        add = found.append
        returned = 0
        violation = ""
        for call_id in call_ids:
            call = take(call_id, None)
            if call is None:
                violation = f"verdict for call {call_id}, which is not outstanding"
                break
            returned += call.size
            if call.reply is None:
                add((call_id, CONTINUE))
            else:
                call.reply(CONTINUE)
        self._outstanding_bytes -= returned
        return violation

    def _take_answers(
        self, verdicts: Iterable[plugin_pb2.Verdict], found: list[tuple[int, Answer]]
    ) -> str:
        for verdict in verdicts:
            call_id = verdict.call_id
            call = self._outstanding.get(call_id)
            if call is None:
                return f"verdict for call {call_id}, which is not outstanding"
            answer = codec.read_verdict(verdict)
            if answer is None:
                return f"unknown outcome for call {call_id}"
            del self._outstanding[call_id]
            self._outstanding_bytes -= call.size
            answer = self._checked(call, answer)
            if self._hand_over is not None and call.attempt == 1 and isinstance(answer, Failure):
                # It may have failed because it was superseded: the new one decides.
                call.attempt = 2
                self._part([call], answer.detail)
            elif call.reply is None:
                found.append((call_id, answer))
            else:
                call.reply(answer)
        return ""

    def _checked(self, call: Pending, answer: Answer) -> Answer:
        if isinstance(answer, Failure):
            return answer
        if not isinstance(answer, call.allowed):
            name = type(answer).__name__
            return Failure(Outcome.CRASH, f"{name} does not answer this hook")
        if isinstance(answer, Replace) and not self.send_payload:
            return Failure(Outcome.CRASH, "replace needs payload = true in the manifest")
        return answer

    # --- the end --------------------------------------------------------------------------------

    async def wait_idle(self) -> None:
        """Return when no call is open, or the session is over."""
        while self.open_calls and not self.failure:
            self._idle = trio.Event()
            await self._idle.wait()

    def drain_into(self, hand_over: Callable[[list[Pending]], None]) -> None:
        """A planned end begins: unsent calls are handed over now, unanswered ones at `end`."""
        self._hand_over = hand_over
        unsent = list(self._waiting)
        self._waiting.clear()
        self._waiting_bytes = 0
        self._part(unsent, "a new generation took over")

    def end(self, reason: str) -> None:
        """It is over: answer every call as crashed, or hand it over if a reload was planned."""
        if self.failure:
            return
        self.failure = reason
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.finish(StatusCode.ABORTED, reason)
        waiting, outstanding = list(self._waiting), list(self._outstanding.values())
        self._outstanding.clear()
        self._waiting.clear()
        self._waiting_bytes = self._outstanding_bytes = 0
        self.granted.set()
        if self._idle is not None:
            self._idle.set()
        self._ended(reason)
        again = [call for call in outstanding if call.attempt == 1]
        if self._hand_over is None:
            self._crash(outstanding + waiting, reason)
            return
        self._crash([call for call in outstanding if call.attempt != 1], reason)
        for call in again:
            call.attempt = 2
        self._part(again + waiting, reason)

    def break_off(self, reason: str) -> None:
        """The plugin broke a rule: that is the end of this generation."""
        if not self.failure:
            self.broken = True
            self.end(reason)

    def lose(self, reason: str) -> None:
        """The other side went away."""
        if not self.failure:
            self.lost = True
            self.end(reason)

    def _part(self, pendings: list[Pending], reason: str) -> None:
        """Hand over what may move to the next generation; the rest has crashed."""
        assert self._hand_over is not None
        moving = [call for call in pendings if call.moves]
        self._crash([call for call in pendings if not call.moves], reason)
        if moving:
            self._hand_over(moving)

    def _crash(self, pendings: Sequence[Pending], reason: str) -> None:
        if pendings:
            failure = Failure(Outcome.CRASH, f"{self.no}: {reason}")
            calls.deliver(self._answers, self.no, pendings, failure)

    def lineage_of_call(self, call_id: int, hop: int) -> bytes:
        """Return the token that a send caused by this call must bring."""
        return self._lineage.for_call(self.no, call_id, hop)

    def lineage_of_message(self, message: Message) -> bytes:
        """Return the token that a send caused by this message must bring."""
        if not self.may_send:
            return b""
        return self._lineage.for_message(self.no, message.message_id, message.hop)

    def statistics(self) -> dict[str, Any]:
        return {
            "outstanding": len(self._outstanding),
            "waiting": len(self._waiting),
            "waiting_bytes": self._waiting_bytes,
            "batches": self.batches,
            "calls": self.sent_calls,
        }
