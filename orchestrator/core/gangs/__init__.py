"""Which of some candidates work together: at the least cost within a diameter, exactly or from seeds."""
