"""`python -m jepa_wm.launch COMMAND ...`: `jepa-wm launch COMMAND ...` where the script is not
installed."""

import runpy
import sys

if __name__ == "__main__":
    sys.argv.insert(1, "launch")
    runpy.run_module("jepa_wm", run_name="__main__")
