"""Studies: their images, their reports, and where they come from. Imports no torch."""
