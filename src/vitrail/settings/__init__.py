"""What a user sets: frozen dataclasses, and the layers that they are made of; without torch."""
