"""A run as people see it: its dashboard, comparisons of runs, a live view, trackers, warnings. Needs no torch."""
