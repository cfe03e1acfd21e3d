"""``python -m benchmarks``."""

import signal
import sys

try:
    from benchmarks.cli import main
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "rich":
        raise
    print("python -m benchmarks: it prints by rich: pip install rich", file=sys.stderr)
    sys.exit(2)

if __name__ == "__main__":
    # As an exception, which ends the process of a job as well.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    sys.exit(main())
