"""What is worked out of the state when somebody needs it: the plan's queue, explanations, quotes, standings."""
