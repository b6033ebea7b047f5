"""What `evaluate.py` is made of: generating, scoring, comparing and showing reports. It may import every package."""
