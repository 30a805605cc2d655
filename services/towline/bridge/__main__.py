"""`python -m towline.bridge`: the same as `towline bridge`."""

import sys

from towline.cli import main

if __name__ == "__main__":
    main(["bridge", *sys.argv[1:]])
