"""Assignments that grade themselves: see docs/classroom.md."""
