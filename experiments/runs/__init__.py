"""What the launchers share: command line, run directory, evaluation, pictures and report."""
