"""The moderation plugin: what is found, what is refused, what masking changes and what not."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugin_sdk import ConfigError, Continue, Refuse, Replace
from plugin_sdk.testing import SyncPluginTest
from plugins.moderation.fold import fold
from plugins.moderation.jsontext import NotJsonError, mask_fields, parse_paths, read_fields
from plugins.moderation.main import Moderation
from plugins.moderation.matcher import Matcher, WordList, mask, merge

LISTS = [
    {"name": "no", "words": ["forbidden", "禁词"], "action": "refuse", "code": 11, "text": "no"},
    {"name": "soft", "words": ["darn", "Äpfel", "aa"], "action": "mask"},
]
ALPHABET = "abAB äÄßİK字😀."
words_of = st.lists(st.text(ALPHABET, min_size=1, max_size=4), max_size=6)
texts = st.text(ALPHABET, max_size=40)


def text(content: Any, **more: Any) -> bytes:
    return json.dumps({"type": 1, "content": content, **more}, ensure_ascii=False).encode()


def plugin(**config: Any) -> SyncPluginTest:
    return SyncPluginTest(Moderation, config={"lists": LISTS, **config})


def naive_spans(words: list[str], value: str) -> list[tuple[int, int]]:
    """Every place of every word, by plain search."""
    folded = fold(value)
    wanted = {fold(word) for word in words}
    found = [
        (start, start + len(word))
        for word in wanted
        for start in range(len(folded))
        if folded.startswith(word, start)
    ]
    return merge(found)


# Folding and matching


@given(st.text())
def test_folding_keeps_every_character_in_its_place(value: str) -> None:
    folded = fold(value)
    assert len(folded) == len(value)
    assert fold(folded) == folded
    assert folded == "".join(fold(char) for char in value)


@given(words_of, texts)
def test_found_spans_agree_with_a_naive_search(words: list[str], value: str) -> None:
    matcher = Matcher([WordList("soft", words, "mask")])
    assert matcher.find(value).spans == naive_spans(words, value)


@given(words_of, texts)
def test_masked_text_holds_no_listed_word_and_keeps_its_length(
    words: list[str], value: str
) -> None:
    found = Matcher([WordList("soft", words, "mask")]).find(value)
    masked = mask(value, found.spans)
    assert len(masked) == len(value)
    assert not any(fold(word) in fold(masked) for word in words)
    hidden = {at for start, end in found.spans for at in range(start, end)}
    for at, char in enumerate(value):
        assert masked[at] == ("*" if at in hidden else char)


def test_the_first_refusing_list_in_their_order_wins() -> None:
    lists = [WordList("a", ["one"]), WordList("b", ["two"]), WordList("c", ["one", "two"])]
    found = Matcher(lists).find("two one")
    assert found.refused_by is lists[0]


@pytest.mark.parametrize(
    ("value", "hit"),
    [("ass", True), ("an ASS!", True), ("class", False), ("assess", False), ("ass字", True)],
)
def test_whole_words_are_found_only_where_they_stand_alone(value: str, hit: bool) -> None:
    found = Matcher([WordList("w", ["ass"], "mask", whole_words=True)]).find(value)
    assert bool(found.spans) is hit


def test_whole_words_does_not_concern_words_of_other_scripts() -> None:
    found = Matcher([WordList("w", ["禁词"], "mask", whole_words=True)]).find("很禁词很")
    assert found.spans == [(1, 3)]


# The plugin


def test_refused_masked_and_clean_messages() -> None:
    with plugin() as t:
        assert t.send(text("so FORBIDDEN")) == Refuse(11, "no")
        assert t.send(text("一个禁词")) == Refuse(11, "no")
        assert t.send(text("Darn ÄPFEL aaa")) == Replace(text("**** ***** ***"))
        assert t.send(text("hello")) == Continue()


def test_a_refusal_wins_over_a_mask() -> None:
    with plugin() as t:
        assert t.send(text("darn forbidden")) == Refuse(11, "no")


def test_masking_changes_nothing_else_in_the_payload() -> None:
    payload = (
        b'{ "n": 1.10, "big": 123456789012345678901234567890, "type": 1 ,'
        b'"content":"\\u0064arn \\"\\ud83d\\ude00\\/ \\n Darn", "x":"darn", "e": 1e400}'
    )
    expected = payload.replace(b"\\u0064arn", b"****").replace(b"Darn", b"****")
    with plugin() as t:
        assert t.send(payload) == Replace(expected)


def test_other_types_and_other_fields_are_left_alone() -> None:
    with plugin() as t:
        assert t.send(json.dumps({"type": 2, "content": "forbidden"}).encode()) == Continue()
        assert t.send(text("fine", other="forbidden")) == Continue()
        assert t.send(json.dumps({"type": [1], "content": "forbidden"}).encode()) == Continue()
        assert t.send(b'"forbidden"') == Continue()


def test_dotted_paths_go_through_objects_and_lists() -> None:
    fields = ["content", "body.items.text", "tags"]
    with plugin(types=[], fields=fields) as t:
        items = [{"text": "ok"}, {"text": "darn"}, {"other": "darn"}, 5]
        body = {"body": {"items": items}, "tags": ["darn", ["x darn"]], "content": {"a": "darn"}}
        answer = t.send(json.dumps(body).encode())
    assert isinstance(answer, Replace)
    items[1] = {"text": "****"}
    assert json.loads(answer.payload) == {**body, "tags": ["****", ["x ****"]]}


def test_plain_payloads_are_ignored_or_scanned_by_configuration() -> None:
    with plugin() as t:
        assert t.send(b"forbidden") == Continue()
    with plugin(plain="scan") as t:
        assert t.send(b"forbidden") == Refuse(11, "no")
        assert t.send(b"\xff darn \xfe") == Replace(b"\xff **** \xfe")
        assert t.send(b"") == Continue()


def test_bytes_that_are_not_utf8_hide_nothing() -> None:
    with plugin() as t:
        payload = b'{"type":1,"content":"\xff darn"}'
        assert t.send(payload) == Replace(b'{"type":1,"content":"\xff ****"}')


def test_a_repeated_key_hides_nothing() -> None:
    with plugin() as t:
        assert t.send(b'{"type":1,"content":"forbidden","content":"ok"}') == Refuse(11, "no")
        assert t.send(b'{"content":"darn","type":1,"c\\u006fntent":"ok"}') == Replace(
            b'{"content":"****","type":1,"c\\u006fntent":"ok"}'
        )


def test_deep_nesting_hides_nothing_and_costs_little() -> None:
    deep = b"[" * 50_000 + b"1" + b"]" * 50_000
    with plugin() as t:
        payload = b'{"type":1,"x":' + deep + b',"content":"forbidden"}'
        assert t.send(payload) == Refuse(11, "no")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner),
    max_leaves=12,
)


def expect_masked(value: Any, path: tuple[str, ...], words: list[str]) -> Any:
    """The same by plain recursion over the decoded document."""
    if isinstance(value, list):
        return [expect_masked(item, path, words) for item in value]
    if isinstance(value, str) and not path:
        return mask(value, naive_spans(words, value))
    if isinstance(value, dict) and path and path[0] in value:
        return {**value, path[0]: expect_masked(value[path[0]], path[1:], words)}
    return value


@given(
    st.dictionaries(st.sampled_from("abc"), values),
    st.sampled_from(["a", "a.b", "c.c.a"]),
    words_of,
    st.booleans(),
    st.sampled_from([None, 1]),
)
def test_masking_a_document_agrees_with_plain_recursion(
    body: dict[str, Any], field: str, words: list[str], ascii_only: bool, indent: int | None
) -> None:
    raw = json.dumps(body, ensure_ascii=ascii_only, indent=indent)
    matcher = Matcher([WordList("soft", words, "mask")])
    masked = mask_fields(raw, parse_paths([field]), lambda value: matcher.find(value).spans)
    assert json.loads(masked) == expect_masked(body, tuple(field.split(".")), words)
    _kind, after = read_fields(masked, parse_paths([field]))
    assert not any(fold(word) in fold(found) for word in words for found in after)


@given(st.binary(max_size=60))
def test_what_is_json_is_what_the_standard_decoder_takes(payload: bytes) -> None:
    raw = payload.decode("utf-8", "surrogateescape")
    for candidate in (raw, f" {{}}{raw}", f'\n[1,"{raw}"] ', f'{{"type":{raw}}}'):
        try:
            json.loads(candidate, strict=False)
        except ValueError:
            with pytest.raises(NotJsonError):
                read_fields(candidate, parse_paths(["content"]))
        else:
            read_fields(candidate, parse_paths(["content"]))


@given(st.binary(max_size=60))
def test_no_payload_makes_the_plugin_fail(payload: bytes) -> None:
    with plugin(plain="scan", types=[]) as t:
        t.send(payload)
        t.send(b'{"type":1,"content":"' + payload + b'"}')


# Configuration


def test_the_manifests_own_configuration_works() -> None:
    import tomllib

    folder = Path("plugins/moderation").resolve()
    manifest = tomllib.loads((folder / "plugin.toml").read_text("utf-8"))
    with SyncPluginTest(Moderation, config=manifest["config"]) as t:
        assert isinstance(t.send(text("a ForbiddenWord")), Refuse)
        assert t.send(text("holy shit, 他妈的")) == Replace(text("holy ****, ***"))
        assert t.send(text("Scunthorpe shitake")) == Continue()


def test_words_come_from_a_file_in_the_data_folder(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("# my words\n\n zebra \nÖl\n", "utf-8")
    lists = [{"name": "mine", "file": "mine.txt", "words": ["emu"], "action": "mask"}]
    with SyncPluginTest(Moderation, config={"lists": lists}, data_dir=tmp_path) as t:
        assert t.send(text("Zebra, emu und ÖL")) == Replace(text("*****, *** und **"))


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ([{"name": "x", "file": "gone.txt"}], "config.lists: x: file: found none of"),
        ([{"name": "x", "action": "drop"}], r"config.lists\[0\].action: expected one of"),
        ([{"name": "x", "code": 1}], r"config.lists\[0\]: Refuse: code: expected 2 to 255, got 1"),
        ([{"words": []}], r"config.lists\[0\].name: required"),
    ],
)
def test_a_wrong_configuration_is_named(lists: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ConfigError, match=message), plugin(lists=lists):
        pass


def test_other_lists_need_a_reload_while_fields_change_at_once() -> None:
    with plugin() as t:
        veto = t.config_update({"lists": LISTS[:1]})
        assert veto == "lists: a change takes effect with a reload of the plugin"
        assert t.send(text("x", title="darn")) == Continue()
        assert t.config_update({"lists": LISTS, "fields": ["title"]}) is None
        assert isinstance(t.send(text("x", title="darn")), Replace)


def test_hundred_thousand_words_are_matched() -> None:
    letters = string.ascii_lowercase
    words = [f"{a}{b}{c}{i}" for i in range(6) for a in letters for b in letters for c in letters]
    matcher = Matcher([WordList("big", words[:100_000], "mask")])
    assert matcher.find("hello abc3 and zzz0").spans == [(6, 10), (15, 19)]
