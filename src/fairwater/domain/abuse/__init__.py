"""What keeps one account from taking the platform."""
