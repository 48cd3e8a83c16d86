from pathlib import Path

from plugin_sdk import Continue, Refuse
from plugin_sdk.serve import load_plugin
from plugin_sdk.testing import SyncPluginTest

Filter = load_plugin(Path(__file__).parent, "main.py")


def test_spam_is_refused_and_the_rest_goes_on() -> None:
    with SyncPluginTest(Filter) as t:
        assert t.send(b"buy spam") == Refuse(11, "no spam")
        assert t.send(b"hello") == Continue()
