"""Seeing a run: its report, comparisons of runs, a live view, trackers, warnings. Reads run folders; needs no torch."""
