"""`python -m towline.bridge`."""

from towline.bridge.command import app

if __name__ == "__main__":
    app()
