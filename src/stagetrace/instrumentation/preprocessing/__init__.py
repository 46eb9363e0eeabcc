"""Libraries that prepare a model's input: their calls are details of the stage that they are in."""
