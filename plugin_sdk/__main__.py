"""`python -I -m plugin_sdk --control-fd N`: how the host starts a plugin."""

from __future__ import annotations

import argparse
import gc
import os
import sys


def run() -> None:
    # All of this stays; looking through it again and again takes a tenth of the time to start.
    gc.disable()
    from plugin_sdk.serve import main

    gc.freeze()
    gc.enable()
    parser = argparse.ArgumentParser(prog="python -m plugin_sdk", description=__doc__)
    parser.add_argument("--control-fd", type=int, required=True, metavar="N")
    code = main(parser.parse_args().control_fd)
    sys.stdout.flush()
    sys.stderr.flush()
    # At once: a handler's thread that never ends must not keep a plugin alive without its host.
    os._exit(code)


if __name__ == "__main__":
    run()
