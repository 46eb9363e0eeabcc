"""The alerts of `stagetrace up`: a look at the store at each interval, and what receivers are told of it."""
