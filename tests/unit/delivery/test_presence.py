"""Who is online, and what awaits RECVACK."""

from __future__ import annotations

from wkhost.delivery.presence import PENDING_MAX, Pending, Presence, Session


def session(conn_id: int, uid: str = "a", level: int = 0) -> Session:
    return Session(conn_id, uid, f"d{conn_id}", 0, level, "127.0.0.1")


def test_sessions_are_found_by_connection_and_by_user_oldest_first() -> None:
    presence = Presence()
    first, second = session(1), session(2)
    presence.add(first)
    presence.add(second)
    assert presence.sessions("a") == [first, second]
    assert presence.by_conn[2] is second
    assert presence.remove(1) is first
    assert presence.sessions("a") == [second]


def test_removing_twice_or_an_unknown_connection_does_nothing() -> None:
    presence = Presence()
    presence.add(session(1))
    assert presence.remove(7) is None
    assert presence.remove(1) is not None
    assert presence.remove(1) is None
    assert (len(presence), presence.by_uid) == (0, {})


def test_offline_means_no_session_and_slaves_do_not_count_as_master() -> None:
    presence = Presence()
    presence.add(session(1, "slave"))
    presence.add(session(2, "master", 1))
    uids = ["slave", "master", "nobody"]
    assert presence.offline(uids) == ["nobody"]
    assert presence.without_master(uids) == ["slave", "nobody"]


def test_the_oldest_entry_gives_way_when_too_much_awaits_recvack() -> None:
    one = session(1)
    for message_id in range(PENDING_MAX + 5):
        one.await_recvack(message_id, Pending("g", 2, message_id + 1, 0.0))
    assert len(one.pending) == PENDING_MAX
    assert next(iter(one.pending)) == 5
