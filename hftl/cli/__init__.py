"""Words on a command line -> a recipe or a command."""
