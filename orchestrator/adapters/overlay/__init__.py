"""The overlay: Nebula's certificates, configuration and processes, and the bridge for sites without UDP."""
