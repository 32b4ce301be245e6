"""Requests one by one: traffic, and the event-driven simulation of the replicas that serve it."""
