"""What Prometheus is shown, and how."""
