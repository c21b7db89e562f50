"""Graded tests: each computes something, and it is right if the master computes the same."""
