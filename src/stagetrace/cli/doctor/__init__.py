"""`stagetrace doctor`: the installation, the settings, the delivery of spans, running processes."""
