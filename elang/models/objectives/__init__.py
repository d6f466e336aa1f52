"""What a Swift learns besides its task: the Super's answers and hidden states, and margins between easy and hard."""
