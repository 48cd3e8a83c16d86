"""Settings: what they are (`settings.py`), how they are written (`values.py`), where they come
from (`load.py`). Knows nothing of the parts that use them."""

from wkhost.config.load import CONFIG_VARIABLE, load_settings, variable_of
from wkhost.config.settings import Settings
from wkhost.config.values import Address

__all__ = ["CONFIG_VARIABLE", "Address", "Settings", "load_settings", "variable_of"]
