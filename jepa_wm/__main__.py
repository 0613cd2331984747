"""`python -m jepa_wm`: the command line without the installed script."""

import sys

from jepa_wm.cli import main

if __name__ == "__main__":
    sys.exit(main())
