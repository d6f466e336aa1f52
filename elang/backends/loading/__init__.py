"""Loading and saving the models of a task: folders, checkpoints and hub ids, of every family."""
