"""Replicas behind a router, or with clients of their own: who serves which request, and when."""

from bisect import bisect_right
from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heapreplace

import numpy as np

from tpplanner.domain.simulation import Router
from tpplanner.domain.traffic import Traffic
from tpplanner.serving.config import SchedulerConfig
from tpplanner.serving.scheduler import Scheduler
from tpplanner.sim.record import RequestTimes
from tpplanner.sim.replica import NEVER_S, Replica, ReplicaPlan

Progress = Callable[[int], None]
"""Called now and then with the number of requests that have finished."""

_PROGRESS_EVERY = 1000


class Cluster:
    """All replicas of one degree and the requests that they serve."""

    def __init__(self, plan: ReplicaPlan, config: SchedulerConfig, num_replicas: int, progress: Progress | None = None) -> None:
        traffic = plan.traffic
        self.times = RequestTimes(traffic.num_requests)
        self.replicas = [Replica(i, plan, Scheduler(config), self.times, self._finished) for i in range(num_replicas)]
        scheduler = self.replicas[0].scheduler
        self._servable = self._requests_that_fit(traffic, scheduler)
        self._traffic, self._progress = traffic, progress
        self._num_finished = 0
        self._finish_s: list[list[float]] | None = None
        self._next: Iterator[int] = iter(())

    @staticmethod
    def _requests_that_fit(traffic: Traffic, scheduler: Scheduler) -> list[int]:
        longest = scheduler.longest_tok
        servable: list[int] = np.flatnonzero(traffic.isl_tok + traffic.osl_tok <= longest).tolist()
        return servable

    def _finished(self, replica: Replica) -> None:
        self._num_finished += 1
        if self._progress is not None and self._num_finished % _PROGRESS_EVERY == 0:
            self._progress(self._num_finished)
        if self._finish_s is not None:
            self._finish_s[replica.number].append(replica.now_s)
        following = next(self._next, None)
        if following is not None:
            replica.push(following, replica.now_s)

    def serve_open(self, router: Router) -> None:
        """Serve requests at the times at which they arrive."""
        arrival_s = self._traffic.arrival_s
        assert arrival_s is not None, self._traffic.name  # the caller chooses open or closed by it
        self.times.arrival_s[:] = arrival_s
        pick = self._in_turn if router is Router.ROUND_ROBIN else self._least_outstanding
        if router is Router.LEAST_OUTSTANDING:
            self._finish_s = [[] for _ in self.replicas]
        at = arrival_s.tolist()
        for turn, request in enumerate(self._servable):
            pick(turn, at[request]).push(request, at[request])
        for replica in self.replicas:
            replica.advance(NEVER_S)

    def _in_turn(self, turn: int, at_s: float) -> Replica:
        replica = self.replicas[turn % len(self.replicas)]
        replica.advance(at_s)
        return replica

    def _least_outstanding(self, turn: int, at_s: float) -> Replica:
        assert self._finish_s is not None
        best, fewest = self.replicas[0], None
        for replica, finish_s in zip(self.replicas, self._finish_s, strict=True):
            replica.advance(at_s)
            # A step that is running may hold ends that lie ahead.
            outstanding = replica.num_pushed - bisect_right(finish_s, at_s)
            if fewest is None or outstanding < fewest:
                best, fewest = replica, outstanding
        return best

    def serve_closed(self, clients: list[int], *, ramp_s: float = 0.0) -> None:
        """Serve requests one after the other, ``clients[i]`` of them at a time on replica i.

        The clients of a replica start one after the other within ``ramp_s``; all at once where it is 0.
        """
        self._next = iter(self._servable)
        starts = ((replica, ramp_s * turn / count) for turn in range(max(clients))
                  for replica, count in zip(self.replicas, clients, strict=True) if turn < count)
        # Ends with the requests, however many clients there are.
        for (replica, start_s), request in zip(starts, self._next, strict=False):
            replica.push(request, start_s)
        # The replica whose clock is behind goes on: clients draw requests in the order of time.
        ready = [(replica.now_s, replica.number) for replica in self.replicas if replica.has_work]
        heapify(ready)
        while ready:
            replica = self.replicas[ready[0][1]]
            replica.turn(NEVER_S)
            if replica.has_work:
                heapreplace(ready, (replica.now_s, replica.number))
            else:
                heappop(ready)
