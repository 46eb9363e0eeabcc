"""Arguments on command lines: the options that verbs share, times, trace ids."""
