"""Value types that every room shares. Imports nothing of the project."""
