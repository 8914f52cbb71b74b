"""``python -m zeropoint.cli``."""

import sys

from zeropoint.cli import main

sys.exit(main())
