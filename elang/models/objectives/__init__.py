"""What a Swift is trained on besides its task: the Super's answers, and margins between easy and hard."""
