"""Published metrics of pairs of texts."""
