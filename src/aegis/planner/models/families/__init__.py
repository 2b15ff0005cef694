"""What each family of models computes in a step."""
