"""Single files to fork: each is read from top to bottom and needs nothing from the others."""
