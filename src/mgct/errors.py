"""The one exception that means: the input is wrong, not the program."""


class UserError(ValueError):
    """Bad input; its message is one line: what is wrong and what to do. The command line prints it and exits with 2."""
