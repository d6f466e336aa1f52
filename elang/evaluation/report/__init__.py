"""What an evaluation leaves behind: files, plots, a table in the terminal, a page."""
