"""retries.py owns what happens when the network fails while the hub is read."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from lab.files import first_line

RETRY_WAITS = (1, 2, 4, 8, 16, 32)  # seconds before each new attempt after a network error


def with_retries(attempt: Callable, position: int, after: Callable, waits=None) -> Iterator:
    """Yield from attempt(position); after a network error, wait and go on at after(the last item).

    Any other error, and the network's last one, is a ValueError."""
    waits, failures = waits or RETRY_WAITS, 0
    while True:
        try:
            for item in attempt(position):
                yield item
                position, failures = after(item), 0
            return
        except Exception as error:
            if type(error) is ValueError:  # our own sentence
                raise
            what = f"{type(error).__name__}: {first_line(error)}"
            if failures == len(waits) or not may_pass(error):
                raise ValueError(
                    f"reading from the hub failed {failures + 1} times in a row ({what}): "
                    "check the name, --config, --revision and the network and run again "
                    "(with --resume if it had begun), or give local files.") from error
            print(f"network error ({what}), trying again in {waits[failures]} s", file=sys.stderr)
            time.sleep(waits[failures])
            failures += 1


def may_pass(error: BaseException | None) -> bool:
    """Whether trying again may help: connections, time-outs, cut-off bodies, HTTP 408, 429 and 5xx."""
    import pyarrow

    libraries = "urllib3 requests httpx httpx2 httpcore httpcore2 aiohttp http".split()  # of all `datasets` versions
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is not None:
            return status in (408, 429) or status >= 500
        if isinstance(error, (FileNotFoundError, PermissionError)) or "Offline" in type(error).__name__:
            return False
        library = type(error).__module__.split(".")[0]
        if isinstance(error, (OSError, EOFError, pyarrow.ArrowException)) or library in libraries:
            return True
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def hub_errors(name: str):
    """Turns whatever the network and three libraries raise inside the block into one sentence."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{name} cannot be read from the hub ({first_line(error)}): "
                         "check the name and the network, or give local files.") from error
