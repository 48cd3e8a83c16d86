"""h2 as it is used here: stream states, header compression and settings, but no DATA."""

from __future__ import annotations

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.settings import SettingCodes, Settings

from wkhost.plugin_host.grpc.frames import PREFACE
from wkhost.plugin_host.grpc.methods import Limits

MAX_HEADER_TABLE = 4096
"""Our encoder's dynamic table stays at this even if the peer allows a larger one."""
_RACE = 128
"""Streams that a peer may open before it has read our SETTINGS; each is refused by itself."""


class _Connection(H2Connection):
    # Closed streams are remembered to tell late frames from wrong ones; the default is 65,536.
    MAX_CLOSED_STREAMS = 1024


def start_h2(limits: Limits) -> H2Connection:
    """A server connection past the preface. Its own SETTINGS are dropped: ours go out by hand.

    h2 closes the connection over one stream too many, which a peer may open in good faith before
    it has read the limit; with a higher limit in h2 that stream can be refused alone.
    """
    config = H2Configuration(
        client_side=False,
        header_encoding=None,
        # What we send is written in the form that these would check and produce.
        validate_outbound_headers=False,
        normalize_outbound_headers=False,
    )
    h2 = _Connection(config)
    h2.local_settings = Settings(
        client=False,
        initial_values={
            SettingCodes.MAX_CONCURRENT_STREAMS: limits.max_streams + _RACE,
            SettingCodes.MAX_HEADER_LIST_SIZE: limits.max_header_bytes,
        },
    )
    h2.decoder.max_header_list_size = limits.max_header_bytes
    h2.receive_data(PREFACE)
    h2.initiate_connection()
    h2.clear_outbound_data_buffer()
    return h2
