"""`python -m towline.worker`: the same as `towline worker`."""

import sys

from towline.cli import main

if __name__ == "__main__":
    main(["worker", *sys.argv[1:]])
