"""``python -m towline.cli``: the same as the `towline` script."""

from towline.cli import main

main()
