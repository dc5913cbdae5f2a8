"""What a downstream task puts on top of a backbone."""
