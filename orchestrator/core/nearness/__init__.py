"""How far workers are from each other: measurements with their age, and guesses for the pairs that nobody measured."""
