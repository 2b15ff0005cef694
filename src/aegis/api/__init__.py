"""What clients of OpenAI-compatible servers share: where they are, how they are asked, how their streams are read."""
