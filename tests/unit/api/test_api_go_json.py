"""Bodies are decoded by Go's rules, whatever is thrown at the decoder."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wkhost.api.go_json import BodyDecoder, DecodeError, compact_json, first_value
from wkhost.api.schema import (
    Channel,
    ChannelMessageSync,
    ChannelUids,
    Header,
    MaxMessageSeqQuery,
    MessageSend,
    SubscriberAdd,
    UserToken,
)
from wkhost.link.contract import Subscriber

TOKEN = BodyDecoder(UserToken)
SEND = BodyDecoder(MessageSend)

texts = st.text(max_size=20)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


def field(text: str) -> str:
    """What `uid` becomes in a body whose uid is the JSON text given."""
    return TOKEN.decode(f'{{"uid": {text}}}'.encode()).uid


@given(uid=texts, flag=st.integers(0, 255), more=values, blanks=st.text(" \t\r\n", max_size=3))
def test_plain_bodies_round_trip_and_unknown_fields_are_ignored(
    uid: str, flag: int, more: Any, blanks: str
) -> None:
    body = json.dumps({"other": more, "uid": uid, "device_flag": flag})
    token = TOKEN.decode((blanks + body + blanks).encode())
    assert (token.uid, token.token, token.device_flag) == (uid, "", flag)


@given(st.lists(st.booleans(), min_size=3, max_size=3), st.binary(max_size=30))
def test_field_names_match_in_any_case_and_what_follows_the_value_is_ignored(
    upper: list[bool], rest: bytes
) -> None:
    name = "".join(c.upper() if up else c for c, up in zip("uid", upper, strict=True))
    assert TOKEN.decode(f'{{"{name}":"x"}}'.encode() + b" " + rest).uid == "x"


def test_long_s_and_kelvin_sign_fold_as_in_go() -> None:
    body = '{"to\u212aen": "t"}'.encode()
    assert TOKEN.decode(body).token == "t"
    assert BodyDecoder(ChannelUids).decode('{"uid\u017f": ["a"]}'.encode()).uids == ["a"]


def test_of_repeated_fields_the_last_one_that_is_not_null_counts() -> None:
    assert TOKEN.decode(b'{"uid":"a","UID":"b","uid":null}').uid == "b"


@pytest.mark.parametrize("body", [b"null", b"{}", b'{"uid":null,"device_flag":null}'])
def test_null_is_absent(body: bytes) -> None:
    assert TOKEN.decode(body) == UserToken()


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "EOF"),
        (b" \n\t ", "EOF"),
        (b"{", "unexpected EOF"),
        (b'{"uid":', "unexpected EOF"),
        (b'{"uid": ', "unexpected EOF"),
        (b'{"uid":"a', "unexpected EOF"),
        (b'{"uid":tru', "unexpected EOF"),
        (b"[", "unexpected EOF"),
        (b"{]", "invalid character"),
        (b"\xef\xbb\xbf{}", "invalid character"),
        (b'{"uid":NaN}', "invalid character"),
        (b'{"uid":-Infinity}', "invalid character"),
        (b'{"uid":"a\nb"}', "invalid character"),
        (b'{"uid":01}', "invalid character"),
        (b"{'uid':1}", "invalid character"),
        (b"[]", "cannot unmarshal array into Go value of type UserToken"),
        (b'"x"', "cannot unmarshal string into Go value"),
        (b"7", "cannot unmarshal number 7 into Go value"),
        (b"true", "cannot unmarshal bool into Go value"),
        (b'{"uid":1}', "cannot unmarshal number 1 into Go struct field UserToken.uid of type str"),
        (b'{"uid":["a"]}', "cannot unmarshal array"),
        (b'{"device_flag":"1"}', "cannot unmarshal string into Go struct field UserToken.device_f"),
        (b'{"device_flag":true}', "cannot unmarshal bool"),
        (b'{"device_flag":{}}', "cannot unmarshal object"),
        (b"[" * 100_000, "exceeded max depth"),
        (b'{"x":' * 100_000, "exceeded max depth"),
    ],
)
def test_what_cannot_be_decoded_says_so(body: bytes, text: str) -> None:
    with pytest.raises(DecodeError) as error:
        TOKEN.decode(body)
    assert text in str(error.value)


@pytest.mark.parametrize(
    "number",
    ["256", "-1", "1.0", "1e0", "0.5", "1E2", "9" * 5000, "1e999999", "-" + "9" * 400],
)
def test_integers_have_ranges_and_no_fraction(number: str) -> None:
    with pytest.raises(DecodeError, match=r"of type uint8"):
        TOKEN.decode(f'{{"device_flag":{number}}}'.encode())


@given(st.integers())
def test_64_bit_numbers_have_their_range(number: int) -> None:
    decoder = BodyDecoder(ChannelMessageSync)
    for name, low, high in (("start_message_seq", 0, 2**64 - 1), ("limit", -(2**63), 2**63 - 1)):
        body = json.dumps({name: number}).encode()
        if low <= number <= high:
            assert getattr(decoder.decode(body), name) == number
        else:
            with pytest.raises(DecodeError):
                decoder.decode(body)


@given(values)
def test_any_json_at_any_field_is_a_value_or_a_decode_error(value: Any) -> None:
    for decoder in (SEND, BodyDecoder(Channel), BodyDecoder(SubscriberAdd)):
        for info in decoder.type.__struct_fields__:
            try:
                decoder.decode(json.dumps({info: value}).encode())
            except DecodeError:
                continue


@given(st.binary(max_size=60))
def test_any_bytes_are_a_value_or_a_decode_error(body: bytes) -> None:
    for candidate in (body, b'{"uid":"' + body + b'"}'):
        try:
            TOKEN.decode(candidate).uid.encode()
        except DecodeError:
            continue


def test_broken_text_becomes_the_replacement_character() -> None:
    assert TOKEN.decode(b'{"uid":"a\xffb\xe4\xbd"}').uid == "a\ufffdb\ufffd\ufffd"
    assert field(r'"\ud800x"') == "\ufffdx"
    assert field(r'"\udc00\ud83d\ude00"') == "\ufffd\U0001f600"
    assert field(r'"é\ud800"') == "é\ufffd"


def test_strings_longer_than_the_wire_can_carry_are_refused() -> None:
    assert field(json.dumps("a" * 32767)) == "a" * 32767
    for text in ("a" * 32768, "中" * 10923):
        with pytest.raises(DecodeError, match=r"UserToken.uid: expected at most 32767 bytes"):
            field(json.dumps(text))


@pytest.mark.parametrize(
    ("text", "true"),
    [("1", True), ("0", False), ("2", False), ("-1", False), ("true", True), ("false", False)],
)
def test_of_numbers_only_one_is_true(text: str, true: bool) -> None:
    assert BodyDecoder(Channel).decode(f'{{"ban":{text}}}'.encode()).ban is true
    header = SEND.decode(f'{{"header":{{"red_dot":{text}}}}}'.encode()).header
    assert header == Header(red_dot=true)


@pytest.mark.parametrize("text", ['"1"', "1.0", "{}", "99999999999999999999"])
def test_a_flag_is_a_whole_number_or_a_boolean(text: str) -> None:
    with pytest.raises(DecodeError):
        BodyDecoder(Channel).decode(f'{{"ban":{text}}}'.encode())


def test_subscribers_come_as_uids_or_as_objects() -> None:
    body = b'{"subscribers":["a",{"uid":"b","role":1},null,{"role":1},{"UID":"c"}]}'
    assert BodyDecoder(SubscriberAdd).decode(body).subscribers == [
        Subscriber("a"),
        Subscriber("b", 1),
        Subscriber(""),
        Subscriber("", 1),
        Subscriber("c"),
    ]


@given(st.binary(max_size=100))
def test_payloads_come_as_base64_or_as_byte_numbers(data: bytes) -> None:
    text = base64.b64encode(data).decode()
    for payload in (text, text.replace("/", "\\/"), list(data)):
        body = json.dumps({"payload": payload}).replace("\\\\/", "\\/").encode()
        assert SEND.decode(body).payload == data


@pytest.mark.parametrize("payload", ["[256]", "[-1]", "[1.5]", '["a"]', "7", "true", '"aGk"'])
def test_other_payloads_are_refused(payload: str) -> None:
    with pytest.raises(DecodeError):
        SEND.decode(f'{{"payload":{payload}}}'.encode())


@given(st.dictionaries(texts, values, max_size=4))
def test_payload_objects_are_kept_as_compact_json(value: dict[str, Any]) -> None:
    body = json.dumps({"payload": value}, indent=3).encode()
    payload = SEND.decode(body).payload
    assert json.loads(payload) == value
    assert payload == json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def test_payload_objects_keep_numbers_order_and_repeats_as_written() -> None:
    body = b'{"payload": { "b" : 1.50, "a":[1e3, -0], "b":123456789012345678901234567890 }}'
    assert SEND.decode(body).payload == (
        b'{"b":1.50,"a":[1e3,-0],"b":123456789012345678901234567890}'
    )
    assert compact_json(first_value(b'{"\\ud800":"\\u4f60"}')) == '{"\ufffd":"你"}'


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (b"", MaxMessageSeqQuery()),
        (b"channel_id=a%40b&channel_type=1", MaxMessageSeqQuery("a@b", 1)),
        (b"channel_id=%E4%BD%A0+x&channel_type=", MaxMessageSeqQuery("你 x")),
        (b"channel_id=a&channel_id=b&login_uid=u&z=1", MaxMessageSeqQuery("a", 0, "u")),
    ],
)
def test_query_strings(query: bytes, expected: MaxMessageSeqQuery) -> None:
    assert BodyDecoder(MaxMessageSeqQuery).decode_query(query) == expected


@pytest.mark.parametrize("number", [b"x", b"256", b"-1", b"1.0", b"%ff"])
def test_numbers_in_a_query_have_their_range(number: bytes) -> None:
    with pytest.raises(DecodeError):
        BodyDecoder(MaxMessageSeqQuery).decode_query(b"channel_type=" + number)
