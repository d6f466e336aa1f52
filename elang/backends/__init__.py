"""Who answers: the models of every family, how they are loaded, what they cost and how they are made fast."""
