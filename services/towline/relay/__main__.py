"""`python -m towline.relay`: the same as `towline relay`."""

from towline.relay.command import app

if __name__ == "__main__":
    app()
