"""/docs and /swagger: Swagger UI over the OpenAPI document, everything served from here."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources import files

import msgspec

from wkhost.api.answers import Answer, empty_answer, json_answer, text_answer
from wkhost.api.openapi import openapi_document
from wkhost.api.routes import Route

_ASSETS = {
    "swagger-ui.css": b"text/css; charset=utf-8",
    "swagger-ui-bundle.js": b"text/javascript; charset=utf-8",
    "favicon-32x32.png": b"image/png",
}

_PAGE = b"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>wkhost API</title>
<link rel="icon" type="image/png" href="/docs/favicon-32x32.png">
<link rel="stylesheet" href="/docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script>
SwaggerUIBundle({ url: "/docs/openapi.json", dom_id: "#swagger-ui", deepLinking: true });
</script>
</body>
</html>
"""


class DocsHealth(msgspec.Struct, frozen=True):
    status: str
    mode: str
    enabled: bool


class DocsClosed(msgspec.Struct, frozen=True):
    """The documentation is not shown in mode release."""

    error: str
    message: str
    mode: str
    suggestion: str


def docs_pages(routes: Iterable[Route], *, mode: str) -> dict[str, Answer]:
    """Return the pages by path. In mode `release` only /docs/health shows itself."""
    release = mode == "release"
    pages = {"/docs/health": json_answer(DocsHealth("ok", mode, enabled=not release))}
    to_docs = empty_answer(302)
    to_docs.headers.append((b"location", b"/docs"))
    pages["/swagger"] = to_docs
    if release:
        closed = DocsClosed(
            "documentation disabled",
            "API documentation is not served in release mode",
            mode,
            "set mode to debug to see it",
        )
        pages["/docs"] = pages["/docs/openapi.json"] = json_answer(closed, status=403)
        return pages
    pages["/docs"] = text_answer(200, b"text/html; charset=utf-8", _PAGE)
    pages["/docs/openapi.json"] = json_answer(openapi_document(routes))
    for name, content_type in _ASSETS.items():
        pages[f"/docs/{name}"] = text_answer(200, content_type, _asset(name))
    return pages


def _asset(name: str) -> bytes:
    """Read one file of the Swagger UI that the package `swagger_ui_bundle` carries."""
    vendor = files("swagger_ui_bundle") / "vendor"
    versions = sorted(entry.name for entry in vendor.iterdir())
    return (vendor / versions[-1] / name).read_bytes()
