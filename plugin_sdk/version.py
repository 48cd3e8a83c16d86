"""The SDK's own version, told to the host for people to read."""

from typing import Final

VERSION: Final = "0.1.0"
