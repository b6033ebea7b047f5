"""The client of OpenAI-compatible endpoints: judges, served report generators and served rollouts use it."""
