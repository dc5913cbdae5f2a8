"""Models under other libraries' names, and as files that run without this package."""
