"""`python -m towline.relay`: the same as `towline relay`."""

import sys

from towline.cli import main

if __name__ == "__main__":
    main(["relay", *sys.argv[1:]])
