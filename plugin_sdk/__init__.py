"""The Python SDK of wkhost plugins: write a class, mark its methods, return verdicts.

plugin.py the class and the mark · hooks.py every hook · types.py what handlers see and return ·
host.py what the host offers · testing.py run a plugin in memory · serve.py the process's life.
"""

from plugin_sdk.errors import (
    ConfigError,
    HostError,
    HostTimeoutError,
    HostUnavailableError,
    InvalidRequestError,
    LimitExceededError,
    NotFoundError,
    NotPermittedError,
    PluginDefinitionError,
    VersionConflictError,
)
from plugin_sdk.host import Host
from plugin_sdk.plugin import Plugin, hook
from plugin_sdk.types import (
    Channel,
    ChannelAnswer,
    ChannelQuery,
    Continue,
    Event,
    KvEntry,
    KvPage,
    Login,
    Message,
    MessagePage,
    OnlineDevice,
    Origin,
    Refuse,
    Replace,
    Sent,
    User,
    UserAnswer,
    UserQuery,
    Verdict,
    Veto,
    WebhookAnswer,
)
from plugin_sdk.version import VERSION

__version__ = VERSION

__all__ = [
    "Channel",
    "ChannelAnswer",
    "ChannelQuery",
    "ConfigError",
    "Continue",
    "Event",
    "Host",
    "HostError",
    "HostTimeoutError",
    "HostUnavailableError",
    "InvalidRequestError",
    "KvEntry",
    "KvPage",
    "LimitExceededError",
    "Login",
    "Message",
    "MessagePage",
    "NotFoundError",
    "NotPermittedError",
    "OnlineDevice",
    "Origin",
    "Plugin",
    "PluginDefinitionError",
    "Refuse",
    "Replace",
    "Sent",
    "User",
    "UserAnswer",
    "UserQuery",
    "Verdict",
    "VersionConflictError",
    "Veto",
    "WebhookAnswer",
    "__version__",
    "hook",
]
