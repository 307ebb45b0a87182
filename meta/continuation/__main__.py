"""`python -m meta.continuation`: see `command.py`."""

from meta.continuation.command import run

if __name__ == "__main__":
    run()
