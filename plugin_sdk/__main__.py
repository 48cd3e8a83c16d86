"""`python -I -m plugin_sdk --control-fd N`: how the host starts a plugin."""

from __future__ import annotations

import argparse
import os
import sys

from plugin_sdk.serve import main


def run() -> None:
    parser = argparse.ArgumentParser(prog="python -m plugin_sdk", description=__doc__)
    parser.add_argument("--control-fd", type=int, required=True, metavar="N")
    code = main(parser.parse_args().control_fd)
    sys.stdout.flush()
    sys.stderr.flush()
    # At once: a handler's thread that never ends must not keep a plugin alive without its host.
    os._exit(code)


if __name__ == "__main__":
    run()
