"""The thin layer that carries a deployment out on a host: one module a stage, pyinfra operations and nothing decided."""
