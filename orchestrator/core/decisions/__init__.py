"""What each command leads to, by noun. Every function reads the state and yields events; ``decide`` applies them."""
