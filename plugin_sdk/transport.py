"""The plugin's gRPC channel: its stream of hooks, and host API calls with their status codes as
Python exceptions. Methods come from the service descriptors, so no list of them is kept here."""

from __future__ import annotations

from typing import Any

import grpc.aio
from google.protobuf.message_factory import GetMessageClass

from plugin_sdk.errors import BY_CODE, HostError
from plugin_sdk.wire.v1 import host_pb2, plugin_pb2

CALL_TIMEOUT_S = 10.0
CHANNEL_OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    # On a Unix socket there is no bandwidth to probe; a fixed window saves a ping per batch.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 1024 * 1024),
    ("grpc.enable_retries", 0),
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.max_send_message_length", 64 * 1024 * 1024),
)
HOST_API = host_pb2.DESCRIPTOR.services_by_name["HostApi"]


def open_stream(channel: grpc.aio.Channel) -> Any:
    """Open the one stream of hook calls."""
    method = plugin_pb2.DESCRIPTOR.services_by_name["Hooks"].methods_by_name["Connect"]
    connect: Any = channel.stream_stream(
        f"/{method.containing_service.full_name}/{method.name}",
        request_serializer=plugin_pb2.PluginFrame.SerializeToString,
        response_deserializer=plugin_pb2.HostFrame.FromString,
    )
    return connect()


class GrpcTransport:
    """Unary calls of HostApi on the plugin's own connection."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._methods: dict[str, Any] = {
            method.name: channel.unary_unary(
                f"/{HOST_API.full_name}/{method.name}",
                request_serializer=GetMessageClass(method.input_type).SerializeToString,
                response_deserializer=GetMessageClass(method.output_type).FromString,
            )
            for method in HOST_API.methods
        }

    async def call(self, method: str, request: Any) -> Any:
        try:
            return await self._methods[method](request, timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            kind = BY_CODE.get(error.code().name, HostError)
            raise kind(f"{method}: {error.details()}") from None
