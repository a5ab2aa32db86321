"""The command line: arguments, tasks, signals, error reports, help. Nothing here imports torch."""
