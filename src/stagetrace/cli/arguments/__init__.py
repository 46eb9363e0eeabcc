"""What command lines hold: the options that verbs share, times, trace ids."""
