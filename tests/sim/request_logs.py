"""Logs of requests made by hand."""

import numpy as np

from tpplanner.domain.simulation import RequestLog


def log_of(arrival_s, *, start_s=None, first_s=None, finish_s, osl_tok=10, replica=None) -> RequestLog:
    """Requests that start when they arrive and have their first token at the start, unless told otherwise."""
    arrival = np.asarray(arrival_s, dtype=float)
    start = arrival if start_s is None else np.asarray(start_s, dtype=float)
    zeros = np.zeros(arrival.size, dtype=np.int64)
    return RequestLog(
        arrival_s=arrival, start_s=start, first_token_s=start if first_s is None else np.asarray(first_s, dtype=float),
        finish_s=np.asarray(finish_s, dtype=float), isl_tok=zeros + 5, osl_tok=np.asarray(osl_tok) + zeros,
        replica=zeros if replica is None else np.asarray(replica), num_preemptions=zeros, outside_s=np.zeros(arrival.size))


def served_in_turn(gaps_s, service_s) -> RequestLog:
    """One server, first come first served."""
    arrival = np.cumsum(gaps_s)
    service = np.broadcast_to(service_s, arrival.shape)
    finish, free_s = np.empty_like(arrival), 0.0
    for i, (at_s, takes_s) in enumerate(zip(arrival, service, strict=True)):
        free_s = finish[i] = max(at_s, free_s) + takes_s
    return log_of(arrival, start_s=finish - service, finish_s=finish)
