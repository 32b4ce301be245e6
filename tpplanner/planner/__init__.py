"""The search: steady state of one replica, replicas of a cluster, degrees, and what would change the answer."""
