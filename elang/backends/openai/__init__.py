"""Models behind an API of OpenAI's form."""
