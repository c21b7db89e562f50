"""Assignments that grade themselves: `python -m exercises list`. See docs/classroom.md."""
