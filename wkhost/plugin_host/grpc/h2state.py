"""h2 as it is used here: the rules and the decompression of request headers, and settings.

Streams are forgotten as soon as h2 has opened them: their states are the wire's own.
"""

from __future__ import annotations

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.settings import SettingCodes, Settings

from wkhost.plugin_host.grpc.frames import PREFACE
from wkhost.plugin_host.grpc.methods import Limits


def start_h2(limits: Limits) -> H2Connection:
    """A server connection past the preface. Its own SETTINGS are dropped: ours go out by hand.

    It sees one stream at a time: one too many is refused by the wire, alone. h2 would close the
    connection over it, and a peer may do it in good faith before it has read the limit.
    """
    h2 = H2Connection(H2Configuration(client_side=False, header_encoding=None))
    h2.local_settings = Settings(
        client=False,
        initial_values={
            SettingCodes.MAX_CONCURRENT_STREAMS: limits.max_streams,
            SettingCodes.MAX_HEADER_LIST_SIZE: limits.max_header_bytes,
        },
    )
    h2.decoder.max_header_list_size = limits.max_header_bytes
    h2.receive_data(PREFACE)
    h2.initiate_connection()
    h2.clear_outbound_data_buffer()
    return h2
