"""What a user sets: frozen dataclasses, without torch."""
