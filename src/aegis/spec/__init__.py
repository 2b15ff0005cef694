"""What the user asks for: deployment, platform; loading and merging them."""
