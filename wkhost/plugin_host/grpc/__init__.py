"""gRPC, server side, over h2 in the trio thread. The only importer of h2 in wkhost.

wire.py is the sans-IO connection, server.py serves it on a socket, listener.py accepts the one
peer that may dial, methods.py is what callers write against.
"""

from wkhost.plugin_host.grpc.listener import PeerCred, accept_one, listen_unix
from wkhost.plugin_host.grpc.methods import (
    BidiMethod,
    BidiStream,
    CallInfo,
    Limits,
    Method,
    Methods,
    StreamHandler,
    UnaryMethod,
)
from wkhost.plugin_host.grpc.server import GrpcConnection
from wkhost.plugin_host.grpc.status import GrpcError, Metadata, StatusCode

__all__ = [
    "BidiMethod",
    "BidiStream",
    "CallInfo",
    "GrpcConnection",
    "GrpcError",
    "Limits",
    "Metadata",
    "Method",
    "Methods",
    "PeerCred",
    "StatusCode",
    "StreamHandler",
    "UnaryMethod",
    "accept_one",
    "listen_unix",
]
