"""Predictions judged by measured runs: errors, decisions, intervals, limits, drift. Arithmetic only, no files."""
