"""``python -m xgradcheck``."""

import sys

from xgradcheck._cli import main

sys.exit(main())
