"""`python -m wkhost` is the `wkhost` command."""

import sys

from wkhost.cli.main import main

sys.exit(main())
