"""What rules read in report text: labels, negation, entities, keywords, consistency."""
