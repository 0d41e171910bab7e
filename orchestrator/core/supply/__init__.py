"""What suppliers bring: workers and their devices, evidence, terms, reliability, and whether they are alive."""
