"""``python -m calibrate``: one run of the microbenchmarks, asked for on stdin; a JSON line per case on stdout."""

import os
import signal
import sys
from pathlib import Path

import msgspec

from tpplanner.errors import TpplannerError
from tpplanner.io.calibration_samples import Ended, Progress, SessionAsked


def main() -> None:
    """Run the session, and tell how it ended; nobody to tell ends it, as after Ctrl-C, which the asking process takes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not come between the answers
    asked = msgspec.json.decode(sys.stdin.buffer.read(), type=SessionAsked)

    def tell(message: Progress | Ended) -> None:
        try:
            answers.write(msgspec.json.encode(message) + b"\n")
            answers.flush()
        except OSError:
            raise SystemExit(0) from None  # whatever was started is ended on the way

    try:
        from calibrate.session import run_session

        machine, problems = run_session(asked, tell)
    except TpplannerError as error:
        tell(Ended(error=str(error)))
    except ImportError as error:
        tell(Ended(error=f"calibrate: {error}: pip install 'tpplanner[engine]'"))
    else:
        tell(Ended(machine=machine, problems=tuple(problems)))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    main()
