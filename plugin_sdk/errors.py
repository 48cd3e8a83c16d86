"""What the host API may raise, and what a wrong plugin raises at its start."""

from __future__ import annotations


class PluginDefinitionError(TypeError):
    """The plugin's code cannot be served; the text says what to change."""


class ConfigError(ValueError):
    """A configuration does not fit the plugin's schema; the text names the field."""


class HostError(Exception):
    """A call to the host failed. Subclasses say how."""


class InvalidRequestError(HostError):
    """A field is wrong; the text names it."""


class NotPermittedError(HostError):
    """The plugin was not granted this; the text names the grant."""


class NotFoundError(HostError):
    """There is no such thing."""


class VersionConflictError(HostError):
    """`if_version` did not match the key's version."""


class LimitExceededError(HostError):
    """A rate or quota is used up."""


class HostUnavailableError(HostError):
    """The host cannot answer now; try again."""


class HostTimeoutError(HostError):
    """No answer within the time given; the fate of the call is unknown."""


BY_CODE: dict[str, type[HostError]] = {
    "INVALID_ARGUMENT": InvalidRequestError,
    "PERMISSION_DENIED": NotPermittedError,
    "NOT_FOUND": NotFoundError,
    "ABORTED": VersionConflictError,
    "RESOURCE_EXHAUSTED": LimitExceededError,
    "UNAVAILABLE": HostUnavailableError,
    "DEADLINE_EXCEEDED": HostTimeoutError,
}
"""By the name of the gRPC status code; any other code is a plain HostError."""
