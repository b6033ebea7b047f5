"""RadGraph: its published archives read and run here, and F1 over its graphs."""
