"""The OpenAPI document, made from the table of routes and its structs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from wkhost import __version__
from wkhost.api.routes import Route
from wkhost.api.schema import Failure

_REF = "#/components/schemas/{name}"
_SUBSCRIBER = {"$ref": _REF.format(name="Subscriber")}

Schema = dict[str, Any]


def openapi_document(routes: Iterable[Route]) -> Schema:
    """Return the document as plain data (OpenAPI 3.1)."""
    table = list(routes)
    bodies = [route.body.type for route in table if route.body is not None]
    _, requests = msgspec.json.schema_components(bodies, ref_template=_REF)
    outcomes = [*(route.answers for route in table), Failure]
    schemas, components = msgspec.json.schema_components(outcomes, ref_template=_REF)
    answer_schemas = dict(zip((id(route) for route in table), schemas, strict=False))
    paths: dict[str, Schema] = {}
    for route in table:
        operation = _operation(route, answer_schemas[id(route)], schemas[-1])
        paths.setdefault(route.path, {})[route.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "wkhost business API", "version": __version__},
        "paths": paths,
        "components": {"schemas": {**components, **_as_clients_write(requests)}},
    }


def _operation(route: Route, answer: Schema, failure: Schema) -> Schema:
    operation: Schema = {
        "operationId": route.path.strip("/").replace("/", "_"),
        "tags": [route.path.split("/")[1]],
        "responses": {
            "200": {"description": "done", **_json_content(answer)},
            "400": {"description": "refused; `msg` says why", **_json_content(failure)},
        },
    }
    if route.body is not None:
        body = {"$ref": _REF.format(name=route.body.type.__name__)}
        operation["requestBody"] = {"required": True, **_json_content(body)}
    if route.query is not None:
        operation["parameters"] = _parameters(route.query.type)
    return operation


def _json_content(schema: Schema) -> Schema:
    return {"content": {"application/json": {"schema": schema}}}


def _parameters(query: type) -> list[Schema]:
    _, components = msgspec.json.schema_components((query,), ref_template=_REF)
    properties: dict[str, Schema] = components[query.__name__]["properties"]
    return [{"name": name, "in": "query", "schema": schema} for name, schema in properties.items()]


def _as_clients_write(schema: Any) -> Any:
    """Say what bodies may hold: 0/1 flags, three forms of payload, two forms of subscribers."""
    if isinstance(schema, list):
        return [_as_clients_write(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema == _SUBSCRIBER:
        return {"oneOf": [{"type": "string"}, _SUBSCRIBER]}
    if schema.get("contentEncoding") == "base64":
        text = "base64 text, a JSON object, or an array of byte numbers"
        return {"type": ["string", "object", "array"], "description": text}
    if schema.get("type") == "boolean":
        return {"type": ["integer", "boolean"], "description": "0 or 1", "default": 0}
    return {key: _as_clients_write(value) for key, value in schema.items()}
