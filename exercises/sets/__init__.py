"""The exercises, a file for each paper."""
