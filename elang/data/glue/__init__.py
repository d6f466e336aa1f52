"""GLUE and SuperGLUE: their tasks, their files and what they take as a submission."""
