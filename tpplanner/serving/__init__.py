"""The scheduler of continuous batching and the KV blocks: plain Python, run by a simulator or by an engine."""
