"""What a device and hour costs: asks, clouds' medians, the market's own price, and how models compare in worth."""
