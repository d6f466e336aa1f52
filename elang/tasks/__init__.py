"""What is asked: how a task puts its question, and what an answer to it is worth."""
