"""One step ahead of the device: while step n runs, step n + 1 is scheduled on the guess that every sequence goes on.

    host    T1 T2 .  T1 T2 .  T5  T1 T2 .  T5
    device        T3 T4    T3 T4        T3 T4

Without early feedback the inputs of step n + 1 wait for the ids of step n, and only T1 and T5 are hidden. A sequence that
stops in step n has a row in step n + 1 for nobody; its blocks come back with the commit of that step.
"""

from tpplanner.engine.core import Core, Flight


def run(core: Core) -> None:
    """Take steps until there is nothing to do, or the engine is told to stop; one is always in flight."""
    early = core.config.switches.early_feedback
    flight: Flight | None = None
    while flight is not None or core.has_work():
        if flight is not None:
            core.await_planning_time(flight)
        following = core.schedule() if core.scheduler.has_work else None
        if following is not None and (early or flight is None):
            core.submit(following, ids_on_device=early)
        if flight is not None:
            ids = core.receive(flight)
            if following is not None and not early:
                core.submit(following, ids_on_device=False)
            core.process(flight, ids)
        elif following is None:
            core.check_nothing_left()
        flight = following
