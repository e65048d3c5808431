"""The guard: decides for every request that reaches the gateway whether an application may see it."""
