"""What is kept: one model's answers, and a Swift's thresholds."""
