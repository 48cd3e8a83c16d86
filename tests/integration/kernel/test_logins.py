"""CONNECT: tokens, bans, plugins, and who must leave when somebody else logs in."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from tests.kit.kernel import KernelKit, Kick, running_kernel
from tests.kit.targets import ManualTarget
from wkhost.errors import ReasonCode, StoreError
from wkhost.hooks.chain import Chain, Step
from wkhost.hooks.target import UserAnswer, UserGetCall
from wkhost.hooks.verdict import CONTINUE, Failure, Outcome, Policy, Refuse
from wkhost.kernel.connect import KICK_TEXT
from wkhost.kernel.settings import KernelSettings
from wkhost.link.contract import AddSubscribers, SetChannel, SetUserToken, Subscriber, UserStatus
from wkhost.types import DeviceFlag, DeviceLevel, Flags

APP, WEB, PC = DeviceFlag.APP, DeviceFlag.WEB, DeviceFlag.PC
SLAVE, MASTER = DeviceLevel.SLAVE, DeviceLevel.MASTER
AUTH = KernelSettings(token_auth_on=True)


def guarded(k: KernelKit, policy: Policy = Policy.CLOSED) -> ManualTarget:
    """Put a plugin on `user_get`; `policy` is the one of logins."""
    target = ManualTarget("guard", k.kernel)
    step = Step(target, Policy.OPEN, login_policy=policy)
    k.kernel.chain_changed(Chain(1, user_get=(step,)))
    return target


# --- who leaves ------------------------------------------------------------------------------


@pytest.mark.parametrize("old_level", [SLAVE, MASTER])
@pytest.mark.parametrize("new_level", [SLAVE, MASTER])
@pytest.mark.parametrize("same_device", [True, False])
@pytest.mark.parametrize("same_flag", [True, False])
async def test_who_leaves_when_somebody_else_logs_in(
    old_level: int, new_level: int, same_device: bool, same_flag: bool
) -> None:
    async with running_kernel(AUTH) as k:
        guard = guarded(k)
        old = k.connect("a", device_flag=APP, device_id="one", token="old")
        guard.answer(UserAnswer(authenticated=True, device_level=old_level))
        bystander = k.connect("b", device_flag=APP, device_id="one", token="x")
        guard.answer(UserAnswer(authenticated=True))
        new = k.connect(
            "a",
            device_flag=APP if same_flag else WEB,
            device_id="one" if same_device else "two",
            token="new",
        )
        guard.answer(UserAnswer(authenticated=True, device_level=new_level))
        assert k.outbox.accepted == [old, bystander, new]
        online = [s.conn_id for s in k.kernel.presence.sessions("a")]
        if not same_flag or (not same_device and new_level == SLAVE):
            assert online == [old, new], "both stay"
            assert (k.outbox.kicks, k.outbox.closes) == ([], [])
        elif same_device:
            assert online == [new]
            assert (k.outbox.kicks, k.outbox.closes) == ([], [(old, 2.0)])
        else:
            assert online == [new]
            kick = Kick(old, ReasonCode.CONNECT_KICK, KICK_TEXT, 2.0)
            assert (k.outbox.kicks, k.outbox.closes) == ([kick], [])
        assert len(k.kernel.presence.sessions("b")) == 1


async def test_a_master_login_ends_every_other_connection_of_its_flag() -> None:
    async with running_kernel() as k:
        slaves = [k.connect("a") for _ in range(3)]
        guard = guarded(k)
        k.connect("a")
        guard.answer(UserAnswer(authenticated=True, device_level=MASTER))
        assert [kick.conn_id for kick in k.outbox.kicks] == slaves


async def test_a_kicked_connection_neither_receives_nor_sends() -> None:
    async with running_kernel() as k:
        old, b = k.connect("a", device_id="one"), k.connect("b")
        new = k.connect("a", device_id="one")
        k.send(old, "b")
        await k.deliver(b, "a")
        assert not k.received(old)
        assert not k.received(b)
        assert len(k.received(new)) == 1
        k.kernel.closed([old])
        assert len(k.kernel.presence.sessions("a")) == 1, "its closing is not the new one's"


@pytest.mark.parametrize(("level", "kicked"), [(MASTER, True), (SLAVE, False)])
async def test_a_new_master_token_logs_out_everybody_of_that_flag(level: int, kicked: bool) -> None:
    async with running_kernel() as k:
        app = [k.connect("a", device_flag=APP) for _ in range(2)]
        web = k.connect("a", device_flag=WEB)
        other = k.connect("b", device_flag=APP)
        flushes = k.outbox.flushes
        assert await k.ask(SetUserToken("a", "t", APP, level)) == UserStatus(200)
        assert [
            (kick.conn_id, kick.reason_code, kick.close_after_s) for kick in k.outbox.kicks
        ] == ([(conn, ReasonCode.CONNECT_KICK, 10.0) for conn in app] if kicked else [])
        assert (k.outbox.flushes > flushes) or not kicked, "the DISCONNECT is written now"
        stay = [web, other] if kicked else [*app, web, other]
        assert sorted(k.kernel.presence.by_conn) == sorted(stay)


# --- tokens ----------------------------------------------------------------------------------


async def test_with_token_auth_only_the_stored_token_of_the_flag_holds() -> None:
    async with running_kernel(AUTH) as k:
        await k.ask(SetUserToken("a", "secret", APP, MASTER))
        wrong = [
            k.connect("a", device_flag=APP, token="wrong"),
            k.connect("a", device_flag=APP, token=""),
            k.connect("a", device_flag=APP, token="secret "),
            k.connect("a", device_flag=WEB, token="secret"),
            k.connect("nobody", device_flag=APP, token="secret"),
            k.connect("a", device_flag=APP, token="sécret"),
        ]
        assert [k.outbox.refused[conn][0] for conn in wrong] == [ReasonCode.AUTH_FAIL] * len(wrong)
        right = k.connect("a", device_flag=APP, token="secret")
        assert k.outbox.accepted == [right]
        assert k.kernel.presence.by_conn[right].device_level == MASTER


async def test_an_empty_stored_token_lets_nobody_in() -> None:
    async with running_kernel(AUTH) as k:
        await k.ask(SetUserToken("a", "", APP, MASTER))
        conn = k.connect("a", device_flag=APP, token="")
        assert k.outbox.refused[conn][0] == ReasonCode.AUTH_FAIL


async def test_without_token_auth_everybody_is_a_slave() -> None:
    async with running_kernel() as k:
        await k.ask(SetUserToken("a", "secret", APP, MASTER))
        conn = k.connect("a", token="anything")
        assert k.kernel.presence.by_conn[conn].device_level == SLAVE


@pytest.mark.parametrize("auth", [True, False])
@pytest.mark.parametrize(
    ("configured", "token", "holds"),
    [("", "", True), ("", "any", True), ("m", "m", True), ("m", "", False), ("m", "x", False)],
)
async def test_the_manager_uid_needs_the_managers_token(
    auth: bool, configured: str, token: str, holds: bool
) -> None:
    settings = KernelSettings(token_auth_on=auth, manager_uid="boss", manager_token=configured)
    async with running_kernel(settings) as k:
        conn = k.connect("boss", token=token)
        assert (conn in k.outbox.accepted) is holds
        if holds:
            assert k.kernel.presence.by_conn[conn].device_level == SLAVE
        else:
            assert k.outbox.refused[conn][0] == ReasonCode.AUTH_FAIL


@pytest.mark.parametrize(
    ("visitors_on", "uid", "holds"),
    [
        (True, "v___vstr", True),
        (True, "v__vstr", False),
        (True, "___vstr_", False),
        (False, "v___vstr", False),
    ],
)
async def test_the_visitor_suffix_needs_visitors_on(
    visitors_on: bool, uid: str, holds: bool
) -> None:
    async with running_kernel(KernelSettings(token_auth_on=True, visitors_on=visitors_on)) as k:
        assert (k.connect(uid) in k.outbox.accepted) is holds


# --- bans ------------------------------------------------------------------------------------


async def test_a_banned_user_is_refused_with_19_and_a_wrong_token_with_2_first() -> None:
    async with running_kernel(AUTH) as k:
        await k.ask(SetUserToken("a", "t", APP))
        await k.change(SetChannel("a", 1, ban=True))
        assert k.outbox.refused[k.connect("a", token="t")][0] == ReasonCode.BAN
        assert k.outbox.refused[k.connect("a", token="x")][0] == ReasonCode.AUTH_FAIL
        assert await k.ask(SetUserToken("a", "t2", APP, MASTER)) == UserStatus(19)
        await k.change(SetChannel("a", 1, disband=True))
        assert await k.ask(SetUserToken("a", "t2", APP, MASTER)) == UserStatus(24)
        await k.change(SetChannel("a", 1))
        assert k.connect("a", token="t") in k.outbox.accepted


async def test_send_ban_lets_a_user_in_but_every_send_is_refused_with_25() -> None:
    async with running_kernel() as k:
        await k.change(AddSubscribers("g", 2, [Subscriber("a")]))
        await k.change(SetChannel("a", 1, send_ban=True))
        a, b = k.connect("a"), k.connect("b")
        assert a in k.outbox.accepted
        for channel_id, channel_type in (("b", 1), ("g", 2), ("info", 6), ("a", 10), ("bot", 11)):
            sendack = await k.deliver(a, channel_id, channel_type=channel_type)
            assert sendack.reason_code == ReasonCode.SEND_BAN
        no_persist = await k.deliver(a, "b", flags=Flags.NO_PERSIST)
        assert no_persist.reason_code == ReasonCode.SEND_BAN
        assert not k.received(b)
        await k.change(SetChannel("a", 1))
        assert (await k.deliver(a, "b")).reason_code == ReasonCode.SUCCESS


# --- plugins ---------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [2, 19, 40, 255])
async def test_a_plugins_explicit_refusal_is_passed_on_as_it_is(code: int) -> None:
    async with running_kernel() as k:
        guard = guarded(k)
        conn = k.connect("a")
        assert conn not in k.outbox.refused
        guard.answer(Refuse(code, "because"))
        assert k.outbox.refused == {conn: (code, "because")}
        assert k.outbox.closes == []


@pytest.mark.parametrize("how", ["crash", "timeout", "overload", "down", "replies wrongly"])
async def test_a_plugin_that_fails_closes_silently_so_that_clients_come_back(
    how: str, autojump_clock: MockClock
) -> None:
    async with running_kernel() as k:
        guard = guarded(k)
        guard.ready, guard.room = how != "down", how != "overload"
        conn = k.connect("a")
        if how == "crash":
            guard.answer(Failure(Outcome.CRASH))
        elif how == "replies wrongly":
            guard.answer(Failure(Outcome.CRASH, "nonsense"))
        elif how == "timeout":
            await trio.sleep(1.1)
        assert (k.outbox.refused, k.outbox.accepted) == ({}, []), "a CONNACK would end reconnecting"
        assert k.outbox.closes == [(conn, 0.0)]
        assert k.kernel.statistics()["logins"]["waiting"] == 0


async def test_with_the_open_policy_a_failing_plugin_lets_the_kernel_decide() -> None:
    async with running_kernel(AUTH) as k:
        await k.ask(SetUserToken("a", "t", APP))
        guard = guarded(k, Policy.OPEN)
        right, wrong = k.connect("a", token="t"), k.connect("a", token="x")
        guard.answer(Failure(Outcome.CRASH))
        guard.answer(Failure(Outcome.CRASH))
        assert k.outbox.accepted == [right]
        assert k.outbox.refused[wrong][0] == ReasonCode.AUTH_FAIL


@pytest.mark.parametrize("method", ["device", "channel_info"])
async def test_a_store_error_closes_silently(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_kernel(AUTH) as k:
        await k.ask(SetUserToken("a", "t", APP))

        def broken(*args: object) -> None:
            raise StoreError("the disk is on fire")

        monkeypatch.setattr(k.store, method, broken)
        conn = k.connect("a", token="t")
        assert (k.outbox.refused, k.outbox.accepted) == ({}, [])
        assert k.outbox.closes == [(conn, 0.0)]


@pytest.mark.parametrize(
    ("answer", "token", "level"),
    [
        (UserAnswer(authenticated=True), "x", SLAVE),
        (UserAnswer(authenticated=True, device_level=MASTER), "x", MASTER),
        (UserAnswer(authenticated=False), "t", None),
        (UserAnswer(token="p"), "p", SLAVE),
        (UserAnswer(token="p", device_level=MASTER), "p", MASTER),
        (UserAnswer(token="p"), "t", None),
        (UserAnswer(token=""), "", None),
        (UserAnswer(device_level=MASTER), "t", MASTER),
        (UserAnswer(device_level=MASTER), "x", None),
        (UserAnswer(ban=False), "t", SLAVE),
        (CONTINUE, "t", SLAVE),
        (CONTINUE, "x", None),
    ],
)
async def test_what_a_plugin_says_overrides_the_stored_user(
    answer: UserAnswer, token: str, level: int | None
) -> None:
    async with running_kernel(AUTH) as k:
        await k.ask(SetUserToken("a", "t", APP, SLAVE))
        guard = guarded(k)
        conn = k.connect("a", token=token)
        guard.answer(answer)
        if level is None:
            assert k.outbox.refused[conn][0] == ReasonCode.AUTH_FAIL
        else:
            assert k.kernel.presence.by_conn[conn].device_level == level


@pytest.mark.parametrize(
    ("stored", "said", "refused"),
    [
        (False, True, True),
        (True, False, False),
        (True, None, True),
        (False, None, False),
    ],
)
async def test_a_plugin_may_ban_and_unban(stored: bool, said: bool | None, refused: bool) -> None:
    async with running_kernel() as k:
        await k.change(SetChannel("a", 1, ban=stored))
        guard = guarded(k)
        conn = k.connect("a")
        guard.answer(UserAnswer(ban=said))
        assert (conn in k.outbox.refused) is refused
        if refused:
            assert k.outbox.refused[conn][0] == ReasonCode.BAN


async def test_the_plugin_is_told_what_it_needs_to_decide() -> None:
    async with running_kernel() as k:
        guard = guarded(k)
        k.connect("a", device_flag=PC, device_id="laptop", token="t")
        call = guard.calls[0]
        assert isinstance(call, UserGetCall)
        assert (call.uid, call.device_flag, call.device_id) == ("a", PC, "laptop")
        assert (call.token, call.peer_host, call.login) == ("t", "127.0.0.1", True)


async def test_logins_with_the_same_token_are_asked_once_and_kept(
    autojump_clock: MockClock,
) -> None:
    async with running_kernel() as k:
        guard = guarded(k)
        together = [k.connect("a", token="t") for _ in range(5)]
        assert len(guard.calls) == 1, "single flight"
        guard.answer(UserAnswer(authenticated=True, ttl_s=5))
        assert k.outbox.accepted == together
        again = k.connect("a", token="t")
        assert again in k.outbox.accepted
        assert not guard.calls
        for uid, flag, token in (("b", APP, "t"), ("a", WEB, "t"), ("a", APP, "other")):
            k.connect(uid, device_flag=flag, token=token)
        assert len(guard.calls) == 3, "another uid, flag or token is another question"
        await trio.sleep(6)
        guard.calls.clear()
        k.connect("a", token="t")
        assert len(guard.calls) == 1, "the answer is too old"


async def test_refusals_and_failures_of_logins_are_not_kept() -> None:
    async with running_kernel() as k:
        guard = guarded(k)
        for answer in (Refuse(40), Failure(Outcome.CRASH), UserAnswer(authenticated=False)):
            k.connect("a", token="t")
            guard.answer(answer)
        assert k.outbox.accepted == []
        accepted = k.connect("a", token="t")
        guard.answer(UserAnswer(authenticated=True))
        assert k.outbox.accepted == [accepted]


async def test_answers_of_older_plugins_do_not_decide_logins_under_new_ones() -> None:
    async with running_kernel() as k:
        old = guarded(k)
        first = k.connect("a", token="t")
        new = guarded(k)
        second = k.connect("a", token="t")
        assert (len(old.calls), len(new.calls)) == (1, 1)
        old.answer(UserAnswer(authenticated=True, ttl_s=60))
        assert k.outbox.accepted == [first]
        third = k.connect("a", token="t")
        assert len(new.calls) == 1, "joined the question to the new plugin"
        new.answer(Refuse(40))
        assert sorted(k.outbox.refused) == [second, third]


async def test_a_connection_that_closes_while_its_login_is_decided_is_forgotten() -> None:
    async with running_kernel() as k:
        guard = guarded(k)
        gone, stays = k.connect("a", token="t"), k.connect("a", token="t")
        k.kernel.closed([gone])
        guard.answer(UserAnswer(authenticated=True))
        assert k.outbox.accepted == [stays]
        assert [s.conn_id for s in k.kernel.presence.sessions("a")] == [stays]
        assert k.kernel.statistics()["logins"]["waiting"] == 0


async def test_a_waiting_login_kicks_nobody_until_it_is_accepted() -> None:
    async with running_kernel() as k:
        old = k.connect("a", device_id="one")
        guard = guarded(k)
        k.connect("a", device_id="one", token="t")
        assert old in k.kernel.presence.by_conn
        guard.answer(Refuse(2))
        assert old in k.kernel.presence.by_conn
        assert k.outbox.closes == []
