"""A plugin's life with real processes: start, death, restart, reload, stop."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import psutil
import pytest
import trio

from tests.integration.plugin_host.kit import (
    ECHO,
    alive,
    message,
    opened,
    running,
    until,
    write_plugin,
)
from tests.integration.plugin_host.raw import ROOT, write_raw
from wkhost.errors import PluginError
from wkhost.hooks.target import Answer
from wkhost.hooks.verdict import Continue, Failure, Outcome, Refuse, Replace
from wkhost.plugin_host.proxy import PluginProxy
from wkhost.plugin_host.sandbox.watch import family

NEVER = "pass"


def proxy_of(target: object) -> PluginProxy:
    assert isinstance(target, PluginProxy)
    return target


async def test_a_plugin_decides_and_its_process_is_contained(tmp_path: Path) -> None:
    code = ECHO + (
        "\nimport os, resource, sys\n"
        "print('ENV', sorted(os.environ))\n"
        "print('FDS', len(os.listdir('/proc/self/fd')))\n"
        "print('LIM', resource.getrlimit(resource.RLIMIT_DATA), "
        "resource.getrlimit(resource.RLIMIT_CORE), resource.getrlimit(resource.RLIMIT_NOFILE))\n"
        "print('ARG', [a for a in sys.argv if len(a) > 60])\n"
        "print(open('/proc/self/status').read().split('NoNewPrivs:')[1][:3].strip(), "
        "os.getsid(0) == os.getpid(), os.getcwd())\n"
    )
    os.environ["SECRET_OF_THE_HOST"] = "x"
    async with running(tmp_path) as it:
        status = await it.install(write_plugin(tmp_path / "src", code=code))
        assert (status.state, status.enabled, status.version) == ("running", True, "1.0.0")
        target = it.target("echo")
        ids = [it.send(target, payload) for payload in (b"hello", b"refuse", b"replace")]
        assert await it.recorder.wait(*ids) == [Continue(), Refuse(200, "no"), Replace(b"changed")]
        lines = "\n".join(it.logs("echo"))
        assert "SECRET" not in lines
        names = set(re.findall(r"'(\w+)'", next(x for x in it.logs("echo") if " ENV " in x)))
        given = {"HOME", "LANG", "PATH", "TMPDIR", "WKHOST_CONTROL_FD"}
        assert given <= names
        assert all(name in given or name.startswith("GRPC_") for name in names)
        assert "ARG []" in lines
        assert "LIM (536870912, 536870912) (0, 0) (256, 256)" in lines
        assert "1 False /plugin" in lines
        assert str(tmp_path) not in lines
    assert not alive(status.pid)
    assert not (tmp_path / "run").exists()


async def test_a_killed_plugin_answers_at_once_and_comes_back(tmp_path: Path) -> None:
    async with running(tmp_path) as it:
        status = await it.install(write_raw(tmp_path / "src", NEVER))
        target = proxy_of(it.target("raw"))
        ids = [it.send(target) for _ in range(50)]
        await until(opened(target, ids))
        waiting = it.send(target)
        killed = trio.current_time()
        os.kill(status.pid, signal.SIGKILL)
        answers = await it.recorder.wait(*ids, waiting)
        assert all(isinstance(a, Failure) and a.outcome is Outcome.CRASH for a in answers)
        # The rule is 10 ms on a quiet machine.
        assert max(it.recorder.times[i] for i in ids) - killed < 0.1
        with trio.fail_after(5):
            await target.wait_ready()
        again = it.host.info("raw")
        assert (again.state, again.restarts, again.generation) == ("running", 1, 2)
        assert again.pid != status.pid
        assert any("killed by SIGKILL" in line for line in it.logs("raw"))
        assert all(len(found) == 1 for found in it.recorder.found.values())


async def test_deaths_leave_no_process_descriptor_or_folder_behind(tmp_path: Path) -> None:
    others = set(psutil.Process().children())
    async with running(tmp_path) as it:
        await it.install(write_plugin(tmp_path / "src"))
        target = proxy_of(it.target("echo"))
        pids: list[int] = []
        descriptors: list[int] = []
        for _ in range(4):
            pids.append(it.host.info("echo").pid)
            os.kill(pids[-1], signal.SIGKILL)
            await until(lambda: not target.ready)
            await until(lambda: target.ready)
            await until(lambda: len(list((tmp_path / "run").iterdir())) == 1)
            descriptors.append(len(os.listdir("/proc/self/fd")))
        assert len(set(descriptors)) == 1
        assert not any(map(alive, pids))
        (child,) = set(psutil.Process().children()) - others
        assert it.host.info("echo").pid in family(child.pid)


async def test_calls_to_a_dead_plugin_crash_and_it_stays_in_the_chain(tmp_path: Path) -> None:
    async with running(tmp_path) as it:
        await it.install(write_plugin(tmp_path / "src", code=ECHO))
        target = proxy_of(it.target("echo"))
        for _ in range(2):
            os.kill(it.host.info("echo").pid, signal.SIGKILL)
            await until(lambda: not target.ready)
            (answer,) = await it.recorder.wait(it.send(target))
            assert isinstance(answer, Failure)
            assert answer.outcome is Outcome.CRASH
            assert it.chain.send[0].target is target
            await until(lambda: target.ready)


async def test_a_plugin_that_cannot_start_is_told_why_and_stays_disabled(tmp_path: Path) -> None:
    async with running(tmp_path) as it:
        source = write_plugin(tmp_path / "src", code="raise RuntimeError('no luck today')\n")
        with pytest.raises(PluginError, match=r"exited with status 1 .*no luck today"):
            await it.install(source)
        status = it.host.info("echo")
        assert (status.enabled, status.state) == (False, "disabled")
        assert it.chain.send == ()
        assert any("no luck today" in line for line in it.logs("echo"))


async def test_hooks_beyond_the_manifest_are_refused(tmp_path: Path) -> None:
    async with running(tmp_path) as it:
        source = write_plugin(tmp_path / "src", hooks="[hooks.receive]\n")
        with pytest.raises(PluginError, match=r"in the manifest: send .*in the code: rec"):
            await it.install(source)


async def test_an_enabled_plugin_that_crashes_at_start_backs_off_and_keeps_its_place(
    tmp_path: Path,
) -> None:
    code = ECHO + "\nimport os\nif os.path.exists(os.environ['HOME'] + '/bad'): os._exit(3)\n"
    async with running(tmp_path) as it:
        status = await it.install(write_plugin(tmp_path / "src", code=code))
        target = proxy_of(it.target("echo"))
        bad = tmp_path / "plugins" / "echo" / "data" / "bad"
        bad.touch()
        os.kill(status.pid, signal.SIGKILL)
        await until(lambda: (s := it.host.info("echo")).restarts >= 3 and s.state == "backoff")
        assert "exited with status 3" in it.host.info("echo").detail
        assert it.chain.send[0].target is target
        bad.unlink()
        await it.host.reload("echo")
        assert it.host.info("echo").state == "running"


async def test_a_stop_while_it_starts_does_not_wait_for_the_start(tmp_path: Path) -> None:
    async with running(tmp_path) as it:
        await it.install(write_plugin(tmp_path / "src"))
        slow = write_raw(tmp_path / "src", "time.sleep(60)", no="echo", serve=False)
        began = trio.current_time()
        async with trio.open_nursery() as nursery:

            async def upgrade() -> None:
                with pytest.raises(PluginError, match="stopped"):
                    await it.install(slow)

            nursery.start_soon(upgrade)
            await until(lambda: it.host.info("echo").state == "reloading")
            supervisor = it.host._active["echo"]
            await supervisor.stop("disable")
        assert trio.current_time() - began < 10


async def test_start_set_starts_exactly_what_is_wanted(tmp_path: Path) -> None:
    async with running(tmp_path) as it:
        for no in ("a", "b", "c"):
            await it.install(write_plugin(tmp_path / no, no), enable=no != "c")
        assert [step.target.no for step in it.chain.send] == ["a", "b"]
    async with running(tmp_path) as it:
        await it.host.start_set(None)
        assert [step.target.no for step in it.chain.send] == ["a", "b"]
        assert all(step.target.ready for step in it.chain.send)
        assert it.host.info("a").generation > 1
    async with running(tmp_path) as it:
        await it.host.start_set(["c", "a"])
        assert [step.target.no for step in it.chain.send] == ["a", "c"]
        assert it.host.info("b").state == "stopped"
        with pytest.raises(PluginError, match="nobody: not installed"):
            await it.host.start_set(["nobody"])


async def test_disable_leaves_the_chain_first_and_lets_calls_finish(tmp_path: Path) -> None:
    body = "time.sleep(0.3); verdicts(ids)"
    async with running(tmp_path) as it:
        status = await it.install(write_raw(tmp_path / "src", body))
        target = it.target("raw")
        call = it.send(target)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.host.disable, "raw")
            await until(lambda: not it.chain.send, within_s=5)
            assert call not in it.recorder.found
        assert await it.recorder.wait(call) == [Continue()]
        assert not alive(status.pid)
        assert it.host.info("raw").state == "disabled"


async def test_uninstall_leaves_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as it:
        status = await it.install(write_plugin(tmp_path / "src"))
        await it.host.uninstall("echo")
        assert not alive(status.pid)
        assert not (tmp_path / "plugins" / "echo").exists()
        assert it.host.list().plugins == []
        with pytest.raises(PluginError, match="echo: not installed"):
            it.host.info("echo")


async def test_reload_under_load_loses_and_repeats_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as it:
        first = await it.install(write_plugin(tmp_path / "src"))
        target = it.target("echo")
        ids: list[int] = []
        done = trio.Event()

        async def load() -> None:
            while not done.is_set():
                ids.extend(it.send(target) for _ in range(5))
                await trio.sleep(0.002)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(load)
            for _ in range(5):
                await it.host.reload("echo")
            done.set()
        answers = await it.recorder.wait(*ids)
        assert len(ids) > 500
        assert set(answers) == {Continue()}
        assert all(len(found) == 1 for found in it.recorder.found.values())
        status = it.host.info("echo")
        assert (status.generation, status.restarts) == (6, 0)
        await until(lambda: not alive(first.pid))


async def test_calls_of_a_draining_process_that_dies_are_issued_once_more(tmp_path: Path) -> None:
    never = "for c in calls.send: print('ATTEMPT', c.attempt, flush=True)"
    answer = never + "\nverdicts(ids)"
    async with running(tmp_path) as it:
        first = await it.install(write_raw(tmp_path / "src", never))
        target = proxy_of(it.target("raw"))
        ids = [it.send(target) for _ in range(20)]
        await until(opened(target, ids))
        await it.install(write_raw(tmp_path / "src", answer))
        assert it.recorder.found == {}
        later = it.send(target)
        os.kill(first.pid, signal.SIGKILL)
        assert set(await it.recorder.wait(*ids, later)) == {Continue()}
        assert it.recorder.moves == [(2, ids)]
        assert all(len(found) == 1 for found in it.recorder.found.values())
        await until(lambda: sum("ATTEMPT 2" in line for line in it.logs("raw")) == 20)
        assert it.host.info("raw").restarts == 0


async def test_a_call_issued_again_counts_for_the_version_that_answered(tmp_path: Path) -> None:
    code = (
        "from plugin_sdk import *\nimport asyncio\nclass Told(Plugin):\n    @hook\n"
        "    async def receive(self, message, uids):\n        await asyncio.sleep({})\n"
    )
    hooks = "[hooks.receive]\n"
    async with running(tmp_path) as it:
        old = code.format(3600)
        first = await it.install(
            write_plugin(tmp_path / "src", "told", old, hooks=hooks, version="1.0.0")
        )
        target = proxy_of(it.target("told"))
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(target.receive, message(), ["u2"])
                await until(lambda: target.session and target.session.open_calls_of("receive")[0])
                new = code.format(0)
                await it.install(
                    write_plugin(tmp_path / "src", "told", new, hooks=hooks, version="2.0.0")
                )
                os.kill(first.pid, signal.SIGKILL)
        counted = {each.version: each.verdicts for each in it.host.records.of("told")}
        assert counted == {"2.0.0": 1}


async def test_the_drain_limit_moves_calls_and_a_new_death_then_crashes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wkhost.plugin_host.supervisor.DRAIN_S", 0.2)
    async with running(tmp_path) as it:
        first = await it.install(write_raw(tmp_path / "src", NEVER))
        target = proxy_of(it.target("raw"))
        ids = [it.send(target) for _ in range(3)]
        await until(opened(target, ids))
        second = await it.host.reload("raw")
        await until(opened(target, ids))
        await until(lambda: not alive(first.pid))
        assert it.recorder.found == {}
        os.kill(second.pid, signal.SIGKILL)
        answers = await it.recorder.wait(*ids)
        assert all(isinstance(a, Failure) and a.outcome is Outcome.CRASH for a in answers)


async def test_a_reload_that_fails_leaves_the_old_process(tmp_path: Path) -> None:
    async with running(tmp_path) as it:
        first = await it.install(write_plugin(tmp_path / "src"))
        broken = write_plugin(tmp_path / "src", code="1/0\n", version="2.0.0")
        with pytest.raises(PluginError, match="ZeroDivisionError"):
            await it.install(broken)
        status = it.host.info("echo")
        assert (status.pid, status.version, status.state) == (first.pid, "1.0.0", "running")
        assert await it.recorder.wait(it.send(it.target("echo"))) == [Continue()]


async def test_an_upgrade_takes_over_with_its_own_predicates(tmp_path: Path) -> None:
    async with running(tmp_path) as it:
        await it.install(write_plugin(tmp_path / "src"))
        number = it.chain.number
        assert it.chain.send[0].matches is None
        status = await it.install(
            write_plugin(
                tmp_path / "src", version="2.0.0", hooks="[hooks.send]\nchannel_types = [2]\n"
            )
        )
        assert status.version == "2.0.0"
        assert it.chain.number == number + 1
        assert it.chain.send[0].matches is not None


async def test_two_reloads_of_two_plugins_at_once(tmp_path: Path) -> None:
    async with running(tmp_path) as it:
        for no in ("a", "b"):
            await it.install(write_plugin(tmp_path / no, no))
        async with trio.open_nursery() as nursery:
            for no in ("a", "b", "a", "b"):
                nursery.start_soon(it.host.reload, no)
        assert [it.host.info(no).generation for no in ("a", "b")] == [3, 3]
        for no in ("a", "b"):
            assert await it.recorder.wait(it.send(it.target(no))) == [Continue()]


async def test_an_impostor_is_refused_and_cannot_block(tmp_path: Path) -> None:
    # The real plugin waits until a stranger has dialled its socket several times.
    body = """
time.sleep(0.5)
stream = stub.Connect(frames(out))
hello()
next(stream)
credit()
for frame in stream:
    verdicts([call.call_id for calls in (frame.calls.send, frame.calls.stop) for call in calls])
    if frame.calls.stop:
        out.put(None)
"""
    async with running(tmp_path) as it:
        source = write_raw(tmp_path / "src", body, serve=False)
        got: list[bytes] = []

        def impostor() -> None:
            for _ in range(3):
                while not (paths := list((tmp_path / "run").glob("*.1/s"))):
                    time.sleep(0.001)
                with socket.socket(socket.AF_UNIX) as sock:
                    sock.connect(str(paths[0]))
                    sock.settimeout(5)
                    got.append(sock.recv(100))

        thread = threading.Thread(target=impostor)
        thread.start()
        await it.install(source)
        thread.join()
        assert got == [b"", b"", b""]
        assert await it.recorder.wait(it.send(it.target("raw"))) == [Continue()]
        assert list((tmp_path / "run").glob("*.1/s")) == []
        assert sum("refused a connection" in line for line in it.logs("raw")) == 3


async def test_plugins_die_with_a_killed_host(tmp_path: Path) -> None:
    write_plugin(tmp_path / "src")
    script = textwrap.dedent(
        f"""
        import trio
        from pathlib import Path
        from tests.integration.plugin_host.kit import running

        async def main():
            async with running(Path({str(tmp_path)!r})) as it:
                print((await it.install({str(tmp_path / "src")!r})).pid, flush=True)
                await trio.sleep_forever()

        trio.run(main)
        """
    )
    host = await trio.lowlevel.open_process(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=ROOT
    )
    assert host.stdout is not None
    with trio.fail_after(20):
        pid = 0
        while not pid:
            line = (await host.stdout.receive_some(4096)).decode()
            pid = next((int(word) for word in line.split() if word.isdigit()), 0)
        assert alive(pid)
        host.kill()
        await host.wait()
        await until(lambda: not alive(pid))


async def test_a_descendant_dies_with_its_plugin(tmp_path: Path) -> None:
    code = ECHO + (
        "\nimport subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)'])\n"
        "print('CHILD', child.pid, flush=True)\n"
    )
    async with running(tmp_path) as it:
        extra = "[sandbox]\nsubprocesses = true\n"
        status = await it.install(write_plugin(tmp_path / "src", code=code, extra=extra))
        await until(lambda: any("CHILD" in line for line in it.logs("echo")))
        child = family(status.pid)[1]
        assert alive(child)
        os.kill(status.pid, signal.SIGKILL)
        await until(lambda: not alive(child), within_s=5)


async def test_a_log_flood_is_bounded_and_hurts_nobody(tmp_path: Path) -> None:
    flood = ECHO + (
        "\nimport threading\n"
        "def flood():\n    while True: print('x' * 20000 + chr(27) + '[31m')\n"
        "threading.Thread(target=flood, daemon=True).start()\n"
    )
    async with running(tmp_path) as it:
        await it.install(write_plugin(tmp_path / "flood", "flood", code=flood))
        await it.install(write_plugin(tmp_path / "good", "good"))
        target = it.target("good")
        for _ in range(50):
            sent = trio.current_time()
            call = it.send(target)
            await it.recorder.wait(call)
            assert it.recorder.times[call] - sent < 0.5
        lines = it.logs("flood")
        assert sum(map(len, lines)) < 2 * 1024 * 1024
        assert all(line.isprintable() and len(line) < 9000 for line in lines)


async def test_an_idle_plugin_is_alive_after_15_seconds(tmp_path: Path) -> None:
    # The death signal of a process is bound to the thread that started it.
    async with running(tmp_path) as it:
        status = await it.install(write_plugin(tmp_path / "src"))
        await trio.sleep(15)
        assert it.host.info("echo").pid == status.pid
        assert await it.recorder.wait(it.send(it.target("echo"))) == [Continue()]


async def test_config_changes_are_a_transaction(tmp_path: Path) -> None:
    code = """
from plugin_sdk import Plugin, Refuse, Veto, hook

class Echo(Plugin):
    @hook
    def send(self, message):
        return Refuse(100 + self.config["level"], "x")

    @hook
    def config_update(self, config):
        if config["level"] > 5:
            return Veto("level is too high")
"""
    async with running(tmp_path) as it:
        extra = '[config]\nlevel = 1\n[schema.level]\ntype = "integer"\nmin = 0\nmax = 9\n'
        await it.install(write_plugin(tmp_path / "src", code=code, extra=extra))
        target = it.target("echo")

        async def level() -> Answer:
            (answer,) = await it.recorder.wait(it.send(target))
            return answer

        assert await level() == Refuse(101, "x")
        await it.configure("echo", level=3)
        assert await level() == Refuse(103, "x")
        with pytest.raises(PluginError, match="level is too high"):
            await it.configure("echo", level=7)
        with pytest.raises(PluginError, match="expected at most 9"):
            await it.configure("echo", level=17)
        assert await level() == Refuse(103, "x")
        await it.host.reload("echo")
        assert await level() == Refuse(103, "x")


async def test_order_and_cycles_are_told(tmp_path: Path) -> None:
    async with running(tmp_path) as it:
        await it.install(write_plugin(tmp_path / "a", "a", plugin='after = ["b"]'))
        await it.install(write_plugin(tmp_path / "b", "b", plugin='stage = "transform"'))
        assert [step.target.no for step in it.chain.send] == ["b", "a"]
        assert it.host.order().hooks["send"][1] == ("a", "stage transform, after b, priority 0")
        with pytest.raises(PluginError, match="cycle"):
            await it.install(write_plugin(tmp_path / "b", "b", plugin='after = ["a"]'))
        assert [step.target.no for step in it.chain.send] == ["b", "a"]
