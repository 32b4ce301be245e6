"""One task after the other: schedule, prepare, forward and sample, process. Read beside ``overlap_loop.py``."""

from tpplanner.engine.core import Core


def run(core: Core) -> None:
    """Take steps until there is nothing to do, or the engine is told to stop.

    host    T1 T2            T5 T1 T2            T5
    device        T3 T4                 T3 T4
    """
    while core.has_work():
        flight = core.schedule()
        if flight is None:
            core.check_nothing_left()
            continue
        core.submit(flight, ids_on_device=False)
        ids = core.receive(flight)
        core.process(flight, ids)
