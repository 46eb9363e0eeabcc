"""What follows from a policy for other programs: rules of alerts, sections of configuration, documents. Pure."""
