"""What this process has of interpreter and machine: packages, imports, signals, settings, files, the C extension."""
