"""``python -m towline.worker``."""

from towline.worker.command import main

if __name__ == "__main__":
    main()
