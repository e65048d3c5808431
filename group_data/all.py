"""Settings for every host. All of them, with their defaults: docs/configuration.md."""
