"""`stagetrace capacity`: how much a service takes, and when to scale."""
