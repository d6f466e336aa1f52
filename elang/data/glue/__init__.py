"""GLUE and SuperGLUE: the tasks, the benchmarks' own files and their submission formats."""
