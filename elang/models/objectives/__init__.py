"""What a Swift learns from its Super's answers, beside the labels."""
