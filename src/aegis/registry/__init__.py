"""The service that knows every instance and its state."""
