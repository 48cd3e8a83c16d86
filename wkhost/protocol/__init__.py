"""Bytes to packets and back: no sockets, no clock, no logging.

packets             the packets as plain values, the same for both forms
connection          the server's side of one connection: sniffing, login, frames in and out
recv_frames         one RECV for many connections
framing, codec      the binary form
crypto              key agreement, payload cipher, msg_key
login, proxy        what CONNECT and a PROXY header decide by themselves
json_stream, jsonrpc, jsonrpc_answers, jsonrpc_session, jsonrpc_shapes
                    the JSON-RPC form
client, client_jsonrpc
                    the client's side of both forms
"""
