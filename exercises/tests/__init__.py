"""Graded tests, a file for each paper.

A test computes something with the functions of an exercise. It passes if the master's
functions give the same. Its docstring is what a student reads about it.
"""
